"""Entries, leases and invalidations in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar, cast

from kronos_db.cache.model import (
    ENTRY_KIND,
    LOGGED_SEPARATOR,
    NOTHING,
    TAG_KIND,
    Ask,
    Entry,
    Found,
    Namespace,
    Query,
    State,
    Writes,
    joined,
    row,
)
from kronos_db.runtime.cache.board import Board
from kronos_db.runtime.database.changes import BUNDLE, Change, tag
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import Transaction, as_row
from kronos_db.runtime.workers import Gatherer

QUERIES = Path(__file__).with_name("queries.sql")
Reply = TypeVar("Reply")
# What became of the items of a write, by key.
Versions = Mapping[str, int | None]


@dataclass(frozen=True, slots=True, eq=False)
class _Put:
    """One entry that a call wants put, whatever there is."""

    namespace: Namespace
    writes: Writes
    mutation: Mutation[Versions, Any]


class EntriesStore:
    """Every method is one round trip to read, or one transaction to write."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries(QUERIES, "cache")
        self._puts: Gatherer[_Put, Any] = Gatherer(self._put_together)
        self._asks: Gatherer[Ask, State] = Gatherer(self._lease_together)

    def get_many(self, asked: Sequence[tuple[Namespace, str]]) -> Mapping[int, Found]:
        """Return the current entries of namespaces and keys, by their places in `asked`."""
        found = {}
        for durable in (True, False):
            places = [place for place, (namespace, _) in enumerate(asked) if namespace.durable == durable]
            if places:
                params = {**_addresses([asked[place] for place in places]), "durable": durable}
                for each in self._database.fetch_all(self._queries["get"], params, _found):
                    found[places[each.place - 1]] = each
        return found

    def use(self, used: Sequence[tuple[Namespace, str]]) -> None:
        """Note that entries of the memory part were read."""
        self._database.execute(self._queries["use"], _addresses(used))

    def put(self, namespace: Namespace, writes: Writes, mutation: Mutation[Versions, Reply]) -> Reply:
        """Put entries; the reply is made of their new versions, None for a conflict.

        A conflict's current version, if there is an entry, is negative. Calls for one entry that come together share a
        transaction, in the order of their keys: no two such transactions wait for each other.
        """
        if len(writes.keys) > 1 or writes.expected or writes.indexed or mutation.validate_only:
            return self._database.write(lambda tx: self._put(tx, namespace, writes), mutation)
        return cast("Reply", self._puts.get(_Put(namespace, writes, mutation)))

    def _put_together(self, puts: Sequence[_Put]) -> Mapping[_Put, Any]:
        if len(puts) == 1:
            put = puts[0]
            return {put: self._database.write(lambda tx: self._put(tx, put.namespace, put.writes), put.mutation)}
        puts = sorted(puts, key=lambda put: (put.namespace.durable, put.namespace.id, put.writes.keys[0]))

        def work(tx: Transaction) -> list[Versions]:
            params = [_columns(put.namespace, put.writes) for put in puts]
            versions = tx.fetch_each(self._queries["put"], params, int)
            for put in puts:
                _note(tx, put.namespace, put.writes.keys)
            return [{put.writes.keys[0]: found[0]} for put, found in zip(puts, versions, strict=True)]

        replies = self._database.write_together(work, [put.mutation for put in puts])
        return dict(zip(puts, replies, strict=True))

    def _put(self, tx: Transaction, namespace: Namespace, writes: Writes) -> Versions:
        params = _columns(namespace, writes)
        if writes.expected is None and writes.indexed is None:
            version = tx.fetch_one(self._queries["put"], params, int)
            _note(tx, namespace, writes.keys)
            return dict.fromkeys(writes.keys, version)
        rows = tx.fetch_all(self._queries["put_checked"], params, as_row)
        _note(tx, namespace, [key for key, version, _ in rows if version is not None])
        return {key: (-before if before else None) if version is None else version for key, version, before in rows}

    def fill(self, namespace: Namespace, writes: Writes, mutation: Mutation[Versions, Reply]) -> Reply:
        """Put entries under their leases; the reply is made of the new versions of those whose lease was held."""

        def work(tx: Transaction) -> Versions:
            filled = dict(tx.fetch_all(self._queries["fill"], _columns(namespace, writes), _pair))
            _note(tx, namespace, list(filled))
            return filled

        return self._database.write(work, mutation)

    def delete(
        self,
        namespace: Namespace,
        keys: Sequence[str],
        expected: Sequence[int | None],
        mutation: Mutation[Mapping[str, tuple[int, bool]], Reply],
    ) -> Reply:
        """Delete entries; the reply is made of the version that each had (0: no entry) and whether its row is gone."""
        params = {**_address(namespace), "keys": joined(keys), "expected": list(expected)}

        def work(tx: Transaction) -> Mapping[str, tuple[int, bool]]:
            rows = tx.fetch_all(self._queries["delete"], params, as_row)
            # Also those without a row: an entry that gave way may have copies still.
            kept = {key for key, version, is_gone in rows if version and not is_gone}
            _note(tx, namespace, [key for key in keys if key not in kept])
            return {key: (version, is_gone) for key, version, is_gone in rows}

        return self._database.write(work, mutation)

    def touch(
        self,
        namespace: Namespace,
        keys: Sequence[str],
        times: tuple[float | None, float | None],
        mutation: Mutation[frozenset[str], Reply],
    ) -> Reply:
        """Give entries a new time to live and stale time; the reply is made of the keys of those that there are."""
        ttl, stale = times
        params = {**_address(namespace), "keys": joined(keys), "ttl": ttl, "stale": stale or 0.0}

        def work(tx: Transaction) -> frozenset[str]:
            touched = frozenset(tx.fetch_all(self._queries["touch"], params, str))
            _note(tx, namespace, sorted(touched))
            return touched

        return self._database.write(work, mutation)

    def invalidate_tags(self, namespace: Namespace, tags: Sequence[str], mutation: Mutation[None, Reply]) -> Reply:
        """Make all entries with one of `tags` missing."""
        params = {"namespace_id": namespace.id, "tags": joined(tags)}

        def work(tx: Transaction) -> None:
            tx.execute(self._queries["invalidate_tags"], params)
            bundle = Board.bundle(tag_tag(namespace.name, name) for name in tags)
            tx.note(Change(TAG_KIND, namespace.name, {"tags": list(tags), BUNDLE: bundle}))

        return self._database.write(work, mutation)

    def lease(self, ask: Ask) -> State:
        """Return what there is for a key, and the lease if it is free; calls that come together share a statement."""
        return self._asks.get(ask) or NOTHING

    def lease_all(self, asks: Sequence[Ask]) -> Mapping[str, State]:
        """Return the same for several keys of one namespace, by key."""
        return {ask.key: state for ask, state in self._lease_together(asks).items()}

    def _lease_together(self, asks: Sequence[Ask]) -> Mapping[Ask, State]:
        """Ask for leases; of several who ask for one key, the first may get it."""
        firsts: dict[tuple[str, str], Ask] = {}
        for ask in asks:
            firsts.setdefault((ask.namespace.id, ask.key), ask)
        states: dict[tuple[str, str], State] = {}
        for durable in (True, False):
            part = [ask for ask in firsts.values() if ask.namespace.durable == durable]
            if part:
                states |= self._database.fetch_all(self._queries["lease"], _lease_columns(part, durable), _state)
        return {
            ask: state if firsts[place] is ask else _second(state, firsts[place])
            for ask in asks
            for place in ((ask.namespace.id, ask.key),)
            for state in (states.get(place, NOTHING),)
        }

    def lease_states(self, namespace: Namespace, keys: Sequence[str]) -> Mapping[str, State]:
        """Return what there is for keys, and take no lease."""
        params = {**_address(namespace), "keys": joined(keys)}
        rows = self._database.fetch_all(self._queries["lease_state"], params, as_row)
        return {columns[0]: State(None, columns[6], columns[7], columns[8], row(columns[:6])) for columns in rows}

    def abandon(
        self, namespace: Namespace, leases: Mapping[str, tuple[str, int]], mutation: Mutation[int, Reply]
    ) -> Reply:
        """Give leases back, by key; the reply is made of how many were held."""
        params = {**_address(namespace), "keys": joined(list(leases)), **_leases(list(leases.values()))}
        return self._database.write(lambda tx: len(tx.fetch_all(self._queries["abandon"], params, str)), mutation)

    def query(self, namespace: Namespace, query: Query) -> list[tuple[str, Entry]]:
        """Return at most `limit` indexed values with their entries, after the value and key of `after`."""
        # No key is empty, so this is before all of a value.
        after_value, after_key = query.after or (query.high if query.descending else query.low, "")
        params = {
            **_address(namespace),
            "number": query.index.number,
            "low": query.low,
            "high": query.high,
            "after_value": after_value,
            "after_key": after_key,
            "limit": query.limit,
        }
        text = self._queries["query_descending" if query.descending else "query_ascending"]
        return self._database.fetch_all(text, params, lambda value, *columns: (value, Entry(*columns)))


