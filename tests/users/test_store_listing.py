"""UsersStore: every order and filter, and pages that lose and double nothing."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from kronos_db.users import model
from kronos_db.users.model import Order, State
from kronos_db.users.store import UsersStore
from tests.parts.domain import LIMIT, mutation
from tests.users.stored import batch, create, listing, names, new, walk


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
