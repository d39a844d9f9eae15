"""UsersStore: what changes a user, from which state and at which version."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kronos_db.users import model
from kronos_db.users.model import Change, State, User
from kronos_db.users.store import UsersStore
from tests.parts.domain import LIMIT, mutation
from tests.users.stored import TAKEN_BY, batch, create, get, new


@pytest.mark.parametrize(
    ("field", "column", "value"),
    [
        ("username", "username_key", "newname"),
        ("email", "email", "k1.new.new"),
        ("email", "email", None),
        ("phone", "phone", "k1.new.new"),
        ("display_name", "display_name", ""),
        ("attributes", "attributes", {"other": True}),
    ],
)
def test_update_changes_the_named_field_alone(store: UsersStore, field: str, column: str, value: Any) -> None:
    (before,) = create(store, new("a"))
    other = new("z", id=before.id, **{column: value})
    after = store.update(Change(before.id, before.version, [field], other), mutation())
    assert getattr(after, column) == value
    changed = {"version", "update_time", column, *(["username"] if field == "username" else [])}
    for name in User._fields:
        assert (getattr(after, name) == getattr(before, name)) == (name not in changed), name
    assert after.version == before.version + 1
    assert get(store, "id", before.id) == after


def test_update_finds_the_user_by_its_new_names(store: UsersStore) -> None:
    (user,) = create(store, new("a"))
    fields = ["username", "email", "phone", "display_name", "attributes"]
    store.update(Change(user.id, None, fields, new("b", id=user.id)), mutation())
    assert get(store, "username", "b") == get(store, "email", "mail-b")
    with pytest.raises(KeyError):
        get(store, "email", "mail-a")


@pytest.mark.parametrize(("column", "error", "field"), TAKEN_BY[1:])
def test_update_to_what_another_has(store: UsersStore, column: str, error: type[model.TakenError], field: str) -> None:
    user, other = create(store, *batch("a", "b"))
    values = new("c", id=user.id, **{column: getattr(other, column)})
    with pytest.raises(error) as caught:
        store.update(Change(user.id, None, [field], values), mutation())
    assert caught.value.violations[0].field == f"user.{field}"
    assert get(store, "id", user.id) == user


def test_changes_of_an_unknown_user(store: UsersStore) -> None:
    values = new("a")
    calls: list[Callable[[], object]] = [
        lambda: store.update(Change(values.id, 1, ["username"], values), mutation()),
        lambda: store.change_state(values.id, None, model.SUSPEND, mutation()),
        lambda: store.erase(values.id, None, mutation()),
        lambda: store.set_password_hash(values.id, None, "hash", mutation()),
    ]
    for call in calls:
        with pytest.raises(model.UserNotFoundError):
            call()


def test_changes_of_another_version(store: UsersStore) -> None:
    (user,) = create(store, new("a"))
    calls: list[Callable[[int], object]] = [
        lambda version: store.update(Change(user.id, version, ["username"], new("b", id=user.id)), mutation()),
        lambda version: store.change_state(user.id, version, model.SUSPEND, mutation()),
        lambda version: store.erase(user.id, version, mutation()),
        lambda version: store.set_password_hash(user.id, version, "hash", mutation()),
    ]
    for version in (0, 2, 999_999_999_999_999_999):
        for call in calls:
            with pytest.raises(model.EtagMismatchError):
                call(version)
    assert get(store, "id", user.id) == user
    credential = store.credential("id", user.id)
    assert credential is not None
    assert credential.password_hash is None


# From which state each change is allowed; the states are made by the changes before.
ACTIVE: list[model.Transition] = []
SUSPENDED = [model.SUSPEND]
DELETED = [model.DELETE]
SUSPENDED_DELETED = [model.SUSPEND, model.DELETE]


@pytest.mark.parametrize(
    ("before", "transition", "outcome"),
    [
        (ACTIVE, model.SUSPEND, (State.SUSPENDED, False)),
        (ACTIVE, model.REACTIVATE, "active"),
        (ACTIVE, model.DELETE, (State.ACTIVE, True)),
        (ACTIVE, model.UNDELETE, "active"),
        (SUSPENDED, model.SUSPEND, "suspended"),
        (SUSPENDED, model.REACTIVATE, (State.ACTIVE, False)),
        (SUSPENDED, model.DELETE, (State.SUSPENDED, True)),
        (SUSPENDED, model.UNDELETE, "suspended"),
        (DELETED, model.SUSPEND, "deleted"),
        (DELETED, model.REACTIVATE, "deleted"),
        (DELETED, model.DELETE, "deleted"),
        (DELETED, model.UNDELETE, (State.ACTIVE, False)),
        (SUSPENDED_DELETED, model.UNDELETE, (State.SUSPENDED, False)),
    ],
)
def test_transitions(
    store: UsersStore, before: list[model.Transition], transition: model.Transition, outcome: Any
) -> None:
    (user,) = create(store, new("a"))
    for step in before:
        user = store.change_state(user.id, user.version, step, mutation())
    if isinstance(outcome, str):
        with pytest.raises(model.UserStateError) as caught:
            store.change_state(user.id, user.version, transition, mutation())
        assert caught.value.metadata == {"state": outcome}
        assert get(store, "id", user.id) == user
    else:
        after = store.change_state(user.id, user.version, transition, mutation())
        assert (after.state, after.delete_time is not None) == outcome
        assert after.version == user.version + 1
        assert get(store, "id", user.id) == after


def test_deleted_users_are_not_updated(store: UsersStore) -> None:
    (user,) = create(store, new("a"))
    store.change_state(user.id, None, model.DELETE, mutation())
    calls: list[Callable[[], object]] = [
        lambda: store.update(Change(user.id, None, ["username"], new("b", id=user.id)), mutation()),
        lambda: store.set_password_hash(user.id, None, "hash", mutation()),
    ]
    for call in calls:
        with pytest.raises(model.UserStateError) as caught:
            call()
        assert caught.value.metadata == {"state": "deleted"}


def test_concurrent_updates_of_one_version_let_one_through(store: UsersStore) -> None:
    (user,) = create(store, new("a"))
    barrier = threading.Barrier(4, timeout=LIMIT)
    outcomes: list[str] = []

    def update(name: str) -> None:
        barrier.wait()
        try:
            change = Change(user.id, user.version, ["display_name"], new("a", display_name=name))
            outcomes.append(store.update(change, mutation()).display_name)
        except model.EtagMismatchError:
            outcomes.append("")

    threads = [threading.Thread(target=update, args=(f"name {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert outcomes.count("") == 3
    assert get(store, "id", user.id).display_name in outcomes


def test_erase_takes_credentials_along_and_frees_the_names(store: UsersStore, admin: psycopg.Connection[Any]) -> None:
    (user,) = create(store, new("a"))
    store.set_password_hash(user.id, None, "hash", mutation())
    store.erase(user.id, 2, mutation())
    with pytest.raises(KeyError):
        get(store, "id", user.id)
    assert admin.execute("SELECT count(*) FROM users.credentials").fetchone() == (0,)
    create(store, new("a"))
