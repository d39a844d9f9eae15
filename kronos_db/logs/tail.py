"""What tails are told: portions of new records, read once for all who follow, in the order of the commits.

A write notes which portions of which batches it stored; a feed follows these notes as it does in every domain, and the
log that it reads here brings the records along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kronos.logs.v1 import logs_pb2 as pb

from kronos_db.logs.filters import matches
from kronos_db.logs.messages import Origins, fill_origin, fill_record
from kronos_db.logs.model import KIND, Filter, Origin, Record
from kronos_db.logs.store import LogsStore
from kronos_db.logs.values import Reading
from kronos_db.runtime.database.changes import Noted, Page, Position
from kronos_db.runtime.feed.feed import Pace
from kronos_db.runtime.feed.subscription import Delivery, Wanted

# Portions are read a few at a time: each may have a megabyte.
PACE = Pace(page=8, most=64, most_bytes=4 << 20)
# Roughly what a record takes beside its texts.
_BESIDES = 300


@dataclass(frozen=True, slots=True, eq=False)
class Told(Noted):
    """A portion with its records. `made` holds its message, without the resume token, once that was made."""

    records: Sequence[Record] = ()
    origins: Mapping[str, Origin] = field(default_factory=dict)
    made: list[bytes] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Roughly its bytes."""
        return sum(len(record.body or "") + len(record.attributes) + _BESIDES for record in self.records)


class RecordLog:
    """The log of changes of the domain, with the records of each portion."""

    def __init__(self, store: LogsStore, origins: Origins) -> None:
        self.domain = store.database.domain
        self._store = store
        self._origins = origins

    def position(self) -> Position:
        """Return the position of now."""
        return self._store.database.position()

    def changes_since(self, position: Position, limit: int) -> Page:
        """Return the next changes after `position`. Raises PositionLostError."""
        page = self._store.database.changes_since(position, limit)
        portions = [noted for noted in page.changes if noted.change.kind == KIND]
        if not portions:
            return page
        found = self._store.portions([noted.change.body["portions"] for noted in portions])
        told = {id(noted): self._told(noted, records) for noted, records in zip(portions, found, strict=True)}
        return replace(page, changes=[told.get(id(noted), noted) for noted in page.changes])

    def _told(self, noted: Noted, records: Sequence[Record]) -> Told:
        return Told(noted.change, noted.place, noted.part, noted.time, records, self._origins.of(records))


@dataclass(frozen=True, slots=True)
class Matching(Wanted):
    """The records that a filter asks for."""

    filter: Filter = field(default_factory=Filter)

    def of(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return those of `deliveries` that hold such records, with these alone."""
        return [found for each in deliveries if (found := self._within(each)) is not None]

    def _within(self, delivery: Delivery) -> Delivery | None:
        told = delivery.change
        if not isinstance(told, Told):
            return None
        records = [record for record in told.records if matches(record, self.filter)]
        if len(records) == len(told.records):
            return delivery if records else None
        return Delivery(replace(told, records=records, made=[]), delivery.position) if records else None


def tail_of(wanted: Filter) -> Wanted:
    """Return what a tail with this filter is for."""
    return Matching(frozenset({KIND}), filter=wanted)


def message_maker(reading: Reading) -> Callable[[Noted | None, str], Any]:
    """Return what makes the message of a portion; of none, how far the stream is."""

    def make(noted: Noted | None, resume_token: str) -> pb.TailLogsResponse:
        response = pb.TailLogsResponse(resume_token=resume_token)
        if isinstance(noted, Told):
            if not noted.made:
                noted.made.append(_message(noted, reading).SerializeToString())
            response.MergeFromString(noted.made[0])
        return response

    return make


def _message(told: Told, reading: Reading) -> pb.TailLogsResponse:
    message = pb.TailLogsResponse()
    for record in told.records:
        fill_record(message.records.add(), record, reading)
    used = {record.origin for record in told.records}
    for name, origin in told.origins.items():
        if name in used:
            fill_origin(message.origins.add(), origin, reading)
    return message
