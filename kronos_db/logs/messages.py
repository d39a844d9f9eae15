"""Makes the messages of the contract of what is stored, with sealed values opened."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp
from kronos.logs.v1 import logs_pb2 as pb

from kronos_db.logs.model import SECOND, Origin, Record, Refusal
from kronos_db.logs.values import Reading

_REMEMBERED = 4096


class OriginSource(Protocol):
    """Where origins are read."""

    def origins(self, ids: Sequence[str]) -> Mapping[str, Origin]:
        """Return origins by id."""


class Origins:
    """Origins by id, remembered: they never change."""

    def __init__(self, source: OriginSource) -> None:
        self._source = source
        self._known: OrderedDict[str, Origin] = OrderedDict()

    def of(self, records: Iterable[Record]) -> Mapping[str, Origin]:
        """Return the origins of `records`, by id."""
        ids = {record.origin for record in records}
        # Looked up once each: another thread may let one go meanwhile.
        known = {name: origin for name in ids if (origin := self._known.get(name)) is not None}
        missing = [name for name in ids if name not in known]
        for name, origin in self._source.origins(missing).items() if missing else ():
            known[name] = self._known[name] = origin
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return known


def fill_record(message: pb.LogRecord, record: Record, reading: Reading) -> None:
    """Write a record into an empty message."""
    name = f"{record.batch}-{record.part}"
    message.id = name
    own_time = record.time if record.own_time is None else record.own_time
    set_nanoseconds(message.time, own_time)
    set_nanoseconds(message.filed_time, record.time)
    if record.observed_time is not None:
        set_nanoseconds(message.observed_time, record.observed_time)
    message.severity = record.severity
    message.severity_text = record.severity_text or ""
    if record.structured and record.body is not None:
        reading.body(record.body, message.body, name)
    elif record.body is not None:
        message.body.string_value = record.body
    if record.attributes != "{}":
        reading.attributes(record.attributes, message.attributes.add, name)
    message.trace_id = record.trace_id or ""
    message.span_id = record.span_id or ""
    message.trace_flags = record.flags
    message.event_name = record.event_name or ""
    message.dropped_attributes = record.dropped
    message.service = record.service
    message.origin_id = record.origin


def fill_origin(message: pb.Origin, origin: Origin, reading: Reading) -> None:
    """Write an origin into an empty message."""
    message.id = origin.id
    message.service = origin.service
    message.scope_name = origin.scope_name
    message.scope_version = origin.scope_version
    reading.attributes(origin.attributes, message.attributes.add, origin.id)
    reading.attributes(origin.scope_attributes, message.scope_attributes.add, origin.id)


def fill_refusal(message: pb.RecordRefusal, refusal: Refusal) -> None:
    """Write a refusal into an empty message."""
    message.index = refusal.part
    message.reason = refusal.reason
    message.field = f"records[{refusal.part}]{refusal.field}"
    message.description = refusal.description


def set_nanoseconds(timestamp: Timestamp, moment: int) -> None:
    """Set a Timestamp to nanoseconds since 1970."""
    timestamp.seconds, timestamp.nanos = divmod(moment, SECOND)
