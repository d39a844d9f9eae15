"""Update masks (AIP-134, AIP-161): which fields of a record a call changes."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from kronos_db.runtime.errors import BadRequestError


def masked_fields(mask: FieldMask, record: Message, name: str, updatable: Sequence[str]) -> Sequence[str]:
    """Return those of the `updatable` fields that `mask` names: all for `*`, those with a value for no mask at all.

    `name` is that of the record's field in the request. Raises BadRequestError for another path, and when nothing is
    named.
    """
    paths = list(mask.paths)
    if not paths:
        paths = [field.name for field, _value in record.ListFields() if field.name in updatable]
    if paths == ["*"]:
        return updatable
    for index, path in enumerate(paths):
        if path not in updatable:
            known = ", ".join(updatable)
            raise BadRequestError.of(f"update_mask.paths[{index}]", f"must be one of {known}, or * alone")
    if not paths:
        raise BadRequestError.of("update_mask", f"names nothing to change, and {name} has no value to change")
    return paths