def entry_tag(namespace: str, key: str) -> str:
    """Return what copies of an entry depend on."""
    return tag(ENTRY_KIND, f"{namespace}/{key}")


def tag_tag(namespace: str, name: str) -> str:
    """Return what copies of entries with a tag depend on."""
    return tag(TAG_KIND, f"{namespace}/{name}")


def _note(tx: Transaction, namespace: Namespace, keys: Sequence[str]) -> None:
    """Note a change of entries: one row whatever their number, for those who watch and for copies."""
    if keys:
        bundle = Board.bundle([entry_tag(namespace.name, key) for key in keys])
        tx.note(Change(ENTRY_KIND, namespace.name, {"keys": LOGGED_SEPARATOR.join(keys), BUNDLE: bundle}))


def _address(namespace: Namespace) -> dict[str, Any]:
    return {"durable": namespace.durable, "namespace_id": namespace.id}


def _addresses(asked: Sequence[tuple[Namespace, str]]) -> dict[str, Any]:
    return {
        "namespace_ids": f"{{{','.join([namespace.id for namespace, _ in asked])}}}",
        "keys": joined([key for _, key in asked]),
    }


def _columns(namespace: Namespace, writes: Writes) -> dict[str, Any]:
    sizes = [len(value) for value in writes.values]
    tags = None if writes.tags is None else joined(writes.tags)
    return {
        **_address(namespace),
        "keys": joined(writes.keys),
        "values": b"".join(writes.values),
        "starts": f"{{{','.join(map(str, accumulate(sizes[:-1], initial=1)))}}}",
        "sizes": f"{{{','.join(map(str, sizes))}}}",
        "tags": tags,
        "ttls": _seconds(writes.ttls),
        "stales": _seconds([stale or 0.0 for stale in writes.stales]),
        "expected": None if writes.expected is None else list(writes.expected),
        "indexed": None if writes.indexed is None else list(writes.indexed),
        **_leases(writes.leases or []),
    }


