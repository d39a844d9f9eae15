"""Statements and indexes over the wire, against a server that serves."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import psycopg
import pytest
from kronos.admin.v1 import admin_pb2_grpc, indexes_pb2, statements_pb2
from kronos.users.v1 import users_pb2

from kronos_db import schemas
from tests.parts.domain import LIMIT
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.users.population import create

GET_USER = "kronos.users.v1.UsersService/GetUser"
pytestmark = pytest.mark.usefixtures("untold")


@pytest.fixture(scope="module")
def admin(serving: Serving) -> Any:
    return admin_pb2_grpc.AdminServiceStub(serving.channel_of("operator"))


def outcome(call: Callable[[], Any]) -> tuple[str, str]:
    """Status and reason of a refused call."""
    refusal = refused(call)
    return refusal.code, refusal.reason


def use(serving: Serving, times: int = 3) -> None:
    """Have a method issue statements."""
    for _ in range(times):
        with pytest.raises(grpc.RpcError):
            serving.users().GetUser(users_pb2.GetUserRequest(id=str(uuid.uuid4())))


def slow(admin: Any, **fields: Any) -> list[Any]:
    """All pages of slow queries."""
    found: list[Any] = []
    request = statements_pb2.ListSlowQueriesRequest(page_size=7, **fields)
    while True:
        page = admin.ListSlowQueries(request)
        found += page.slow_queries
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def test_slow_queries_are_listed_with_the_methods_that_issue_them(serving: Serving, admin: Any) -> None:
    use(serving)

    def seen() -> bool:
        # Readings within two seconds are one.
        found = [each for each in slow(admin, method=GET_USER) if "users:get_by_id" in each.query_names]
        return bool(found) and found[0].calls >= 3

    eventually(seen, LIMIT)
    (query,) = [each for each in slow(admin, method=GET_USER) if "users:get_by_id" in each.query_names]
    assert query.domain == "users"
    assert query.total_time.ToNanoseconds() >= query.mean_time.ToNanoseconds() > 0
    assert query.id.startswith("users.")
    everything = slow(admin, order=statements_pb2.SLOW_QUERY_ORDER_CALLS)
    assert [each.calls for each in everything] == sorted((each.calls for each in everything), reverse=True)
    assert len({each.id for each in everything}) == len(everything)
    sources = admin.ListSlowQueries(statements_pb2.ListSlowQueriesRequest()).sources
    assert {source.domain for source in sources} == set(schemas.SERVED)
    assert {source.state for source in sources} == {statements_pb2.STATEMENT_SOURCE_STATE_COUNTED}


def test_most_statements_of_the_server_are_known_by_name(serving: Serving, admin: Any) -> None:
    dsn = serving.settings.postgres_dsn
    assert dsn is not None
    with psycopg.connect(dsn.get_secret_value(), autocommit=True) as connection:
        connection.execute("SELECT public.pg_stat_statements_reset()")
        connection.execute("TRUNCATE admin.statements, admin.statement_series, admin.statement_deltas")
    users = serving.users()
    for _ in range(3):
        user = create(users)
        users.GetUser(users_pb2.GetUserRequest(id=user.id))
        users.ListUsers(users_pb2.ListUsersRequest(page_size=1))
        users.DeleteUser(users_pb2.DeleteUserRequest(id=user.id))

    def ours() -> list[Any]:
        # What is left out: set_config and COMMIT, which are nobody's queries.
        found = [each for each in slow(admin) if each.domain != "admin" and "schema_migration" not in each.text]
        return [each for each in found if f" {each.domain}." in each.text and "$" in each.text]

    # Readings within two seconds are one.
    eventually(lambda: len([each for each in ours() if each.domain == "users"]) >= 4, LIMIT)
    statements = ours()
    unnamed = [f"{each.domain}: {each.text}" for each in statements if not each.query_names]
    assert len(unnamed) < 0.1 * len(statements), unnamed
    assert all(name.startswith(f"{each.domain}:") for each in statements for name in each.query_names)


def test_what_is_forgotten_is_forgotten_once(serving: Serving, admin: Any) -> None:
    use(serving)
    request = statements_pb2.ResetSlowQueriesRequest(request_id=str(uuid.uuid4()), domain="routes")
    first = admin.ResetSlowQueries(request)
    assert admin.ResetSlowQueries(request) == first
    assert first.reset_time.seconds > 0
    assert outcome(lambda: admin.ResetSlowQueries(statements_pb2.ResetSlowQueriesRequest(domain="nobody"))) == (
        "INVALID_ARGUMENT",
        "DOMAIN_UNKNOWN",
    )


@contextmanager
def sleeping(serving: Serving) -> Iterator[tuple[int, list[BaseException]]]:
    """A session of the users domain that runs a statement until it is cancelled."""
    ends: list[BaseException] = []
    with psycopg.connect(schemas.ways(serving.settings, "users")[1], autocommit=True) as connection:

        def run() -> None:
            try:
                connection.execute("/* users:get_by_id */ SELECT pg_sleep(60)")
            except psycopg.Error as error:
                ends.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield connection.info.backend_pid, ends
        finally:
            if not ends:
                connection.cancel_safe()
            thread.join(LIMIT)


def active(admin: Any, pid: int) -> Any:
    found = admin.ListActiveQueries(statements_pb2.ListActiveQueriesRequest(domain="users")).active_queries
    return next((each for each in found if each.pid == pid and "pg_sleep" in each.text), None)


def test_what_runs_is_listed_and_cancelled(serving: Serving, admin: Any) -> None:
    use(serving)
    eventually(lambda: any(GET_USER in each.methods for each in slow(admin, domain="users")), LIMIT)
    with sleeping(serving) as (pid, ends):
        eventually(lambda: active(admin, pid))
        query = active(admin, pid)
        assert query.query_name == "users:get_by_id"
        assert GET_USER in query.methods
        assert query.wait == "Timeout:PgSleep"
        request = statements_pb2.CancelQueryRequest(
            request_id=str(uuid.uuid4()),
            domain="users",
            pid=pid,
            backend_start_time=query.backend_start_time,
            query_start_time=query.query_start_time,
        )
        # As of a session that had the same pid before.
        other = statements_pb2.CancelQueryRequest(domain="users", pid=pid, backend_start_time=query.backend_start_time)
        other.backend_start_time.seconds -= 1
        for terminate in (False, True):
            other.terminate = terminate
            assert outcome(lambda: admin.CancelQuery(other)) == ("NOT_FOUND", "ACTIVE_QUERY_NOT_FOUND")
        pretend = statements_pb2.CancelQueryRequest()
        pretend.CopyFrom(request)
        pretend.validate_only, pretend.request_id = True, ""
        admin.CancelQuery(pretend)
        assert active(admin, pid)
        assert not ends
        admin.CancelQuery(request)
        eventually(lambda: ends)
        # A repeat gets the first answer, though nothing is there to be cancelled any more.
        admin.CancelQuery(request)
        assert isinstance(ends[0], psycopg.errors.QueryCanceled)


def test_what_runs_comes_in_pages(serving: Serving, admin: Any) -> None:
    with sleeping(serving) as (first, _), sleeping(serving) as (second, _):
        eventually(lambda: active(admin, first) and active(admin, second))
        found: list[int] = []
        request = statements_pb2.ListActiveQueriesRequest(page_size=1)
        while True:
            page = admin.ListActiveQueries(request)
            assert len(page.active_queries) <= 1
            found += [each.pid for each in page.active_queries]
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        assert len(found) == len(set(found))
        assert {first, second} <= set(found)


def test_advice_is_asked_for_tried_applied_and_listed(serving: Serving, admin: Any) -> None:
    dsn = serving.settings.domain_direct_dsn("users") or ""
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("CREATE INDEX users_twice ON users.users (create_time, state)")
        owner.execute("CREATE INDEX users_thrice ON users.users (create_time, state)")
        try:
            apply_duplicate(admin, owner)
        finally:
            owner.execute("DROP INDEX IF EXISTS users.users_twice, users.users_thrice")


def apply_duplicate(admin: Any, owner: psycopg.Connection[Any]) -> None:
    answer = admin.AdviseIndexes(indexes_pb2.AdviseIndexesRequest(domain="users"))
    (advice,) = [each for each in answer.advices if each.kind == indexes_pb2.INDEX_ADVICE_KIND_DUPLICATE]
    assert not answer.skipped_domains
    assert advice.index in {"users_twice", "users_thrice"}
    request = indexes_pb2.ApplyIndexAdviceRequest(advice_id=advice.id, validate_only=True)
    (planned,) = admin.ApplyIndexAdvice(request)
    assert planned.change.statement == advice.statement
    assert planned.change.state == indexes_pb2.INDEX_CHANGE_STATE_UNSPECIFIED
    request = indexes_pb2.ApplyIndexAdviceRequest(advice_id=advice.id, request_id=str(uuid.uuid4()))
    *_, last = admin.ApplyIndexAdvice(request)
    assert last.change.state == indexes_pb2.INDEX_CHANGE_STATE_DONE
    assert (last.change.id, last.change.caller) == (request.request_id, "operator")
    left = owner.execute(
        "SELECT indexname FROM pg_indexes WHERE indexname IN ('users_twice', 'users_thrice')"
    ).fetchall()
    assert len(left) == 1
    # A repeat is told of the first one, and the advice is given no more.
    (repeated,) = admin.ApplyIndexAdvice(request)
    assert repeated.change.id == request.request_id
    assert outcome(lambda: list(admin.ApplyIndexAdvice(indexes_pb2.ApplyIndexAdviceRequest(advice_id=advice.id)))) == (
        "FAILED_PRECONDITION",
        "ADVICE_OUTDATED",
    )
    page = admin.ListIndexChanges(indexes_pb2.ListIndexChangesRequest(page_size=1))
    assert page.index_changes[0].id == request.request_id


def test_nothing_is_tried_out_without_a_scratch_database(admin: Any) -> None:
    assert outcome(lambda: admin.AdviseIndexes(indexes_pb2.AdviseIndexesRequest(measure=True))) == (
        "FAILED_PRECONDITION",
        "SCRATCH_MISSING",
    )


def test_the_servers_own_schemas_ask_for_no_new_index(admin: Any) -> None:
    answer = admin.AdviseIndexes(indexes_pb2.AdviseIndexesRequest())
    made = [each.statement for each in answer.advices if each.kind == indexes_pb2.INDEX_ADVICE_KIND_MISSING]
    assert made == []


def test_who_stops_reading_cancels_the_build(serving: Serving, admin: Any) -> None:
    dsn = serving.settings.domain_direct_dsn("users") or ""
    with psycopg.connect(dsn, autocommit=True) as owner, psycopg.connect(dsn) as writer:
        owner.execute("CREATE INDEX users_once ON users.users (update_time, state)")
        owner.execute("CREATE INDEX users_again ON users.users (update_time, state)")
        try:
            answer = admin.AdviseIndexes(indexes_pb2.AdviseIndexesRequest(domain="users"))
            (advice,) = [each for each in answer.advices if each.kind == indexes_pb2.INDEX_ADVICE_KIND_DUPLICATE]
            # The drop waits for this transaction.
            writer.execute("LOCK TABLE users.users IN ROW EXCLUSIVE MODE")
            request = indexes_pb2.ApplyIndexAdviceRequest(advice_id=advice.id, request_id=str(uuid.uuid4()))
            stream = admin.ApplyIndexAdvice(request)
            assert next(stream).change.state == indexes_pb2.INDEX_CHANGE_STATE_RUNNING
            eventually(lambda: building(owner), LIMIT)
            (pid,) = building(owner)
            stream.cancel()
            eventually(lambda: pid not in building(owner), LIMIT)
            # To clear away what it left waits for that transaction too.
            writer.rollback()
            eventually(lambda: changed(admin, request.request_id) != indexes_pb2.INDEX_CHANGE_STATE_RUNNING, LIMIT)
            left = owner.execute("SELECT 1 FROM pg_index WHERE NOT indisvalid").fetchall()
            assert left == []
        finally:
            writer.rollback()
            owner.execute("DROP INDEX IF EXISTS users.users_once, users.users_again")


def building(owner: psycopg.Connection[Any]) -> list[int]:
    """The processes that run the statement of a change."""
    found = owner.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'kronos-db:index' AND datname = current_database()"
        " AND state = 'active' AND query LIKE 'DROP INDEX%'"
    )
    return [row[0] for row in found]


def changed(admin: Any, change_id: str) -> int:
    """The state of a change."""
    changes = admin.ListIndexChanges(indexes_pb2.ListIndexChangesRequest()).index_changes
    state: int = next(each.state for each in changes if each.id == change_id)
    return state
