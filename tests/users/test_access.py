"""Access on a real PostgreSQL: one round trip whatever the depth, what is kept, and what is never answered from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from kronos_db.runtime.cache.board import Board, now
from kronos_db.runtime.cache.engine import Cache
from kronos_db.runtime.cache.memory import Memory
from kronos_db.runtime.database.changes import tag
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.identifiers import uuid7_text
from kronos_db.users import access as access_module
from kronos_db.users.access import Access
from kronos_db.users.access_store import AccessStore
from kronos_db.users.grant_store import GrantStore
from kronos_db.users.role_store import RoleStore
from kronos_db.users.roles import Grant, NewGrant, NewRole, Role
from kronos_db.users.store import UsersStore
from tests.parts.domain import mutation, opened, settings_of
from tests.users.stored import new

NOBODY = "01a207c9-538b-72bb-b4c6-24200d69a6a3"


@pytest.fixture(scope="module")
def database(admin_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with opened(settings_of(tmp_path_factory.mktemp("access"), admin_dsn)) as database:
        yield database


@pytest.fixture
def board() -> Board:
    board = Board()
    board.extend(board.begin(1, 1, 1), now() + 3_600_000_000_000)
    return board


@pytest.fixture
def statements(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the statements that are run: each is a round trip."""
    run: list[str] = []
    original = database.fetch_all

    def fetch_all(query: Any, params: Any, make: Any) -> Any:
        run.append(query.name)
        return original(query, params, make)

    monkeypatch.setattr(database, "fetch_all", fetch_all)
    return run


@pytest.fixture
def access(database: Database, board: Board, statements: list[str]) -> Access:
    return Access(AccessStore(database), Cache(board, Memory(1 << 20), None))


def user(database: Database) -> str:
    created: list[Any] = UsersStore(database).create([new(f"u{uuid4().hex}")], mutation())
    return str(created[0].id)


def role(database: Database, *permissions: str, parents: Sequence[str] = ()) -> Role:
    name = f"r{uuid4().hex}"
    made: Role = RoleStore(database).create(NewRole(uuid7_text(), name, name, "", permissions, parents), mutation())
    return made


def grant(database: Database, user_id: str, role_id: str, place: str = "", seconds: float | None = None) -> Grant:
    end = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
    made: Grant = GrantStore(database).create(NewGrant(uuid7_text(), user_id, role_id, place, end), mutation())
    return made


def line(database: Database, depth: int, *permissions: str) -> str:
    """Make roles so deep that each inherits from the next; return the lowest."""
    lowest = role(database, *permissions).id
    for _ in range(depth - 1):
        lowest = role(database, parents=[lowest]).id
    return lowest


@pytest.mark.parametrize("depth", [1, 10, 100])
def test_one_round_trip_whatever_the_depth(
    database: Database, access: Access, statements: list[str], depth: int
) -> None:
    ann, ben = user(database), user(database)
    for each in (ann, ben):
        grant(database, each, line(database, depth, "doc:read"), "a/")
    statements.clear()

    assert access.may([(ann, "doc:read", "a/b")]) == [True]
    assert statements == ["holdings"]
    assert access.may([(ann, "doc:read", ""), (ann, "doc:read", "a"), (ann, "doc:write", "a")]) == [False, True, False]
    assert statements == ["holdings"]
    assert access.may([(ann, "doc:read", "a"), (ben, "doc:read", "a"), (NOBODY, "doc:read", "a")]) == [
        True,
        True,
        False,
    ]
    assert statements == ["holdings"] * 2


def test_after_a_change_of_a_role_the_roles_alone_are_read_again(
    database: Database, access: Access, board: Board, statements: list[str]
) -> None:
    ann, given = user(database), line(database, 3, "doc:read")
    grant(database, ann, given)
    assert access.may([(ann, "doc:read", "")]) == [True]
    statements.clear()

    board.change([tag("role", given), tag("role")], 2 << 16, 1)

    assert access.may([(ann, "doc:read", "")]) == [True]
    assert access.allows(ann, frozenset({"doc:read"}), "")
    assert statements == ["roles"]


def test_who_is_active(database: Database, access: Access, admin_dsn: str) -> None:
    ann, ben, col = user(database), user(database), user(database)
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("UPDATE users.users SET state = 2 WHERE id = %s", [ben])
        admin.execute("UPDATE users.users SET delete_time = now() WHERE id = %s", [col])

    assert access.active([ann, ben, col, NOBODY]) == {ann}
    assert access.active([ann]) == access.active([ann, ann]) == {ann}
    assert access.active([ben]) == access.active([NOBODY]) == access.active([]) == frozenset()


