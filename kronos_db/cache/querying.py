"""Makes of a QueryEntriesRequest what is looked for in an index."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC

from kronos.cache.v1 import cache_pb2 as pb

from kronos_db.cache.indexing import END, after_prefix, encoded, just_after, moment
from kronos_db.cache.model import Index, IndexNotDeclaredError, IndexType, Namespace, Query
from kronos_db.runtime.errors import BadRequestError, FieldViolation

_FIELDS = {
    IndexType.STRING: "string_value",
    IndexType.NUMBER: "number_value",
    IndexType.BOOLEAN: "boolean_value",
    IndexType.TIME: "time_value",
}


def query_of(request: pb.QueryEntriesRequest, namespace: Namespace, after: Sequence[str] | None, limit: int) -> Query:
    """Return the query. Raises IndexNotDeclaredError or BadRequestError."""
    index = next((index for index in namespace.declared() if index.name == request.index), None)
    if index is None:
        raise IndexNotDeclaredError(
            metadata={"namespace": namespace.name, "index": request.index},
            violations=[FieldViolation("index", "is not declared by the namespace")],
        )
    low, high = "", END
    condition = request.WhichOneof("condition")
    if condition == "equals":
        low = _value(request.equals, index, "equals")
        high = just_after(low)
    elif condition == "range":
        low, high = _ends(request.range, index)
    elif condition == "prefix":
        if index.type is not IndexType.STRING:
            raise BadRequestError.of("prefix", f"is for indexes of strings; {index.name} is one of type {index.type}")
        low, high = request.prefix, after_prefix(request.prefix) or END
    return Query(index, low, high, request.descending, after, limit)


def _ends(wanted: pb.IndexRange, index: Index) -> tuple[str, str]:
    if not wanted.HasField("from") and not wanted.HasField("until"):
        raise BadRequestError.of("range", "must have an end")
    low = _value(getattr(wanted, "from"), index, "range.from") if wanted.HasField("from") else ""
    high = _value(wanted.until, index, "range.until") if wanted.HasField("until") else END
    return low, high


def _value(value: pb.IndexValue, index: Index, path: str) -> str:
    field = _FIELDS[index.type]
    if value.WhichOneof("kind") != field:
        raise BadRequestError.of(f"{path}.{field}", f"must be set: {index.name} is an index of type {index.type}")
    if index.type is IndexType.TIME:
        try:
            return moment(value.time_value.ToDatetime(tzinfo=UTC))
        except (ValueError, OverflowError):
            raise BadRequestError.of(f"{path}.{field}", "must be a time of the years 0001 to 9999") from None
    text = encoded(getattr(value, field), index.type)
    if text is None:
        raise BadRequestError.of(f"{path}.{field}", "must be a value that an index can hold")
    return text
