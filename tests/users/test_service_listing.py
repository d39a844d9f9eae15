"""ListUsers, held against a plain Python reference over a random population."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from kronos_db.embedded.postgres import EmbeddedPostgres
from tests.parts.refusal import refused
from tests.parts.serving import Serving

_COUNT = 140
_BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
_ORDERS = (
    pb.USER_ORDER_UNSPECIFIED,
    pb.USER_ORDER_CREATE_TIME_ASC,
    pb.USER_ORDER_CREATE_TIME_DESC,
    pb.USER_ORDER_USERNAME_ASC,
    pb.USER_ORDER_USERNAME_DESC,
)


@dataclass
class Population:
    """A server with known users, and the plain truth about them."""

    serving: Serving
    users: UsersServiceStub
    all: list[pb.User]

    def expected(self, request: pb.ListUsersRequest) -> list[str]:
        """Return the ids that a listing has, in order."""
        found = [user for user in self.all if _matches(user, request)]
        if request.order in {pb.USER_ORDER_USERNAME_ASC, pb.USER_ORDER_USERNAME_DESC}:
            found.sort(key=lambda user: _folded(user.username), reverse=request.order == pb.USER_ORDER_USERNAME_DESC)
        else:
            down = request.order == pb.USER_ORDER_CREATE_TIME_DESC
            found.sort(key=lambda user: (user.create_time.ToNanoseconds(), user.id), reverse=down)
        return [user.id for user in found]

    def pages(self, request: pb.ListUsersRequest, sizes: Sequence[int]) -> list[list[pb.User]]:
        """Read a listing page by page, with these sizes by turns."""
        pages: list[list[pb.User]] = []
        while True:
            request.page_size = sizes[len(pages) % len(sizes)]
            answer = self.users.ListUsers(request)
            pages.append(list(answer.users))
            request.page_token = answer.next_page_token
            if not request.page_token:
                return pages
            assert len(pages) <= _COUNT


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _matches(user: pb.User, request: pb.ListUsersRequest) -> bool:
    deleted = user.state == pb.USER_STATE_DELETED
    if request.state != pb.USER_STATE_UNSPECIFIED:
        if user.state != request.state:
            return False
    elif deleted and not request.show_deleted:
        return False
    created = user.create_time.ToNanoseconds()
    if request.HasField("create_time_from") and created < request.create_time_from.ToNanoseconds():
        return False
    if request.HasField("create_time_until") and created >= request.create_time_until.ToNanoseconds():
        return False
    return _folded(user.username).startswith(_folded(request.username_prefix))


@pytest.fixture(scope="module")
def population(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Population]:
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE listing")
    serving = Serving(tmp_path_factory.mktemp("listing"), postgres.dsn_for("listing"))
    serving.start()
    users = serving.users()
    _populate(users, postgres.dsn_for("listing"))
    with psycopg.connect(postgres.dsn_for("listing")) as connection:
        ids = [str(row[0]) for row in connection.execute("SELECT id FROM users.users")]
    everybody = users.BatchGetUsers(pb.BatchGetUsersRequest(ids=ids)).users
    assert len(everybody) == _COUNT
    yield Population(serving, users, list(everybody))
    serving.stop()


def _populate(users: UsersServiceStub, dsn: str) -> None:
    chance = random.Random(20260101)
    roots = [
        "ann",
        "Anna",
        "ANNe",
        "bob",
        "Zoë",
        "zoe\u0308ster",
        "名前",
        "_"[:0] + "a_b",
        "a.b",
        "a%c",
        "ﬁeld",
        "FIeld",
    ]
    names = [f"{chance.choice(roots).replace('%', '-')}{number}" for number in range(_COUNT)]
    created = users.BatchCreateUsers(pb.BatchCreateUsersRequest(users=[pb.User(username=name) for name in names])).users
    # Many share a moment: the id decides between them.
    with psycopg.connect(dsn) as connection:
        for user in created:
            at = _BEGIN + timedelta(hours=chance.randrange(24), microseconds=chance.choice([0, 0, 1, 999_999]))
            connection.execute("UPDATE users.users SET create_time = %s WHERE id = %s", [at, user.id])
    for user in created:
        fate = chance.random()
        if fate < 0.3:
            users.SuspendUser(pb.SuspendUserRequest(id=user.id))
        if fate < 0.1 or fate > 0.85:
            users.DeleteUser(pb.DeleteUserRequest(id=user.id))


def _moment(hours: float) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(_BEGIN + timedelta(hours=hours))
    return found


_requests = st.builds(
    pb.ListUsersRequest,
    state=st.sampled_from([0, 0, 0, 1, 2, 3]),
    show_deleted=st.booleans(),
    order=st.sampled_from(_ORDERS),
    create_time_from=st.none() | st.integers(0, 24).map(_moment),
    create_time_until=st.none() | st.integers(0, 24).map(_moment),
    username_prefix=st.sampled_from(
        ["", "", "a", "AN", "anna", "zoë", "zoe\u0308", "名", "a_", "a.", "a-", "%", "fi", "ﬁ", "x"]
    ),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=_requests, sizes=st.lists(st.sampled_from([1, 3, 7, 20, 50, 1000, 0]), min_size=1, max_size=3))
def test_pages_are_those_of_the_reference(
    population: Population, request: pb.ListUsersRequest, sizes: list[int]
) -> None:
    if sizes == [1]:
        sizes = [1, 20]
    wanted = population.expected(request)

    pages = population.pages(request, sizes)

    assert [user.id for page in pages for user in page] == wanted
    # No page but the last is short, and none is empty but the only one.
    for number, page in enumerate(pages[:-1]):
        assert len(page) == (sizes[number % len(sizes)] or 50)
    assert pages == [[]] or pages[-1]


@pytest.mark.parametrize("order", _ORDERS)
def test_every_order_of_everybody(population: Population, order: Any) -> None:
    request = pb.ListUsersRequest(order=order, show_deleted=True)

    pages = population.pages(request, [33])

    assert [user.id for page in pages for user in page] == population.expected(request)
    assert len(population.expected(request)) == _COUNT


def test_the_users_listed_are_whole(population: Population) -> None:
    (page,) = population.pages(pb.ListUsersRequest(show_deleted=True), [1000])

    assert sorted(page, key=lambda user: user.id) == sorted(population.all, key=lambda user: user.id)


def test_sizes(population: Population) -> None:
    list_users = population.users.ListUsers

    assert len(list_users(pb.ListUsersRequest()).users) == 50
    assert len(list_users(pb.ListUsersRequest(page_size=1_000_000, show_deleted=True)).users) == _COUNT
    found = refused(lambda: list_users(pb.ListUsersRequest(page_size=-1)))
    assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", ["page_size"])


def test_a_page_follows_though_rows_come_and_go(population: Population) -> None:
    users = population.users
    prefix = f"moving{uuid4().hex[:8]}"
    made = users.BatchCreateUsers(
        pb.BatchCreateUsersRequest(users=[pb.User(username=f"{prefix}-{number:02}") for number in range(10)])
    ).users
    request = pb.ListUsersRequest(username_prefix=prefix, order=pb.USER_ORDER_USERNAME_ASC, page_size=4)
    try:
        first = users.ListUsers(request)
        # The row that the page ended with, one before it, and one after it.
        for number in (3, 0, 5):
            users.EraseUser(pb.EraseUserRequest(id=made[number].id))
        request.page_token = first.next_page_token
        second = users.ListUsers(request)

        assert [user.username[-2:] for user in second.users] == ["04", "06", "07", "08"]
        request.page_token = second.next_page_token
        assert [user.username[-2:] for user in users.ListUsers(request).users] == ["09"]
    finally:
        for number in {*range(10)} - {0, 3, 5}:
            users.EraseUser(pb.EraseUserRequest(id=made[number].id))


class TestTokens:
    """What is no token of this listing is refused."""

    @pytest.fixture
    def token(self, population: Population) -> str:
        answer = population.users.ListUsers(pb.ListUsersRequest(page_size=5))
        assert answer.next_page_token
        return str(answer.next_page_token)

    @pytest.mark.parametrize(
        "changes",
        [
            {"state": pb.USER_STATE_ACTIVE},
            {"order": pb.USER_ORDER_CREATE_TIME_DESC},
            {"order": pb.USER_ORDER_CREATE_TIME_ASC},
            {"show_deleted": True},
            {"username_prefix": "a"},
            {"create_time_from": Timestamp(seconds=1)},
            {"create_time_until": Timestamp(seconds=4_000_000_000)},
        ],
        ids=str,
    )
    def test_of_other_filters(self, population: Population, token: str, changes: dict[str, Any]) -> None:
        self._refused(population, pb.ListUsersRequest(page_token=token, **changes))

    def test_of_another_size_is_fine(self, population: Population, token: str) -> None:
        assert len(population.users.ListUsers(pb.ListUsersRequest(page_token=token, page_size=7)).users) == 7

    def test_altered(self, population: Population, token: str) -> None:
        for position in range(0, len(token), 7):
            other = "A" if token[position] != "A" else "B"
            altered = token[:position] + other + token[position + 1 :]
            self._refused(population, pb.ListUsersRequest(page_token=altered))

    @pytest.mark.parametrize("made_up", ["x", "=", "é", "AAAA", "a" * 1024, "../../etc", "' OR 1=1 --", "e30"])
    def test_made_up(self, population: Population, made_up: str) -> None:
        self._refused(population, pb.ListUsersRequest(page_token=made_up))

    def test_cut_or_lengthened(self, population: Population, token: str) -> None:
        for altered in (token[:-4], token + "AAAA", token[4:]):
            self._refused(population, pb.ListUsersRequest(page_token=altered))

    def test_too_long(self, population: Population) -> None:
        found = refused(lambda: population.users.ListUsers(pb.ListUsersRequest(page_token="a" * 1025)))
        assert (found.reason, list(found.fields)) == ("BAD_REQUEST", ["page_token"])

    def test_of_another_server(self, population: Population, serving: Serving, token: str) -> None:
        request = pb.ListUsersRequest(page_token=token, page_size=5)
        assert refused(lambda: serving.users().ListUsers(request)).reason == "PAGE_TOKEN_INVALID"

    def test_from_before_a_restart_is_fine(self, population: Population, token: str) -> None:
        population.serving.restart()
        population.users = population.serving.users()

        assert population.users.ListUsers(pb.ListUsersRequest(page_token=token)).users

    def _refused(self, population: Population, request: pb.ListUsersRequest) -> None:
        found = refused(partial(population.users.ListUsers, request))
        assert (found.code, found.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")
        assert list(found.fields) == ["page_token"]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"state": 9}, "state"),
        ({"order": 9}, "order"),
        ({"username_prefix": "x" * 65}, "username_prefix"),
        ({"username_prefix": "a\0"}, "username_prefix"),
        ({"create_time_from": Timestamp(seconds=10**13)}, "create_time_from"),
        ({"create_time_until": Timestamp(seconds=-(10**13))}, "create_time_until"),
        ({"create_time_until": Timestamp(seconds=5, nanos=-1)}, "create_time_until"),
    ],
    ids=str,
)
def test_a_filter_at_fault_is_named(serving: Serving, changes: dict[str, Any], path: str) -> None:
    found = refused(lambda: serving.users().ListUsers(pb.ListUsersRequest(**changes)))

    assert (found.code, found.reason, list(found.fields)) == ("INVALID_ARGUMENT", "BAD_REQUEST", [path])
