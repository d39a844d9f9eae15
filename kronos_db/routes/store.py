"""Routes and quotas in PostgreSQL. Ids are the canonical text of a UUID: lower case, with hyphens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import orjson
from psycopg.types.json import Jsonb

from kronos_db.routes.model import (
    MOST_QUOTAS,
    MOST_ROUTES,
    QUOTA,
    ROUTE,
    Applied,
    Event,
    Listing,
    NewQuota,
    NewRoute,
    Quota,
    QuotaExistsError,
    QuotaInUseError,
    QuotaNotFoundError,
    Route,
    RouteConflictError,
    RouteExistsError,
    RouteNotFoundError,
    RoutesEtagMismatchError,
    TableFullError,
    unknown_quota,
)
from kronos_db.runtime.database import changes
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import Transaction, as_row
from kronos_db.runtime.errors import FieldViolation

QUERIES = Path(__file__).with_name("queries.sql")
Reply = TypeVar("Reply")
Key = Literal["id", "name"]

# What a stored route or quota becomes; raises what makes that impossible.
ChangeRoute = Callable[[Route], NewRoute]
ChangeQuota = Callable[[Quota], NewQuota]


class TableChange(NamedTuple):
    """What changed since a version of the table; `whole` when that had to be the whole table."""

    version: int
    whole: bool
    routes: Sequence[Route]
    quotas: Sequence[Quota]
    removed: Sequence[str]


class RoutesStore:
    """Every method is one round trip to read, or one transaction to write."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries(QUERIES, "routes")

    def get_route(self, key: Key, value: str) -> Route | None:
        """Return one route."""
        return self._database.fetch_one(self._queries[f"get_route_by_{key}"], {"key": value}, Route)

    def list_routes(self, listing: Listing) -> list[Route]:
        """Return at most `listing.limit` routes by name, after `listing.after`."""
        params = listing._asdict() | {"host": listing.host or None, "quota": listing.quota or None}
        return self._database.fetch_all(self._queries["list_routes"], params, Route)

    def create_route(self, new: NewRoute, mutation: Mutation[Route, Reply]) -> Reply:
        """Create a route. Raises RouteExistsError, RouteConflictError, QuotaNotFoundError or TableFullError."""

        def work(tx: Transaction) -> Route:
            version = self._next_version(tx)
            self._check_room(tx, "count_routes", MOST_ROUTES - 1)
            self._check(tx, new)
            created = tx.fetch_one(self._queries["create_route"], _columns(new, version), Route)
            if created is None:
                raise RouteExistsError(metadata={"field": new.path})
            _note_route(tx, Event.CREATED, created, version)
            return created

        return self._database.write(work, mutation)

    def update_route(
        self, route_id: str, etag: int | None, change: ChangeRoute, mutation: Mutation[Route, Reply]
    ) -> Reply:
        """Change a route. Raises RouteNotFoundError, RoutesEtagMismatchError, and what `create_route` does."""

        def work(tx: Transaction) -> Route:
            version = self._next_version(tx)
            current = self._locked_route(tx, route_id, etag, "route.etag")
            new = change(current)
            self._check(tx, new)
            updated = tx.fetch_one(self._queries["update_route"], _columns(new, version), Route)
            if updated is None:
                raise AssertionError("a locked route is there")
            _note_route(tx, Event.UPDATED, updated, version)
            return updated

        return self._database.write(work, mutation)

    def delete_route(self, route_id: str, etag: int | None, mutation: Mutation[Route, Reply]) -> Reply:
        """Remove a route. Raises RouteNotFoundError or RoutesEtagMismatchError."""

        def work(tx: Transaction) -> Route:
            version = self._next_version(tx)
            current = self._locked_route(tx, route_id, etag, "etag")
            tx.execute(self._queries["delete_route"], {"id": route_id})
            self._note_removed(tx, ROUTE, [route_id], version)
            _note_route(tx, Event.DELETED, current, version)
            return current

        return self._database.write(work, mutation)

    def apply(self, routes: Sequence[NewRoute], at: int | None, mutation: Mutation[Applied, Reply]) -> Reply:
        """Make the table what `routes` say, if it is at version `at`; None for any.

        Raises RoutesEtagMismatchError or QuotaNotFoundError.
        """

        def work(tx: Transaction) -> Applied:
            version = self._next_version(tx)
            if at is not None and version != at + 1:
                raise RoutesEtagMismatchError(violations=[FieldViolation("table_version", "is not the current one")])
            self._check_quotas(tx, routes)
            names = orjson.dumps([route.name for route in routes]).decode()
            gone = tx.fetch_all(self._queries["delete_routes_but"], {"names": names}, Route)
            self._note_removed(tx, ROUTE, [route.id for route in gone], version)
            created, updated = tx.fetch_all(self._queries["apply_routes"], _all_columns(routes, version), as_row)[0]
            written = bool(created or updated)
            # The table is one copy, and one change makes it old.
            for index, route in enumerate(gone):
                _note_route(tx, Event.DELETED, route, version, copied=not index and not written)
            if written:
                tx.note_found(changes.FoundChanges(ROUTE, self._queries["applied"], {"table_version": version}))
            deleted = [route.name for route in gone]
            return Applied(created, updated, deleted, len(routes) - len(created) - len(updated), version)

        return self._database.write(work, mutation)

    def get_quota(self, key: Key, value: str) -> Quota | None:
        """Return one quota."""
        return self._database.fetch_one(self._queries[f"get_quota_by_{key}"], {"key": value}, Quota)

    def list_quotas(self, listing: Listing) -> list[Quota]:
        """Return at most `listing.limit` quotas by name, after `listing.after`."""
        params = {"after": listing.after, "name_prefix": listing.name_prefix, "limit": listing.limit}
        return self._database.fetch_all(self._queries["list_quotas"], params, Quota)

    def create_quota(self, new: NewQuota, mutation: Mutation[Quota, Reply]) -> Reply:
        """Create a quota. Raises QuotaExistsError or TableFullError."""

        def work(tx: Transaction) -> Quota:
            version = self._next_version(tx)
            self._check_room(tx, "count_quotas", MOST_QUOTAS - 1)
            created = tx.fetch_one(self._queries["create_quota"], _quota_columns(new, version), Quota)
            if created is None:
                raise QuotaExistsError
            _note_quota(tx, Event.CREATED, created, version)
            return created

        return self._database.write(work, mutation)

    def update_quota(
        self, quota_id: str, etag: int | None, change: ChangeQuota, mutation: Mutation[Quota, Reply]
    ) -> Reply:
        """Change a quota; another kind or other keys begin with nothing used.

        Raises QuotaNotFoundError or RoutesEtagMismatchError.
        """

        def work(tx: Transaction) -> Quota:
            version = self._next_version(tx)
            current = self._locked_quota(tx, quota_id, etag, "quota.etag")
            new = change(current)
            anew = new.kind != current.kind or sorted(new.keys) != sorted(current.keys)
            return self._rewritten(tx, new, current.generation + anew, version)

        return self._database.write(work, mutation)

    def delete_quota(self, quota_id: str, etag: int | None, mutation: Mutation[Quota, Reply]) -> Reply:
        """Remove a quota. Raises QuotaNotFoundError, RoutesEtagMismatchError or QuotaInUseError."""

        def work(tx: Transaction) -> Quota:
            version = self._next_version(tx)
            current = self._locked_quota(tx, quota_id, etag, "etag")
            user = tx.fetch_one(self._queries["find_user_of_quota"], {"name": current.name}, str)
            if user is not None:
                raise QuotaInUseError(metadata={"route": user})
            tx.execute(self._queries["delete_quota"], {"id": quota_id})
            self._note_removed(tx, QUOTA, [quota_id], version)
            _note_quota(tx, Event.DELETED, current, version)
            return current

        return self._database.write(work, mutation)

    def reset_quota(self, quota_id: str, mutation: Mutation[Quota, Reply]) -> Reply:
        """Forget all use of a quota. Raises QuotaNotFoundError."""

        def work(tx: Transaction) -> Quota:
            version = self._next_version(tx)
            current = self._locked_quota(tx, quota_id, None, "")
            same = NewQuota(
                current.id, current.name, current.kind, current.rule, current.keys, current.shadow, current.failure
            )
            return self._rewritten(tx, same, current.generation + 1, version)

        return self._database.write(work, mutation)

    def reset_usage(self, key: str, mutation: Mutation[None, Reply]) -> Reply:
        """Forget what was counted here under one key."""

        def work(tx: Transaction) -> None:
            tx.execute(self._queries["reset"], {"key": key})
            tx.execute(self._queries["reset_leases"], {"key": key})

        return self._database.write(work, mutation)

    def table_since(self, version: int) -> TableChange:
        """Return what changed in the table since `version`, 0 for all of it."""
        rows = self._database.fetch_all(self._queries["table_since"], {"since": version}, as_row)
        if not rows[0][1] and version:
            return self.table_since(0)
        return TableChange(
            version=rows[0][0],
            whole=version == 0,
            routes=[_route(row[3:]) for row in rows if row[2] == 0],
            quotas=[_quota(row[3:]) for row in rows if row[2] == 1],
            removed=[row[3] for row in rows if row[2] == 2],  # noqa: PLR2004  # the kinds of the query
        )

    def forget_removed(self, kept: float) -> int:
        """Forget some of what was removed more than `kept` seconds ago; return how many that were."""
        return self._database.fetch_one(self._queries["forget_removed"], {"kept": kept}, int) or 0

    def _next_version(self, tx: Transaction) -> int:
        version = tx.fetch_one(self._queries["next_version"], {}, int)
        if version is None:
            raise AssertionError("the table has a version")
        return version

    def _check_room(self, tx: Transaction, query: str, most: int) -> None:
        if (tx.fetch_one(self._queries[query], {}, int) or 0) > most:
            raise TableFullError(metadata={"limit": str(most + 1)})

    def _check(self, tx: Transaction, new: NewRoute) -> None:
        self._check_quotas(tx, [new])
        rival = tx.fetch_one(self._queries["find_rival"], _columns(new, 0), str)
        if rival is not None:
            raise RouteConflictError(
                metadata={"route": rival},
                violations=[FieldViolation(f"{new.path}.path", f"matches what the route {rival} matches")],
            )

    def _check_quotas(self, tx: Transaction, routes: Sequence[NewRoute]) -> None:
        paths = {
            name: f"{route.path}.quotas[{index}]"
            for route in reversed(routes)
            for index, name in enumerate(route.spec.get("quotas", ()))
        }
        missing = tx.fetch_one(self._queries["missing_quotas"], {"names": list(paths)}, str) if paths else None
        if missing is not None:
            raise unknown_quota(missing, paths[missing])

    def _locked_route(self, tx: Transaction, route_id: str, etag: int | None, field: str) -> Route:
        current = tx.fetch_one(self._queries["lock_route"], {"id": route_id}, Route)
        if current is None:
            raise RouteNotFoundError
        _check_etag(current.version, etag, field)
        return current

    def _locked_quota(self, tx: Transaction, quota_id: str, etag: int | None, field: str) -> Quota:
        current = tx.fetch_one(self._queries["lock_quota"], {"id": quota_id}, Quota)
        if current is None:
            raise QuotaNotFoundError
        _check_etag(current.version, etag, field)
        return current

    def _rewritten(self, tx: Transaction, new: NewQuota, generation: int, version: int) -> Quota:
        params = {**_quota_columns(new, version), "generation": generation}
        updated = tx.fetch_one(self._queries["update_quota"], params, Quota)
        if updated is None:
            raise AssertionError("a locked quota is there")
        _note_quota(tx, Event.UPDATED, updated, version)
        return updated

    def _note_removed(self, tx: Transaction, kind: str, ids: Sequence[str], version: int) -> None:
        if ids:
            params = {"kind": kind, "ids": list(ids), "table_version": version}
            tx.execute(self._queries["note_removed"], params)


