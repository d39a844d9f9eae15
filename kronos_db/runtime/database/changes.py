"""The log of changes of one domain: written by the transactions that change something, read in commit order.

A write notes each change in its own transaction, with a number that it draws at the end, when it holds all of its
locks. A reader asks for what became visible since a snapshot that it has seen: whatever the order of the commits, that
is neither too much nor too little, and no lock is held for it. Between two reads the order is that in which the
commits became visible; within one read it is that of the numbers, which no commit contradicts that anybody could have
seen: a transaction that waited for another, or began after it was acknowledged, has the higher one.

docs/decisions/0007-copies.md has the argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import orjson

from kronos_db.runtime.database.queries import Query, load_queries

About: TypeAlias = Literal["changes", "copies", "ready"]

# Where the body of a change has one more tag: the bundle of those that a change of many records makes old.
BUNDLE = "bundle"

# Kept for those who watch and were away, in seconds.
KEPT = 7 * 86_400.0
# In the place of what a query finds.
_FOUND = "VALUES ('', 'null'::jsonb)"
_MOST_IN_PROGRESS = 0xFFFF
_BITS = 16


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one record: `kind` of record, its id, and what is told to those who watch: JSON, and datetimes.

    `copied` is false for records of which nobody keeps copies: then no write waits for those who would drop them. It is
    false too when another change of the same transaction already says all that copies depend on.
    """

    kind: str
    record_id: str
    body: Mapping[str, Any] = field(default_factory=dict)
    copied: bool = True

    @property
    def tags(self) -> tuple[str, ...]:
        """What copies may depend on that this change makes old: the record, and all records of its kind.

        A change of many records at once names what they are part of, and has a bundle (`Board.bundle`) of their tags.
        """
        if not self.copied:
            return ()
        own = tag(self.kind, self.record_id), tag(self.kind)
        bundle = self.body.get(BUNDLE)
        return own if bundle is None else (*own, bundle)


@dataclass(frozen=True, slots=True)
class FoundChanges:
    """Changes of many records of one kind, which `query` finds: of each its id and the body, as text and jsonb.

    They make copies old that depend on all records of the kind; there must be none that depend on single ones.
    """

    kind: str
    query: Query
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Noted:
    """A change as it is read from the log: with its place among the transactions, and its part in its own."""

    change: Change
    place: int
    part: int
    time: datetime

    @property
    def size(self) -> int:
        """Roughly its bytes: those of the body as text."""
        return len(str(self.change.body))


@dataclass(frozen=True, slots=True)
class Position:
    """How far a reader is: it has everything visible in the settled snapshot `seen`.

    With `until` it is in the middle of what became visible between the two, and has that up to `place` and `part`.
    `history` names the database and its timeline, outside of which a snapshot means nothing; "" is not checked.
    """

    seen: str
    until: str | None = None
    place: int = 0
    part: int = 0
    history: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """What was read: changes, the position behind each of them is `at(index)`, and the one behind them all."""

    changes: Sequence[Noted]
    start: Position
    snapshot: str
    end: Position

    def at(self, index: int) -> Position:
        """Return the position behind the change at `index`."""
        if index == len(self.changes) - 1:
            return self.end
        change = self.changes[index]
        return Position(self.start.seen, self.snapshot, change.place, change.part, self.end.history)


@dataclass(frozen=True, slots=True)
class Instant:
    """A settled snapshot and the history that it is of: cluster and database, and the timeline of the cluster.

    `started` is when the server was started: a volume that was set back to an earlier state shows there alone.
    """

    snapshot: str
    identity: str
    timeline: str
    started: str


def settled(snapshot: str, newest: int) -> str:
    """Return a snapshot cut off behind `newest`, the newest transaction that it sees of those that changed something.

    It sees the same changes. But a number above the newest durable transaction may be given again after a crash: what
    then changed under it would look as if it had been seen before.
    """
    _, _, in_progress = snapshot.split(":")
    older = [number for number in in_progress.split(",") if number and int(number) <= newest]
    return f"{older[0] if older else newest + 1}:{newest + 1}:{','.join(older)}"


def tag(kind: str, record_id: str = "") -> str:
    """Return the name by which copies depend on one record, or on all records of a kind."""
    # Kinds may be members of an enum, which an f-string asks for their format.
    return kind + ":" + record_id if record_id else kind


def channel(domain: str, about: About = "changes") -> str:
    """Return the channel on which processes tell each other that a domain's log has grown.

    About `changes` those who watch are told, about `copies` those whom a write waits for, and that there is something
    `ready` those who wait for work.
    """
    return f"kronos_{domain}_{about}"


def moment(snapshot: str) -> int:
    """Return a number that orders settled snapshots of one database.

    A later one never has a smaller number, and a greater one when it sees a change that the other does not. A snapshot
    `xmin:xmax:xip,…` sees every transaction below xmax but those in the list. As time passes xmax only grows, and while
    it stays the list only shrinks.
    """
    _, xmax, in_progress = snapshot.split(":")
    count = in_progress.count(",") + 1 if in_progress else 0
    if count > _MOST_IN_PROGRESS:
        raise ValueError("more transactions in progress than a moment has room for")
    return int(xmax) << _BITS | (_MOST_IN_PROGRESS - count)


class ChangeLog:
    """Texts and shapes of the log of one domain; whoever uses it brings the connection or the database."""

    def __init__(self, schema: str) -> None:
        self.queries: Mapping[str, Query] = load_queries(Path(__file__).with_name("changes.sql"), schema)

    @staticmethod
    def columns(changes: Sequence[Change]) -> Mapping[str, str]:
        """Return the parameters of `append`: one text, since psycopg looks at each element of an array."""
        rows = [(change.kind, change.record_id, change.body, change.copied) for change in changes]
        return {"changes": orjson.dumps(rows).decode()}

    def appending(self, found: FoundChanges, noted: int) -> tuple[Query, Mapping[str, Any]]:
        """Return the statement that notes what a query finds, behind so many changes, and its parameters."""
        append = self.queries["append_found"]
        query = replace(append, text=append.text.replace(_FOUND, found.query.text))
        return query, {**found.params, "kind": found.kind, "noted": noted}
