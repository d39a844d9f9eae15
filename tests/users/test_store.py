"""UsersStore: creating, repeats, reading and passwords."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from kronos_db.runtime.errors import RequestIdReusedError
from kronos_db.runtime.identifiers import uuid7_text
from kronos_db.users import model
from kronos_db.users.model import Key, State
from kronos_db.users.store import UsersStore
from tests.parts.domain import LIMIT, mutation
from tests.users.stored import TAKEN_BY, batch, create, get, listing, names, new

# Creating


def test_create_returns_what_get_returns(store: UsersStore) -> None:
    wanted = new("ada")
    (created,) = create(store, wanted)
    for field in ("id", "username", "username_key", "email", "phone", "display_name", "attributes"):
        assert getattr(created, field) == getattr(wanted, field)
    assert (created.state, created.version, created.delete_time) == (State.ACTIVE, 1, None)
    assert created.create_time == created.update_time
    assert abs(created.create_time - datetime.now(UTC)) < timedelta(minutes=1)
    lookups: list[tuple[Key, str]] = [("id", wanted.id), ("username", "ada"), ("email", "mail-ada")]
    for key, value in lookups:
        assert get(store, key, value) == created


def test_create_without_email_and_phone(store: UsersStore) -> None:
    users = [new("one", email=None, phone=None, attributes={}), new("two", email=None, phone=None, display_name="")]
    assert [(user.email, user.phone) for user in create(store, *users)] == [(None, None)] * 2


def test_create_keeps_the_order_of_a_batch(store: UsersStore) -> None:
    users = batch(*(f"user{number}" for number in range(200)))[::-1]
    assert names(create(store, *users)) == [user.username_key for user in users]


@pytest.mark.parametrize(("column", "error", "field"), TAKEN_BY)
def test_create_names_the_item_that_conflicts_with_a_stored_user(
    store: UsersStore, column: str, error: type[model.TakenError], field: str
) -> None:
    (stored,) = create(store, new("stored"))
    users = batch("a", "b", "c", "d")
    users[2] = replace(users[2], **{column: getattr(stored, column)})
    with pytest.raises(error) as caught:
        create(store, *users)
    assert [violation.field for violation in caught.value.violations] == [f"users[2].{field}"]
    assert caught.value.metadata == {"field": f"users[2].{field}"}
    assert names(store.list_page(listing())) == ["stored"], "all or none"


@pytest.mark.parametrize(("column", "error", "field"), TAKEN_BY)
def test_create_names_the_second_of_two_items_that_conflict(
    store: UsersStore, column: str, error: type[model.TakenError], field: str
) -> None:
    users = batch("a", "b", "c", "d")
    users[3] = replace(users[3], **{column: getattr(users[1], column)})
    with pytest.raises(error) as caught:
        create(store, *users)
    assert [violation.field for violation in caught.value.violations] == [f"users[3].{field}"]
    assert store.list_page(listing()) == []


def test_create_names_the_first_of_many_conflicts(store: UsersStore) -> None:
    (stored,) = create(store, new("stored"))
    users = batch("a", "b", "c", "d", "e")
    users[1] = replace(users[1], email=stored.email)
    users[2] = replace(users[2], username_key="stored")
    users[4] = replace(users[4], id=users[3].id)
    with pytest.raises(model.EmailTakenError) as caught:
        create(store, *users)
    assert caught.value.violations[0].field == "users[1].email"


def test_an_item_that_is_itself_at_no_fault_is_not_named(store: UsersStore) -> None:
    """The first item and the second want one e-mail: the second is at fault, for that and for its username."""
    create(store, new("stored"))
    users = batch("a", "b")
    users[1] = replace(users[1], username_key="stored", email=users[0].email)
    with pytest.raises(model.TakenError) as caught:
        create(store, *users)
    assert caught.value.violations[0].field in {"users[1].username", "users[1].email"}


def test_a_sealed_email_conflicts_by_its_index_and_not_by_its_box(store: UsersStore) -> None:
    create(store, new("a", email="k1.box.same"))
    with pytest.raises(model.EmailTakenError):
        create(store, new("b", email="k1.another box.same"))
    create(store, new("c", email="k1.box.other"))


def test_create_races_for_one_name(store: UsersStore) -> None:
    barrier = threading.Barrier(6, timeout=LIMIT)
    outcomes: list[object] = []

    def race() -> None:
        barrier.wait()
        try:
            outcomes.append(create(store, new("wanted", id=uuid7_text(), email=None, phone=None))[0].id)
        except model.UsernameTakenError as error:
            outcomes.append(error.violations[0].field)

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    winners = [outcome for outcome in outcomes if outcome != "user.username"]
    assert len(winners) == 1
    assert outcomes.count("user.username") == 5
    assert get(store, "username", "wanted").id == winners[0]


# Repeats


def test_a_repeat_gets_the_first_answer(store: UsersStore) -> None:
    call = uuid.uuid4()
    first = store.create(batch("a", "b"), mutation(call))
    again = store.create(batch("a", "b"), mutation(call))
    assert again == first
    assert len(store.list_page(listing())) == 2


def test_a_repeat_after_the_user_changed_gets_the_first_answer(store: UsersStore) -> None:
    call = uuid.uuid4()
    (first,) = create(store, new("a"))
    suspended = store.change_state(first.id, first.version, model.SUSPEND, mutation(call))
    store.change_state(first.id, None, model.REACTIVATE, mutation())
    assert store.change_state(first.id, first.version, model.SUSPEND, mutation(call)) == suspended
    assert get(store, "id", first.id).state == State.ACTIVE


def test_one_request_id_with_another_body_is_refused(store: UsersStore) -> None:
    call = uuid.uuid4()
    store.create([new("a")], mutation(call))
    with pytest.raises(RequestIdReusedError) as caught:
        store.create([new("b")], mutation(call, fingerprint=b"another body"))
    assert caught.value.violations[0].field == "request_id"
    assert names(store.list_page(listing())) == ["a"]


def test_request_ids_of_two_callers_are_apart(store: UsersStore) -> None:
    call = uuid.uuid4()
    store.create([new("a")], mutation(call, caller="one"))
    store.create([new("b")], mutation(call, caller="two", fingerprint=b"another body"))
    assert names(store.list_page(listing())) == ["a", "b"]


def test_concurrent_repeats_create_once(store: UsersStore) -> None:
    call, barrier = uuid.uuid4(), threading.Barrier(6, timeout=LIMIT)
    answers: list[Any] = []

    def repeat() -> None:
        users = batch("a", "b")
        barrier.wait()
        answers.append(store.create(users, mutation(call)))

    threads = [threading.Thread(target=repeat) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(answers) == 6
    assert all(answer == answers[0] for answer in answers)
    assert len(store.list_page(listing())) == 2


def test_validate_only_says_the_same_and_leaves_nothing(store: UsersStore, admin: psycopg.Connection[Any]) -> None:
    (shown,) = store.create([new("a")], mutation(validate_only=True))
    assert shown.username_key == "a"
    create(store, new("b"))
    with pytest.raises(model.UsernameTakenError):
        store.create([new("b", email=None, phone=None)], mutation(validate_only=True))
    assert names(store.list_page(listing())) == ["b"]
    (rows,) = admin.execute("SELECT count(*) FROM users.idempotency").fetchone() or (None,)
    assert rows == 1


# Reading


def test_get_of_an_unknown_user(store: UsersStore) -> None:
    lookups: list[tuple[Key, str]] = [("id", uuid7_text()), ("username", "nobody"), ("email", "nobody")]
    for key, value in lookups:
        with pytest.raises(KeyError):
            get(store, key, value)


def test_get_many_passes_over_unknown_and_repeated_ids(store: UsersStore) -> None:
    one, two = create(store, *batch("one", "two"))
    assert store.get_many("id", [one.id, uuid7_text(), two.id, one.id]) == {one.id: one, two.id: two}
    assert store.get_many("id", []) == {}


def test_deleted_users_are_found_by_every_name(store: UsersStore) -> None:
    (user,) = create(store, new("a"))
    store.change_state(user.id, None, model.DELETE, mutation())
    for found in (get(store, "id", user.id), get(store, "username", "a"), get(store, "email", "mail-a")):
        assert found.delete_time is not None


# Passwords


def test_passwords(store: UsersStore) -> None:
    (user,) = create(store, new("a"))
    lookups: list[tuple[Key, str]] = [("id", user.id), ("username", "a"), ("email", "mail-a")]
    for key, value in lookups:
        assert store.credential(key, value) == model.Credential(user.id, State.ACTIVE, False, None)
    changed = store.set_password_hash(user.id, user.version, "first", mutation())
    assert changed.version == 2
    store.set_password_hash(user.id, None, "second", mutation())
    store.change_state(user.id, None, model.SUSPEND, mutation())
    store.change_state(user.id, None, model.DELETE, mutation())
    for key, value in lookups:
        assert store.credential(key, value) == model.Credential(user.id, State.SUSPENDED, True, "second")
    unknown: list[tuple[Key, str]] = [("id", uuid7_text()), ("username", "nobody"), ("email", "nobody")]
    for key, value in unknown:
        assert store.credential(key, value) is None


def test_an_upgraded_hash_does_not_bring_an_old_password_back(store: UsersStore) -> None:
    (user,) = create(store, new("a"))
    store.set_password_hash(user.id, None, "old", mutation())
    store.upgrade_password_hash(user.id, "old", "old upgraded")
    credential = store.credential("id", user.id)
    assert credential is not None
    assert credential.password_hash == "old upgraded"
    assert get(store, "id", user.id).version == 2, "no change that a caller could see"
    store.set_password_hash(user.id, None, "new", mutation())
    store.upgrade_password_hash(user.id, "old upgraded", "old again")
    credential = store.credential("id", user.id)
    assert credential is not None
    assert credential.password_hash == "new"


def test_a_failed_write_leaves_prepared_statements_usable(store: UsersStore) -> None:
    """A statement whose Parse was skipped in a failed pipeline must not be taken for prepared."""
    (user,) = create(store, new("a"))
    for number in range(6):
        with pytest.raises(model.UserNotFoundError):
            store.set_password_hash(uuid7_text(), None, "hash", mutation())
        with pytest.raises(model.UsernameTakenError):
            create(store, new("a", email=None, phone=None))
        store.set_password_hash(user.id, None, f"hash {number}", mutation())


def test_validate_only_leaves_prepared_statements_usable(store: UsersStore) -> None:
    """A ROLLBACK makes psycopg forget its statements, and the server must not lose one that came after."""
    (user,) = create(store, new("a"))
    for number in range(8):
        store.create([new("b")], mutation(validate_only=True))
        for _ in range(3):
            assert get(store, "username", "a").id == user.id
        store.set_password_hash(user.id, None, f"hash {number}", mutation())
