"""RoutesStore: the same tests straight, through a pgBouncer without and through one with prepared statements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from kronos.routes.v1 import routes_pb2 as pb

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.routes import store as stores
from kronos_db.routes.messages import new_route, route_change, route_message
from kronos_db.routes.model import (
    Applied,
    Listing,
    NewQuota,
    NewRoute,
    QuotaInUseError,
    QuotaNotFoundError,
    Route,
    RouteConflictError,
    RoutesEtagMismatchError,
    TableFullError,
)
from kronos_db.routes.store import RoutesStore
from kronos_db.runtime.database.changes import Position
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.identifiers import uuid7_text
from tests.parts.domain import WAYS, mutation, new_database, opened, settings_by
from tests.routes.population import unique


@pytest.fixture(scope="module")
def admin_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with new_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="module", params=WAYS)
def database(
    request: pytest.FixtureRequest, admin_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    folder = tmp_path_factory.mktemp(request.param)
    with opened(settings_by(request.param, request, folder, admin_dsn), "routes") as made:
        yield made


@pytest.fixture
def store(database: Database) -> RoutesStore:
    """An empty table."""
    made = RoutesStore(database)
    made.apply([], None, mutation())
    return made


def new(name: str, path: str = "", **spec: Any) -> NewRoute:
    return new_route("route", uuid7_text(), name, {"path": path or f"/{name}", "upstream": "up", **spec})


def create(store: RoutesStore, name: str, **spec: Any) -> Route:
    created: Route = store.create_route(new(name, **spec), mutation())
    return created


def quota(store: RoutesStore) -> str:
    name = unique("q")
    rule = {"limit": 1, "period_us": 1000, "burst": 1}
    store.create_quota(NewQuota(uuid7_text(), name, 1, rule, [1], False, 3), mutation())
    return name


def test_what_changed_since_a_version(store: RoutesStore) -> None:
    start = store.table_since(0).version
    route, other = create(store, "a"), create(store, "b")
    changed: Route = store.update_route(
        route.id, 1, lambda each: new_route("route", each.id, each.name, {**each.spec, "priority": 5}), mutation()
    )
    store.delete_route(other.id, None, mutation())

    since = store.table_since(start)

    assert since.version == start + 4
    assert (since.whole, list(since.routes), list(since.removed)) == (False, [changed], [other.id])
    assert changed.version == 2
    assert store.table_since(since.version)[1:] == (False, [], [], [])
    whole = store.table_since(0)
    assert (whole.whole, list(whole.routes)) == (True, [changed])


def test_what_was_removed_long_ago_is_forgotten_and_then_all_is_read(store: RoutesStore) -> None:
    start = store.table_since(0).version
    kept = create(store, "kept")
    store.delete_route(create(store, "gone").id, None, mutation())
    while store.forget_removed(-1.0):
        pass

    since = store.table_since(start)

    assert (since.whole, list(since.routes)) == (True, [kept])
    assert store.table_since(since.version).whole is False


def test_a_table_that_changes_as_a_whole_is_written_in_place(store: RoutesStore, admin_dsn: str) -> None:
    sizes = (
        "SELECT pg_relation_size('routes.routes'), pg_relation_size('routes.routes_match'),"
        " pg_relation_size('routes.routes_name'), pg_relation_size('routes.routes_pkey')"
    )
    names = [f"r{number}" for number in range(2000)]
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        # Whether dead rows of before may be pruned hangs on whatever else runs in the cluster.
        admin.execute("TRUNCATE routes.routes")
        store.apply([new(name, priority=1) for name in names], None, mutation())
        before = admin.execute(sizes).fetchone()
        applied: Applied = store.apply([new(name, priority=2) for name in names], None, mutation())
        assert len(applied.updated) == 2000
        assert admin.execute(sizes).fetchone() == before


def test_apply_writes_what_differs_alone(store: RoutesStore, database: Database) -> None:
    first: Applied = store.apply([new(name) for name in "abc"], None, mutation())
    position = database.position()
    second: Applied = store.apply(
        [new("a"), new("b", priority=1), new("d", metadata={"ä": "\\"})], first.version, mutation()
    )

    assert (second.created, second.updated, second.deleted, second.unchanged) == (["d"], ["b"], ["c"], 1)
    page = database.changes_since(position, 100)
    told = {noted.change.record_id: noted for noted in page.changes}
    deleted = next(iter(told))
    assert told.pop(deleted).change.body == {"event": "deleted", "table": second.version}
    for name, event in (("b", pb.ROUTE_EVENT_UPDATED), ("d", pb.ROUTE_EVENT_CREATED)):
        written = store.get_route("name", name)
        assert written is not None
        change = pb.RouteChange()
        route_change(told.pop(written.id), change)
        assert (change.event, change.route) == (event, route_message(written))
        assert change.table_version == str(second.version)
    assert not told
    assert len(database.changes_since(position, 100, whole=False).changes) == 1, "one makes the copies of the table old"
    with pytest.raises(RoutesEtagMismatchError):
        store.apply([], first.version, mutation())
    assert [route.name for route in store.list_routes(Listing(10, "", ""))] == ["a", "b", "d"]


def test_a_write_that_fails_takes_no_version(store: RoutesStore) -> None:
    create(store, "a", methods=["GET"])
    version = store.table_since(0).version
    for bad in (new("b", "/a", methods=["GET"]), new("c", quotas=["none"])):
        with pytest.raises((RouteConflictError, QuotaNotFoundError)):
            store.create_route(bad, mutation())
    assert store.table_since(0).version == version


def test_rivals(store: RoutesStore) -> None:
    create(store, "a", path="/x/{p}", methods=["GET"], headers=[["h", "1"]], host="h")
    base = {"path": "/x/{q}", "methods": ["GET", "PUT"], "headers": [["h", "1"]], "host": "h"}
    with pytest.raises(RouteConflictError):
        create(store, "b", **base)
    for number, change in enumerate(
        ({"methods": ["PUT"]}, {"methods": []}, {"headers": []}, {"host": ""}, {"priority": 1}, {"path": "/x/{q:int}"})
    ):
        spec = {name: value for name, value in {**base, **change}.items() if value}
        create(store, f"c{number}", **spec)
    with pytest.raises(RouteConflictError):
        create(store, "d", path="/x/{q}", headers=[["h", "1"]], host="h")


def test_a_quota_in_use(store: RoutesStore) -> None:
    name = quota(store)
    found = store.get_quota("name", name)
    assert found is not None
    create(store, "a", quotas=[name])
    with pytest.raises(QuotaInUseError):
        store.delete_quota(found.id, None, mutation())
    store.apply([], None, mutation())
    store.delete_quota(found.id, found.version, mutation())
    assert store.get_quota("id", found.id) is None


def test_the_table_has_an_end(store: RoutesStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MOST_ROUTES", 2)
    create(store, "a")
    create(store, "b")
    with pytest.raises(TableFullError):
        create(store, "c")


def test_a_repeat_of_a_whole_table(store: RoutesStore) -> None:
    again = mutation()
    first = store.apply([new("a")], None, again)
    create(store, "b")
    assert store.apply([new("a")], None, again) == first
    assert len(store.list_routes(Listing(10, "", ""))) == 2


def test_the_log_is_in_the_order_of_versions(store: RoutesStore, database: Database) -> None:
    position: Position = database.position()
    for name in "abc":
        create(store, name)
    versions = [noted.change.body["table"] for noted in database.changes_since(position, 10).changes]
    assert versions == sorted(versions)
