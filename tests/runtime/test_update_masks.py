"""Update masks: what they name of what may be changed, and what they may not name."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from kronos.users.v1 import roles_pb2 as pb

from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.update_masks import masked_fields

UPDATABLE = ("name", "description", "permissions")
ROLE = pb.Role(id="x", description="what", permissions=["a:b"])


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (["name"], ["name"]),
        (["permissions", "name"], ["permissions", "name"]),
        (["*"], UPDATABLE),
        ([], ["description", "permissions"]),
    ],
)
def test_what_is_named(paths: Sequence[str], named: Sequence[str]) -> None:
    assert masked_fields(FieldMask(paths=paths), ROLE, "role", UPDATABLE) == named


@pytest.mark.parametrize(
    ("paths", "record", "field"),
    [
        (["name", "id"], ROLE, "update_mask.paths[1]"),
        (["*", "name"], ROLE, "update_mask.paths[0]"),
        (["role.name"], ROLE, "update_mask.paths[0]"),
        ([], pb.Role(id="x"), "update_mask"),
    ],
)
def test_what_is_refused(paths: Sequence[str], record: pb.Role, field: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        masked_fields(FieldMask(paths=paths), record, "role", UPDATABLE)
    assert [violation.field for violation in caught.value.violations] == [field]