def _leases(leases: Sequence[tuple[str, int]]) -> dict[str, Any]:
    return {
        "lease_ids": f"{{{','.join([lease_id for lease_id, _ in leases])}}}",
        "lease_bases": f"{{{','.join([str(base) for _, base in leases])}}}",
    }


def _seconds(times: Sequence[float | None]) -> str:
    return f"{{{','.join(['NULL' if time is None else str(time) for time in times])}}}"


def _lease_columns(asks: Sequence[Ask], durable: bool) -> dict[str, Any]:
    return {
        **_addresses([(ask.namespace, ask.key) for ask in asks]),
        "durable": durable,
        "lease_ids": f"{{{','.join([ask.lease_id for ask in asks])}}}",
        "seconds": _seconds([ask.seconds for ask in asks]),
    }


def _found(place: int, *columns: Any) -> Found:
    return Found(place, Entry(*columns[:6]), *columns[6:])


def _state(*columns: Any) -> tuple[tuple[str, str], State]:
    namespace_id, key, base, is_current, is_servable, left, *entry = columns
    return (namespace_id, key), State(base, is_current, is_servable, left, row((key, *entry)))


def _second(state: State, first: Ask) -> State:
    """Return what there is for who asks second: the lease, if it was given just now, is the first one's."""
    return state if state.lease_base is None else state._replace(lease_base=None, lease_left=first.seconds)


def _pair(key: str, version: int) -> tuple[str, int]:
    return key, version
