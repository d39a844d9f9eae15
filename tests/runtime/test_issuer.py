"""Which methods send which statements."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kronos_db.runtime import issuer
from kronos_db.runtime.issuer import Issued


@pytest.fixture(autouse=True)
def _no_method_is_at_hand() -> Iterator[None]:
    """Whatever calls a test before has made on this thread."""
    token = issuer.current.set("")
    yield
    issuer.current.reset(token)


def test_every_pair_is_told_once() -> None:
    issued = Issued()
    for method in ("S/A", "S/B", "S/A", ""):
        token = issuer.current.set(method)
        issued.note("SELECT 1")
        issuer.current.reset(token)
    assert sorted(issued.take()) == [("", "SELECT 1"), ("S/A", "SELECT 1"), ("S/B", "SELECT 1")]
    issued.note("SELECT 1")
    assert issued.take() == []


def test_what_could_not_be_told_is_told_later() -> None:
    issued = Issued()
    issued.note("SELECT 1")
    pairs = issued.take()
    issued.give_back(pairs)
    assert issued.take() == pairs


def test_texts_that_are_made_anew_each_time_do_not_fill_the_memory() -> None:
    issued = Issued()
    for number in range(issuer.MOST + 10):
        issued.note(f"SELECT {number}")
    assert len(issued.take()) == issuer.MOST
