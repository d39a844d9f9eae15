"""Makes the messages of the contract of what is stored, and of prepared bytes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from kronos.cache.v1 import cache_pb2 as pb

from kronos_db.cache.model import Entry, IndexType, Namespace
from kronos_db.runtime.timestamps import set_timestamp

INDEX_TYPES = {
    IndexType.STRING: pb.INDEX_TYPE_STRING,
    IndexType.NUMBER: pb.INDEX_TYPE_NUMBER,
    IndexType.BOOLEAN: pb.INDEX_TYPE_BOOLEAN,
    IndexType.TIME: pb.INDEX_TYPE_TIME,
}
TYPES_OF_INDEX = {number: kind for kind, number in INDEX_TYPES.items()}
# What prepared bytes of a sensitive namespace's entry begin with; those of others are answers and begin otherwise.
_SEALED = b"\0"


def entry_message(entry: Entry) -> pb.Entry:
    """Return the message of an entry; the value is what is stored."""
    message = pb.Entry(key=entry.key, value=entry.value, version=str(entry.version), tags=entry.tags)
    if entry.expire_time is not None:
        set_timestamp(message.expire_time, entry.expire_time)
    set_timestamp(message.update_time, entry.update_time)
    return message


def prepared(entry: Entry, *, sensitive: bool) -> bytes:
    """Return what is kept as a copy: a GetEntriesResponse with the entry alone, or the entry, still sealed, and a mark.

    Responses one behind the other are one response with all that is in them.
    """
    message = entry_message(entry)
    if sensitive:
        return _SEALED + message.SerializeToString()
    return pb.GetEntriesResponse(entries=[message]).SerializeToString()


def is_sealed(copy: bytes) -> bool:
    """Tell whether a copy is of a sensitive namespace."""
    return copy[:1] == _SEALED


def entry_of(copy: bytes) -> pb.Entry:
    """Return the entry of a copy; if it is sealed, with its value sealed."""
    if is_sealed(copy):
        return pb.Entry.FromString(copy[1:])
    return pb.GetEntriesResponse.FromString(copy).entries[0]


def namespace_message(namespace: Namespace) -> pb.Namespace:
    """Return the message of a namespace."""
    message = pb.Namespace(
        name=namespace.name,
        storage=pb.NAMESPACE_STORAGE_DURABLE if namespace.durable else pb.NAMESPACE_STORAGE_MEMORY,
        sensitive=namespace.sensitive,
        max_entries=namespace.max_entries,
        max_bytes=namespace.max_bytes,
        max_value_bytes=namespace.max_value_bytes,
        indexes=[
            pb.IndexDeclaration(name=index.name, path=index.path, type=INDEX_TYPES[index.type])
            for index in namespace.declared()
        ],
        etag=str(namespace.version),
    )
    if namespace.default_ttl is not None:
        message.default_ttl.CopyFrom(duration(namespace.default_ttl))
    if namespace.default_stale_time is not None:
        message.default_stale_time.CopyFrom(duration(namespace.default_stale_time))
    set_timestamp(message.create_time, namespace.create_time)
    set_timestamp(message.update_time, namespace.update_time)
    return message


def duration(seconds: float) -> Duration:
    """Return a Duration, to the nanosecond."""
    whole, part = divmod(round(seconds * 1_000_000_000), 1_000_000_000)
    return Duration(seconds=whole, nanos=part)


def pack_namespace(namespace: Namespace) -> list[Any]:
    """Return a namespace as JSON can hold it."""
    return [value.isoformat() if isinstance(value, datetime) else value for value in namespace]


def unpack_namespace(values: list[Any]) -> Namespace:
    """Return the namespace of `pack_namespace`."""
    return Namespace._make([*values[:-2], *map(datetime.fromisoformat, values[-2:])])
