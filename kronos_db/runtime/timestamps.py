"""Converts between datetimes and protobuf's Timestamp."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from kronos_db.runtime.errors import BadRequestError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_PER_DAY = 86_400
_NANOS = 1_000_000_000


def set_timestamp(timestamp: Timestamp, moment: datetime) -> None:
    """Set a Timestamp to an aware datetime, to the microsecond."""
    # Four times as fast as Timestamp.FromDatetime, and listings convert thousands.
    since = moment - _EPOCH
    timestamp.seconds = since.days * _SECONDS_PER_DAY + since.seconds
    timestamp.nanos = since.microseconds * 1000


def from_timestamp(message: Any, field: str, within: str = "") -> datetime | None:
    """Return the Timestamp field of a message as an aware datetime, None when it is not set.

    Raises BadRequestError when it is outside of the years 0001 to 9999; `within` is the path of the message in its
    request, "" for the request itself.
    """
    if not message.HasField(field):
        return None
    timestamp = getattr(message, field)
    try:
        # A third of the time of Timestamp.ToDatetime.
        if 0 <= timestamp.nanos < _NANOS:
            return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)
    except OverflowError:
        pass
    path = f"{within}.{field}" if within else field
    raise BadRequestError.of(path, "must be a time of the years 0001 to 9999")