def _route(row: Sequence[Any]) -> Route:
    return Route(row[0], row[1], orjson.loads(row[2]), row[3], row[4], row[5])


def _quota(row: Sequence[Any]) -> Quota:
    quota_id, name, rule, version, created, updated, kind, keys, shadow, failure, generation = row
    return Quota(quota_id, name, kind, orjson.loads(rule), keys, shadow, failure, generation, version, created, updated)


def _columns(new: NewRoute, version: int) -> Mapping[str, Any]:
    return {
        "id": new.id,
        "name": new.name,
        "spec": Jsonb(new.spec),
        "shape": new.shape,
        "headers": new.headers,
        "table_version": version,
    }


def _all_columns(routes: Sequence[NewRoute], version: int) -> Mapping[str, Any]:
    # One text for all: as arrays, psycopg would look at each of their elements.
    rows = [(route.id, route.name, route.spec, route.shape, route.headers) for route in routes]
    return {"routes": orjson.dumps(rows).decode(), "table_version": version}


def _quota_columns(new: NewQuota, version: int) -> Mapping[str, Any]:
    return {
        "id": new.id,
        "name": new.name,
        "kind": new.kind,
        "rule": Jsonb(new.rule),
        "keys": list(new.keys),
        "shadow": new.shadow,
        "failure": new.failure,
        "table_version": version,
    }


def _check_etag(version: int, etag: int | None, field: str) -> None:
    if etag is not None and version != etag:
        raise RoutesEtagMismatchError(violations=[FieldViolation(field, "is not the current one")])


def _note_route(tx: Transaction, event: Event, route: Route, version: int, *, copied: bool = True) -> None:
    # With all of it, so that a watcher is told without another read; an endpoint is no secret.
    body: dict[str, Any] = {"event": event, "table": version}
    if event is not Event.DELETED:
        body["name"], body["spec"], body["version"] = route.name, route.spec, route.version
        body["created"], body["updated"] = route.create_time, route.update_time
    tx.note(changes.Change(ROUTE, route.id, body, copied))


def _note_quota(tx: Transaction, event: Event, quota: Quota, version: int) -> None:
    tx.note(changes.Change(QUOTA, quota.id, {"event": event, "table": version}))
