"""Timestamps: to the microsecond and back, over all years that both sides know."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from kronos.users.v1 import users_pb2 as pb

from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.timestamps import from_timestamp, set_timestamp

_moments = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])).filter(
    lambda moment: datetime(1, 1, 2, tzinfo=UTC) < moment < datetime(9999, 12, 30, tzinfo=UTC)
)


@given(_moments)
def test_there_and_back(moment: datetime) -> None:
    found = Timestamp()
    set_timestamp(found, moment)
    theirs = Timestamp()
    theirs.FromDatetime(moment)

    assert found == theirs
    assert from_timestamp(pb.ListUsersRequest(create_time_from=found), "create_time_from") == moment


def test_absent_is_none() -> None:
    assert from_timestamp(pb.ListUsersRequest(), "create_time_from") is None
    epoch = pb.ListUsersRequest(create_time_from=Timestamp())
    assert from_timestamp(epoch, "create_time_from") == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "wrong",
    [
        Timestamp(seconds=253_402_300_800),
        Timestamp(seconds=-62_135_596_801),
        Timestamp(seconds=2**63 - 1),
        Timestamp(seconds=-(2**63)),
        Timestamp(seconds=1, nanos=-1),
        Timestamp(seconds=1, nanos=1_000_000_000),
    ],
    ids=lambda wrong: f"{wrong.seconds}.{wrong.nanos}",
)
def test_out_of_range_is_named(wrong: Timestamp) -> None:
    with pytest.raises(BadRequestError) as caught:
        from_timestamp(pb.ListUsersRequest(create_time_until=wrong), "create_time_until")

    assert [violation.field for violation in caught.value.violations] == ["create_time_until"]
