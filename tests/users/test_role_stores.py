"""Roles, grants and what checks read: straight, and through a pgBouncer without and one with prepared statements."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from kronos_db.runtime.database.database import Database
from kronos_db.runtime.identifiers import uuid7_text
from kronos_db.users.access_store import AccessStore, HolderListing
from kronos_db.users.account import State
from kronos_db.users.grant_store import GrantListing, GrantStore
from kronos_db.users.model import UserNotFoundError
from kronos_db.users.permissions import around
from kronos_db.users.role_store import RoleStore
from kronos_db.users.roles import (
    Grant,
    GrantExistsError,
    NewGrant,
    NewRole,
    Removal,
    Role,
    RoleChange,
    RoleCycleError,
    RoleNotFoundError,
)
from kronos_db.users.store import UsersStore
from tests.parts.domain import LIMIT, mutation
from tests.parts.eventually import eventually
from tests.users.stored import new


@pytest.fixture(scope="module")
def database(users_database: Database) -> Database:
    return users_database


@pytest.fixture
def ann(database: Database) -> str:
    return user(database)


def user(database: Database) -> str:
    created: list[Any] = UsersStore(database).create([new(f"u{uuid4().hex}")], mutation())
    return str(created[0].id)


def new_role(*permissions: str, parents: Sequence[str] = (), **changes: Any) -> NewRole:
    name = f"r{uuid4().hex}"
    values = {"id": uuid7_text(), "name": name, "name_key": name, "description": ""}
    return NewRole(**{**values, "permissions": permissions, "parent_ids": parents, **changes})


def role(database: Database, *permissions: str, parents: Sequence[str] = ()) -> Role:
    made: Role = RoleStore(database).create(new_role(*permissions, parents=parents), mutation())
    return made


def grant(database: Database, user_id: str, role_id: str, place: str = "", seconds: float | None = None) -> Grant:
    end = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
    made: Grant = GrantStore(database).create(NewGrant(uuid7_text(), user_id, role_id, place, end), mutation())
    return made


def test_roles_are_what_was_written(database: Database) -> None:
    store = RoleStore(database)
    top = role(database, "a:b")
    low = role(database, "c:d", "e:f", parents=[top.id])

    assert store.get("id", low.id) == store.get("name", low.name_key) == low
    assert (list(low.permissions), list(low.parent_ids), low.version) == (["c:d", "e:f"], [top.id], 1)
    values = new_role("x:y", id=low.id, name="ignored")
    changed: Role = store.update(RoleChange(1, ["permissions", "parent_ids"], values), mutation())
    assert (changed.name, list(changed.permissions), list(changed.parent_ids)) == (low.name, ["x:y"], [])
    with pytest.raises(RoleCycleError) as caught:
        store.update(RoleChange(None, ["parent_ids"], new_role(id=top.id, parents=[top.id])), mutation())
    assert caught.value.metadata == {"way": f"{top.name} → {top.name}"}
    store.delete(Removal(low.id, 2, revoke_grants=False, detach_children=False), mutation())
    assert store.get("id", low.id) is None


def test_grants_are_what_was_written(database: Database, ann: str) -> None:
    store = GrantStore(database)
    given = role(database, "a:b")
    made = grant(database, ann, given.id, "a/", 60)
    listing = GrantListing(10, ann, given.id, "a/", None)

    assert store.list_page(listing) == [made]
    changed: Grant = store.update(made.id, 1, None, mutation())
    assert (changed.expire_time, changed.version) == (None, 2)
    with pytest.raises(GrantExistsError):
        grant(database, ann, given.id, "a/")
    gone: Grant = store.revoke(made.id, 2, mutation())
    assert gone == changed
    assert store.list_page(listing) == []


def test_holdings_and_the_roles_that_are_not_known(database: Database, ann: str) -> None:
    store = AccessStore(database)
    top = role(database, "a:b")
    low = role(database, "c:d", parents=[top.id])
    grant(database, ann, low.id, "a/", 60)
    grant(database, ann, top.id)
    nobody = uuid7_text()

    (held,), nodes = store.holdings([ann, nobody], b"")

    assert (held.user_id, held.state) == (ann, "A")
    parts = (held.grants or "").split(" ")
    assert set(zip(parts[::2], parts[1::2], strict=True)) == {(str(low.number), "a/"), (str(top.number), "")}
    assert held.seconds is not None
    assert 50 < held.seconds <= 60
    found = {each.number: (each.id, list(each.parents), list(each.permissions)) for each in nodes}
    assert found == {top.number: (top.id, [], ["a:b"]), low.number: (low.id, [top.number], ["c:d"])}
    known = bytearray(top.number // 8 + 1)
    known[top.number // 8] |= 1 << top.number % 8
    assert [each.number for each in store.holdings([ann], bytes(known))[1]] == [low.number]
    assert [each.number for each in store.roles([low.number], bytes(known))] == [low.number]
    assert {each.number for each in store.roles([low.number], b"")} == {low.number, top.number}


def test_the_account_of_a_user(database: Database, ann: str) -> None:
    store = AccessStore(database)
    given = role(database, "a:b")
    made = grant(database, ann, given.id, "a/", 60)

    account = store.account(ann)

    assert account is not None
    assert (account.state, [tuple(each) for each in account.held]) == (State.ACTIVE, [(given.number, made)])
    way = account.explain(frozenset({"a:b"}), "a/b/")
    assert way is not None
    assert way.grant == made
    assert dict(account.permissions(None)) == {("a:b", "a/"): made.expire_time}
    assert store.account(uuid7_text()) is None


def test_holders_page_by_page(database: Database) -> None:
    store = AccessStore(database)
    given = role(database, f"{uuid4().hex}:read")
    ids = sorted(user(database) for _ in range(5))
    for user_id in ids:
        grant(database, user_id, given.id, "a/")
        grant(database, user_id, given.id, "a/b/", 60)

    first = store.holders(HolderListing(given.permissions, around("a/b/"), None, 3))
    rest = store.holders(HolderListing(given.permissions, around("a/b/"), first[-1].user_id, 3))

    assert [(each.user_id, each.expire_time) for each in first + rest] == [(user_id, None) for user_id in ids]


def test_what_has_expired_is_removed_once_by_many(database: Database, ann: str, admin_dsn: str) -> None:
    made = [grant(database, ann, role(database).id, seconds=60) for _ in range(20)]
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("UPDATE users.grants SET expire_time = now() - interval '1 s' WHERE user_id = %s", [ann])
        counts: list[int] = []
        threads = [threading.Thread(target=lambda: counts.append(GrantStore(database).expire())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)

        assert sum(counts) == 20
        told = admin.execute(
            "SELECT body->>'grant_id' FROM users.change WHERE record_id = %s AND body->>'event' = 'grant_expired'",
            [ann],
        ).fetchall()
        assert sorted(row[0] for row in told) == sorted(each.id for each in made)
    assert GrantStore(database).expire() == 0


@pytest.mark.parametrize(
    ("removed", "refusal"), [("users", UserNotFoundError), ("roles", RoleNotFoundError)], ids=["user", "role"]
)
def test_what_is_removed_while_it_is_granted(
    database: Database, ann: str, admin_dsn: str, removed: str, refusal: type[Exception]
) -> None:
    """The snapshot of the write has it still; the key of the table waits, and refuses."""
    given = role(database, "a:b")
    with psycopg.connect(admin_dsn) as admin, ThreadPoolExecutor(1) as threads:
        remove = f"DELETE FROM users.{removed} WHERE id = %s"
        admin.execute(remove, [ann if removed == "users" else given.id])  # type: ignore[arg-type]  # not literal
        granting = threads.submit(grant, database, ann, given.id)
        with psycopg.connect(admin_dsn, autocommit=True) as other:
            waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            eventually(lambda: other.execute(waiting).fetchone() is not None or granting.done(), LIMIT)
        admin.commit()
        with pytest.raises(refusal):
            granting.result(LIMIT)
