"""Checks what callers declare of namespaces, beyond what the contract can say."""

from __future__ import annotations

from datetime import UTC, datetime

from kronos.cache.v1 import cache_pb2 as pb

from kronos_db.cache.messages import TYPES_OF_INDEX
from kronos_db.cache.model import Namespace
from kronos_db.cache.writes import seconds
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.identifiers import uuid7_text

UPDATABLE = ("default_ttl", "default_stale_time", "max_entries", "max_bytes", "max_value_bytes")
_DEFAULT_VALUE_BYTES = 64 * 1024
# Of what is to be created, the database says when.
_UNKNOWN = datetime(1970, 1, 1, tzinfo=UTC)


def new_namespace(namespace: pb.Namespace) -> Namespace:
    """Return a namespace as it is declared, with an id of its own. Raises BadRequestError."""
    names = [index.name for index in namespace.indexes]
    for position, name in enumerate(names):
        if name in names[:position]:
            raise BadRequestError.of(f"namespace.indexes[{position}].name", "is that of another index")
    if namespace.sensitive and names:
        raise BadRequestError.of("namespace.indexes", "must be empty in a sensitive namespace: its values are sealed")
    return Namespace(
        name=namespace.name,
        id=uuid7_text(),
        durable=namespace.storage == pb.NAMESPACE_STORAGE_DURABLE,
        sensitive=namespace.sensitive,
        default_ttl=seconds(namespace, "default_ttl", None),
        default_stale_time=seconds(namespace, "default_stale_time", None),
        max_entries=namespace.max_entries,
        max_bytes=namespace.max_bytes,
        max_value_bytes=namespace.max_value_bytes or _DEFAULT_VALUE_BYTES,
        indexes=[
            {"name": index.name, "path": index.path, "type": TYPES_OF_INDEX[index.type].value}
            for index in namespace.indexes
        ],
        version=0,
        create_time=_UNKNOWN,
        update_time=_UNKNOWN,
    )
