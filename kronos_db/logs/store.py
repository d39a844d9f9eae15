"""Log records in PostgreSQL: taken in by COPY, read by index, counted by minute. Times in nanoseconds since 1970."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

from psycopg.errors import CheckViolation

from kronos_db.logs.model import (
    AHEAD,
    DAY,
    DEFAULT_KEEP_DAYS,
    KIND,
    LATEST,
    MINUTE,
    WIDTHS,
    Batch,
    Class,
    Filter,
    Listing,
    Origin,
    Page,
    Question,
    Record,
    Rule,
    Stats,
    Tally,
    params_of,
)
from kronos_db.logs.portions import Portion, portions_of
from kronos_db.runtime import deadline
from kronos_db.runtime.database.changes import Change
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import Load, Transaction, as_row
from kronos_db.runtime.errors import DeadlineTooShortError
from kronos_db.runtime.workers import Gatherer

QUERIES = Path(__file__).with_name("queries.sql")
RETENTION = "retention"
Reply = TypeVar("Reply")

# Rows up to which a batch shares a COPY with others; larger ones gain nothing by it.
_SMALL = 200
# Pages up to this size have a query with a plan that is kept.
_HUNDRED = 100
_FAILURES = 17
_PAGE_BYTES = 2 * 1024 * 1024
_ERASED_AT_A_TIME = 5000
_MERGED_AT_A_TIME = 50_000
# Seconds that a portion of an erasure may take.
_PORTION_SECONDS = 1.0
_FIRST_BATCH, _LAST_BATCH = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"
_LAST_PART = (1 << 31) - 1


@dataclass(frozen=True, slots=True, eq=False)
class _Writing:
    """One call that wants its batch stored."""

    batch: Batch
    mutation: Mutation[Batch, Any]


class LogsStore:
    """Reads are one round trip. A write is a COPY and what belongs to it, in one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._queries = load_queries(QUERIES, "logs")
        self._writings: Gatherer[_Writing, Any] = Gatherer(self._write_together)

    def write(self, batch: Batch, mutation: Mutation[Batch, Reply]) -> Reply:
        """Store a batch, all of its rows or none. Small ones that come together share a transaction."""
        if mutation.validate_only:
            return mutation.reply(batch)
        writing = _Writing(batch, mutation)
        if len(batch.rows) <= _SMALL:
            return cast("Reply", self._writings.get(writing))
        return cast("Reply", self._write_together([writing])[writing])

    def query(self, listing: Listing) -> Page:
        """Return a page of records."""
        wanted, newest = listing.filter, listing.direction == "newest"
        after_time, after_batch, after_part = listing.after or (
            (LATEST, _LAST_BATCH, _LAST_PART) if newest else (-1, _FIRST_BATCH, -1)
        )
        params = {
            **params_of(wanted),
            "time_from": listing.time_from if newest else max(listing.time_from, int(after_time)),
            "time_until": min(listing.time_until, int(after_time) + 1) if newest else listing.time_until,
            "after_time": int(after_time),
            "after_batch": after_batch,
            "after_part": int(after_part),
            # One more than the page tells whether another page follows.
            "limit": listing.limit + 1,
            "most_bytes": _PAGE_BYTES,
        }
        query = self._queries[f"{listing.direction}_{road_of(listing)}"]
        rows = self.database.fetch_all_aside(query, params, as_row)
        found = rows[0][-1] if rows else 0
        records = [Record(*row[:-1]) for row in rows[: listing.limit]]
        return Page(records, found > len(records))

    def portions(self, portions: Sequence[Sequence[Portion]]) -> list[list[Record]]:
        """Return the records of each of `portions` that are still there, in the order of the request."""
        flat = [(number, *part) for number, parts in enumerate(portions) for part in parts]
        params = {
            "numbers": [number for number, *_ in flat],
            "batches": [batch for _, batch, _, _ in flat],
            "firsts": [first for *_, first, _ in flat],
            "lasts": [last for *_, last in flat],
        }
        found: list[list[Record]] = [[] for _ in portions]
        for number, *row in self.database.fetch_all(self._queries["portions"], params, as_row):
            found[number].append(Record(*row))
        return found

    def origins(self, ids: Sequence[str]) -> Mapping[str, Origin]:
        """Return origins by id."""
        rows = self.database.fetch_all(self._queries["origins"], {"ids": list(ids)}, Origin)
        return {origin.id: origin for origin in rows}

    def tally(self, question: Question) -> Tally:
        """Count records; from the counts by minute when these can tell what is asked for."""
        params = {
            **params_of(question.filter),
            "minute_from": question.minute_from,
            "minute_until": question.minute_until,
            "minutes": question.minutes,
            "time_from": question.minute_from * MINUTE,
            "time_until": question.minute_until * MINUTE,
            "grouping": question.grouping,
            "attribute_key": question.attribute_key,
            "limit": question.group_limit,
        }
        counted = question.filter.counted and question.grouping != "attribute"
        query = self._queries["tally_by_counts" if counted else "tally_by_records"]
        rows = self.database.fetch_all_aside(query, params, as_row)
        _, _, all_groups, total = rows[0]
        groups = {name: count for _, name, _, count in rows[1:]}
        ranked = sorted(groups.items(), key=lambda group: (-group[1], group[0]))
        return Tally([(number, name, count) for number, name, count, _ in rows[1:]], ranked, total, all_groups)

    def stats(self) -> Stats:
        """Return how much there is."""
        ((records, services, oldest, newest),) = self.database.fetch_all_aside(self._queries["stats"], {}, as_row)
        return Stats(
            records, services, oldest, newest, self.database.fetch_all_aside(self._queries["classes"], {}, Class)
        )

    def rules(self) -> list[Rule]:
        """Return all rules of retention."""
        return self.database.fetch_all(self._queries["rules"], {}, Rule)

    def list_rules(self, limit: int, after: Sequence[str] | None) -> list[Rule]:
        """Return at most `limit` rules of retention after the one with the service and severity of `after`."""
        service, severity = after or (None, None)
        params = {
            "limit": limit,
            "after_service": service,
            "after_severity": None if severity is None else int(severity),
        }
        return self.database.fetch_all(self._queries["list_rules"], params, Rule)

    def set_rule(self, rule: Rule, mutation: Mutation[Rule, Reply]) -> Reply:
        """Set or remove a rule of retention, and make the partitions that it needs."""

        def work(tx: Transaction) -> Rule:
            if rule.keep_days:
                self._make_partitions(tx, rule.keep_days, time.time_ns())
            tx.execute(self._queries["set_rule" if rule.keep_days else "remove_rule"], rule._asdict())
            tx.note(Change(RETENTION, "all"))
            return rule

        return self.database.write(work, mutation)

    def erase(self, subject: str, mutation: Mutation[int, Reply]) -> Reply:
        """Remove the records of a subject, some with each transaction; the reply is made of how many those were.

        Raises DeadlineTooShortError with some of them removed: repeated, it goes on and counts these too.
        """
        params = {"subject": subject, "limit": _ERASED_AT_A_TIME}
        if mutation.validate_only:
            return mutation.reply(self.database.fetch_one(self._queries["count_subject"], params, int) or 0)
        while self.database.execute(self._queries["erase_some"], params):
            if deadline.remaining(_PORTION_SECONDS) < _PORTION_SECONDS:
                raise DeadlineTooShortError("records of the subject are left")
        end = self._queries["end_erasure"]
        return self.database.write(lambda tx: tx.fetch_one(end, params, int) or 0, mutation)

    # Background work.

    def merge_counts(self) -> bool:
        """Merge some of the counts; return whether there may be more."""
        moved = self.database.fetch_one(self._queries["merge_counts"], {"most": _MERGED_AT_A_TIME}, int) or 0
        return moved == _MERGED_AT_A_TIME

    def used_classes(self) -> list[int]:
        """Return the classes that need partitions."""
        return sorted({DEFAULT_KEEP_DAYS, *self.database.fetch_all(self._queries["used_classes"], {}, int)})

    def make_partitions(self, keep_days: int, time_from: int) -> None:
        """Make the partitions of a class from a time until some days ahead of now."""
        self.database.read(lambda tx: self._make_partitions(tx, keep_days, time_from))

    def drop_partition(self, keep_days: int) -> str | None:
        """Drop the oldest partition of a class that is not to be kept; return its name, None when there is none."""
        params = {"keep_days": keep_days, "before": time.time_ns() - keep_days * DAY}
        return self.database.fetch_one(self._queries["drop_partition"], params, lambda name: cast("str | None", name))

    def forget_origins(self) -> int:
        """Remove origins that no record can be of any more; return how many."""
        longest = max(self.used_classes())
        return self.database.execute(self._queries["forget_origins"], {"days": longest + WIDTHS[longest] // DAY + 2})

    def _write_together(self, writings: Sequence[_Writing]) -> Mapping[_Writing, Any]:
        """Store the batches of several calls with one COPY."""
        batches = [writing.batch for writing in writings]
        try:
            return self._written(writings, batches)
        except CheckViolation:
            # A partition is missing: that of an old record, or of today when nobody made it ahead.
            self._make_partitions_for(batches)
        return self._written(writings, batches)

    def _written(self, writings: Sequence[_Writing], batches: Sequence[Batch]) -> Mapping[_Writing, Any]:
        mutations = [writing.mutation for writing in writings]
        load = self._load(batches)
        if len(writings) == 1:
            return {writings[0]: self.database.write(lambda tx: self._stored(tx, batches)[0], mutations[0], load)}
        replies = self.database.write_together(lambda tx: self._stored(tx, batches), mutations, load)
        return dict(zip(writings, replies, strict=True))

    def _load(self, batches: Sequence[Batch]) -> Load | None:
        data = "".join(chain.from_iterable(batch.rows for batch in batches)).encode()
        return Load(self._queries["copy_records"], data) if data else None

    def _stored(self, tx: Transaction, batches: Sequence[Batch]) -> list[Batch]:
        """Add what belongs to the rows that were copied; return the batches."""
        origins = {name: origin for batch in batches for name, origin in batch.origins.items()}
        if origins:
            tx.execute(self._queries["note_origins"], _columns_of_origins(list(origins.values())))
        counts = [count for batch in batches for count in batch.counts]
        if counts:
            minutes, services, severities, keep_days, numbers = map(list, zip(*counts, strict=True))
            tx.execute(
                self._queries["add_counts"],
                {
                    "minutes": minutes,
                    "services": services,
                    "severities": severities,
                    "keep_days": keep_days,
                    "counts": numbers,
                },
            )
        for portions in portions_of(batches):
            # Ids and no content: the change lives on when the records are gone.
            tx.note(Change(KIND, portions[0][0], {"portions": portions}, copied=False))
        return list(batches)

    def _make_partitions_for(self, batches: Sequence[Batch]) -> None:
        oldest: dict[int, int] = {}
        for count in chain.from_iterable(batch.counts for batch in batches):
            oldest[count.keep_days] = min(oldest.get(count.keep_days, LATEST), count.minute * MINUTE)
        for keep_days, moment in oldest.items():
            self.make_partitions(keep_days, moment)

    def _make_partitions(self, tx: Transaction, keep_days: int, time_from: int) -> None:
        params = {
            "keep_days": keep_days,
            "width": WIDTHS[keep_days],
            "time_from": time_from,
            "time_until": time.time_ns() + AHEAD,
        }
        tx.fetch_one(self._queries["make_partitions"], params, int)


def road_of(listing: Listing) -> str:
    """Return what the query is called whose index leads to what is wanted."""
    wanted = listing.filter
    if wanted.trace_id:
        return "by_trace"
    if wanted.attributes:
        return "by_attribute"
    if not wanted.service:
        return "by_time"
    if (wanted.minimum_severity or 0) >= _FAILURES:
        return "failures"
    whole = listing.after is None and listing.time_from <= 0 and listing.time_until >= LATEST
    alone = whole and listing.limit <= _HUNDRED and wanted == Filter(service=wanted.service)
    return "hundred" if alone else "by_service"


def _columns_of_origins(origins: Sequence[Origin]) -> dict[str, list[str]]:
    names = ("ids", "services", "attributes", "scope_names", "scope_versions", "scope_attributes")
    return dict(zip(names, map(list, zip(*origins, strict=True)), strict=True))