def test_a_name_that_is_no_uuid_is_nobody(database: Database, access: Access, statements: list[str]) -> None:
    ann = user(database)
    grant(database, ann, role(database, "doc:read").id)
    nobody = ["", "service:x", "{" + ann + "}", ann + ",", ann.replace("-", "")]
    statements.clear()

    questions = [(each, "doc:read", "") for each in [*nobody, ann, ann.upper()]]
    assert access.may(questions) == [False] * 5 + [True] * 2
    assert access.active([*nobody, ann, ann.upper()]) == {ann, ann.upper()}
    assert [access.may([each]) for each in questions[:5]] == [[False]] * 5
    assert statements == ["holdings"]


def test_what_is_no_permission_or_scope(access: Access) -> None:
    for question, field in (
        ((NOBODY, "doc", ""), "questions[1].permission"),
        ((NOBODY, "doc:read", "/a"), "questions[1].scope"),
    ):
        with pytest.raises(BadRequestError) as caught:
            access.may([(NOBODY, "doc:read", ""), question])
        assert [violation.field for violation in caught.value.violations] == [field]
    assert access.may([]) == []


def test_copies_end_with_the_earliest_expiry(database: Database, access: Access) -> None:
    ann = user(database)
    grant(database, ann, role(database, "a:a").id)
    grant(database, ann, role(database, "b:b").id, seconds=30)
    begun = now()

    access.may([(ann, "a:a", "")])

    entry = access._holdings._shelf[ann]
    assert 25e9 < entry.until - begun < 30e9


def test_while_copies_may_not_be_kept_everything_is_read(
    database: Database, access: Access, board: Board, statements: list[str]
) -> None:
    ann, given = user(database), line(database, 3, "doc:read")
    grant(database, ann, given)
    board.void()
    statements.clear()

    for _ in range(2):
        assert access.may([(ann, "doc:read", "")]) == [True]
        assert access.allows(ann, frozenset({"doc:read"}), "")

    assert statements == ["holdings", "roles"] * 4


def test_a_role_that_is_gone_gives_nothing(
    database: Database, access: Access, board: Board, admin_dsn: str, statements: list[str]
) -> None:
    ann, given = user(database), role(database, "doc:read")
    grant(database, ann, given.id)
    assert access.may([(ann, "doc:read", "")]) == [True]
    # The copy of the user is older than the removal; the roles are read after it.
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("DELETE FROM users.grants WHERE user_id = %s", [ann])
        admin.execute("DELETE FROM users.roles WHERE id = %s", [given.id])
    board.change([tag("role")], 2 << 16, 1)
    statements.clear()

    for _ in range(2):
        assert access.may([(ann, "doc:read", "")]) == [False]
    assert statements == ["roles"]


def test_the_graph_is_looked_at_after_the_copy_of_the_user(
    database: Database, access: Access, board: Board, monkeypatch: pytest.MonkeyPatch, admin_dsn: str
) -> None:
    """A permission is taken from a role, and only then is the role granted: nobody ever has it."""
    ann, given = user(database), role(database, "doc:read")
    access.may([(ann, "doc:read", "")])
    ben = user(database)
    grant(database, ben, given.id)
    assert access.may([(ben, "doc:read", "")]) == [True]
    original = access._holdings.get

    def get(key: str) -> bytes | None:
        if key == ann:
            # Between the beginning of the check and the look at the user: both are acknowledged.
            with psycopg.connect(admin_dsn, autocommit=True) as admin:
                admin.execute("UPDATE users.roles SET permissions = '{}' WHERE id = %s", [given.id])
            board.change([tag("role", given.id), tag("role")], 2 << 16, 1)
            grant(database, ann, given.id)
            board.change([tag("grant", ann), tag("grant")], 3 << 16, 1)
        return original(key)

    monkeypatch.setattr(access._holdings, "get", get)
    assert not access.allows(ann, frozenset({"doc:read"}), "")


def test_the_graph_makes_way_when_it_is_too_large(
    database: Database, access: Access, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_module, "_MOST_PERMISSIONS", 3)
    ann = user(database)
    grant(database, ann, role(database, "a:a", "b:b", "c:c", "d:d").id)
    statements.clear()

    for _ in range(2):
        assert access.may([(ann, "a:a", "")]) == [True]
        assert access._kept.graph.size <= 4
    assert statements[0] == "holdings"
    assert set(statements[1:]) == {"roles"}
