"""Checks the entries that a call wants stored against their namespace, and brings them into columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from kronos.cache.v1 import cache_pb2 as pb

from kronos_db.cache.indexing import indexed
from kronos_db.cache.model import TAG_SEPARATOR, Namespace, Writes
from kronos_db.runtime.crypto.sealing import Sealer
from kronos_db.runtime.errors import BadRequestError

# The field that sealed values are bound to, beside the entry.
FIELD = "kronos.cache.v1.Entry.value"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NANO = 1e-9


def columns(
    namespace: Namespace,
    entries: Sequence[pb.EntryWrite],
    path: Callable[[int], str],
    sealer: Sealer,
    leases: Sequence[tuple[str, int]] | None = None,
) -> Writes:
    """Return `entries` as columns, their values sealed if the namespace is sensitive. `path` says where each stands.

    Raises BadRequestError for what the contract alone cannot refuse.
    """
    keys = [entry.key for entry in entries]
    values = [entry.value for entry in entries]
    tags = [TAG_SEPARATOR.join(sorted(set(entry.tags))) if entry.tags else "" for entry in entries]
    check_keys(keys, lambda index: f"{path(index)}.key")
    _check_tags(entries, path)
    _check_sizes(namespace, values, path)
    expected = None if leases is not None else [_version(entry.expected_version) for entry in entries]
    indexes = namespace.declared()
    found = [indexed(value, indexes, f"{path(index)}.value") for index, value in enumerate(values)] if indexes else None
    if namespace.sensitive:
        values = [
            sealer.seal_bytes(value, FIELD, record(namespace, key)) for key, value in zip(keys, values, strict=True)
        ]
    return Writes(
        keys,
        values,
        tags if any(tags) else None,
        [seconds(entry, "ttl", namespace.default_ttl) for entry in entries],
        [seconds(entry, "stale_time", namespace.default_stale_time) for entry in entries],
        expected if expected and any(version is not None for version in expected) else None,
        found,
        leases,
    )


def record(namespace: Namespace, key: str) -> str:
    """Return what a sealed value is bound to: an entry of this namespace, and of none that has its name later."""
    return f"{namespace.id}/{key}"


def check_keys(keys: Sequence[str], path: Callable[[int], str]) -> None:
    """Raise BadRequestError for keys with control characters, and for one that is there twice."""
    check_names(keys, path)
    if len(set(keys)) == len(keys):
        return
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key in first:
            raise BadRequestError.of(path(index), f"repeats {path(first[key])}")
        first[key] = index


def check_names(names: Sequence[str], path: Callable[[int], str]) -> None:
    """Raise BadRequestError for keys or tags with control characters."""
    if _CONTROL.search("".join(names)):
        index = next(index for index, name in enumerate(names) if _CONTROL.search(name))
        raise BadRequestError.of(path(index), "must not contain control characters")


def seconds(message: Any, field: str, default: float | None) -> float | None:
    """Return a Duration field in seconds, `default` when it is not set."""
    if not message.HasField(field):
        return default
    duration = getattr(message, field)
    return float(duration.seconds + duration.nanos * _NANO)


def _version(text: str) -> int | None:
    return int(text) if text else None


def _check_tags(entries: Sequence[pb.EntryWrite], path: Callable[[int], str]) -> None:
    if not _CONTROL.search("".join([tag for entry in entries for tag in entry.tags])):
        return
    for index, entry in enumerate(entries):
        check_names(entry.tags, partial("{}.tags[{}]".format, path(index)))


def _check_sizes(namespace: Namespace, values: Sequence[bytes], path: Callable[[int], str]) -> None:
    limit = namespace.max_value_bytes
    if max(map(len, values)) <= limit:
        return
    index = next(index for index, value in enumerate(values) if len(value) > limit)
    size = len(values[index])
    raise BadRequestError.of(f"{path(index)}.value", f"has {size} bytes; the namespace takes {limit}")
