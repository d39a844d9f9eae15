"""UsersStore: the same tests straight, through a pgBouncer without and through one with prepared statements."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.errors import RequestIdReusedError
from kronos_db.runtime.identifiers import uuid7_text
from kronos_db.users import model
from kronos_db.users.model import Change, Key, Listing, NewUser, Order, State, User
from kronos_db.users.store import UsersStore
from tests.parts.domain import LIMIT, mutation, new_database, opened, settings_of

WAYS = {"direct": None, "pgbouncer_118": False, "pgbouncer_124": True}


@pytest.fixture(scope="module")
def admin_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with new_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="module", params=WAYS)
def users_database(
    request: pytest.FixtureRequest, admin_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    prepared = WAYS[request.param]
    way = None if prepared is None else request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    settings = settings_of(folder, admin_dsn, way, prepared_statements=prepared is not False, pool_max_size=3)
    with opened(settings) as database:
        yield database


@pytest.fixture
def admin(admin_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(admin_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def store(users_database: Database, admin: psycopg.Connection[Any]) -> UsersStore:
    admin.execute("TRUNCATE users.users, users.grants, users.credentials, users.idempotency")
    return UsersStore(users_database)


def get(store: UsersStore, key: Key, value: str) -> User:
    """Return the one user of that name; KeyError when there is none."""
    return store.get_many(key, [value])[value]


def new(name: str, **changes: Any) -> NewUser:
    values = {
        "path": "user",
        "id": uuid7_text(),
        "username": name.upper(),
        "username_key": name,
        "email": f"k1.box-{name}.mail-{name}",
        "phone": f"k1.box-{name}.phone-{name}",
        "display_name": f"The {name}",
        "attributes": {"n": 1, "deep": {"list": [1, "ä", None, 1.5]}},
    }
    return NewUser(**{**values, **changes})


def batch(*names: str) -> list[NewUser]:
    return [new(name, path=f"users[{index}]") for index, name in enumerate(names)]


def create(store: UsersStore, *users: NewUser) -> list[User]:
    created: list[User] = store.create(users, mutation())
    return created


def listing(**changes: Any) -> Listing:
    values = {
        "limit": 10,
        "order": Order.OLDEST_FIRST,
        "state": None,
        "deleted": None,
        "create_time_from": None,
        "create_time_until": None,
        "username_prefix": "",
        "after": None,
    }
    return Listing(**{**values, **changes})


def walk(store: UsersStore, **changes: Any) -> Iterator[list[User]]:
    """Yield page after page, as a caller with page tokens sees them."""
    current = listing(**changes)
    while page := store.list_page(current):
        yield page
        current = replace(current, after=current.order.key_of(page[-1]))


def names(users: Sequence[User]) -> list[str]:
    return [user.username_key for user in users]


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


TAKEN_BY = [
    ("id", model.UserExistsError, "id"),
    ("username_key", model.UsernameTakenError, "username"),
    ("email", model.EmailTakenError, "email"),
    ("phone", model.PhoneTakenError, "phone"),
]


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


# Changing


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


# Listing


def test_every_order(store: UsersStore) -> None:
    for name in ("b", "d", "a", "c"):
        create(store, new(name))
    by_time = ["b", "d", "a", "c"]
    expected = {
        Order.OLDEST_FIRST: by_time,
        Order.NEWEST_FIRST: by_time[::-1],
        Order.USERNAME_ASCENDING: ["a", "b", "c", "d"],
        Order.USERNAME_DESCENDING: ["d", "c", "b", "a"],
    }
    assert set(expected) == set(Order)
    for order, wanted in expected.items():
        assert names(store.list_page(listing(order=order))) == wanted
        assert [names(page) for page in walk(store, order=order, limit=3)] == [wanted[:3], wanted[3:]]


@pytest.mark.parametrize("order", Order)
def test_pages_of_users_created_at_the_same_instant(store: UsersStore, order: Order) -> None:
    wanted = {user.username_key for user in batch(*(f"u{number}" for number in range(25)))}
    create(store, *batch(*wanted))
    seen = [name for page in walk(store, order=order, limit=4) for name in names(page)]
    assert len(seen) == len(wanted)
    assert set(seen) == wanted


def test_every_filter(store: UsersStore) -> None:
    early = create(store, *batch("ann", "anne", "bob"))
    (late,) = create(store, new("annika"))
    store.change_state(early[0].id, None, model.SUSPEND, mutation())
    store.change_state(early[1].id, None, model.DELETE, mutation())
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"state": State.SUSPENDED}, ["ann"]),
        ({"state": State.ACTIVE}, ["anne", "annika", "bob"]),
        ({"state": State.ACTIVE, "deleted": False}, ["annika", "bob"]),
        ({"deleted": True}, ["anne"]),
        ({"deleted": False}, ["ann", "annika", "bob"]),
        ({"create_time_from": late.create_time}, ["annika"]),
        ({"create_time_until": late.create_time}, ["ann", "anne", "bob"]),
        ({"create_time_from": late.create_time, "create_time_until": late.create_time}, []),
        ({"username_prefix": "ann"}, ["ann", "anne", "annika"]),
        ({"username_prefix": "ann", "deleted": False, "state": State.ACTIVE}, ["annika"]),
        ({"username_prefix": "%"}, []),
        ({"username_prefix": "a_n"}, []),
    ]
    for filters, wanted in cases:
        for order in Order:
            assert sorted(names(store.list_page(listing(order=order, **filters)))) == wanted, filters


@pytest.mark.parametrize("order", Order)
def test_pages_under_concurrent_inserts_lose_and_double_nothing(store: UsersStore, order: Order) -> None:
    standing = {f"m{number:03}" for number in range(60)}
    create(store, *batch(*sorted(standing)))
    stop, fail = threading.Event(), []

    def insert() -> None:
        count = 0
        while not stop.is_set():
            count += 1
            try:
                # Before, between and behind the standing ones.
                create(store, *(new(f"{letter}-{count}", email=None, phone=None) for letter in ("a", "m03", "z")))
            except Exception as error:  # noqa: BLE001  # told below
                fail.append(error)
                return

    thread = threading.Thread(target=insert)
    thread.start()
    try:
        pages = walk(store, order=order, limit=7)
        # As many pages as the standing ones need at least, and until all of them were seen.
        seen: list[str] = []
        for page in pages:
            seen += names(page)
            if standing <= set(seen):
                break
    finally:
        stop.set()
        thread.join(LIMIT)
    assert not fail
    assert standing <= set(seen), "lost"
    assert len(seen) == len(set(seen)), "doubled"
