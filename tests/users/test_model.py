"""Rules of users that need neither SQL nor gRPC."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from kronos_db.users import model
from kronos_db.users.model import Order, State


def _user() -> model.User:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    return model.User("00000000-0000-0000-0000-000000000007", "Ann", "ann", None, None, "", {}, 1, 1, at, at, None)


@pytest.mark.parametrize("order", Order)
def test_the_sort_key_is_what_the_order_goes_by(order: Order) -> None:
    by_name = order in {Order.USERNAME_ASCENDING, Order.USERNAME_DESCENDING}

    assert order.by_username == by_name
    assert order.key_of(_user()) == (
        ["ann"] if by_name else ["2026-01-02T03:04:05.678901+00:00", "00000000-0000-0000-0000-000000000007"]
    )


def test_transitions() -> None:
    assert model.SUSPEND.allowed == [State.ACTIVE]
    assert model.REACTIVATE.allowed == [State.SUSPENDED]
    for transition in (model.DELETE, model.UNDELETE):
        # Whatever state it is in, it keeps.
        assert (set(transition.allowed), transition.to_state) == (set(State), None)
    assert model.UNDELETE.from_deleted
    assert not any(change.from_deleted for change in (model.SUSPEND, model.REACTIVATE, model.DELETE))


@pytest.mark.parametrize(("constraint", "kind"), model.TAKEN.items())
def test_what_is_taken_names_its_field(constraint: str, kind: type[model.TakenError]) -> None:
    error = kind("users[3]")

    assert error.metadata == {"field": f"users[3].{kind.field}"}
    assert [violation.field for violation in error.violations] == [f"users[3].{kind.field}"]
    assert constraint == ("users_pkey" if kind.field == "id" else f"users_{kind.field}")
    assert "{field}" in model.ERRORS[kind].sentence
