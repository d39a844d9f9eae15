"""Resume tokens come back as the position that they were made of, and nobody makes them up."""

from __future__ import annotations

import base64

import pytest

from kronos_db.runtime.database.changes import Position
from kronos_db.runtime.errors import ResumeTokenError
from kronos_db.runtime.feed.tokens import LONGEST, ResumeTokens

KEY = b"k" * 32
TOKENS = ResumeTokens(KEY, "users")


def busy(transactions: int) -> str:
    """Return a snapshot with so many transactions in progress."""
    in_progress = range(4_000_000_000, 4_000_000_000 + 7 * transactions, 7)
    return f"4000000000:5000000000:{','.join(map(str, in_progress))}"


@pytest.mark.parametrize(
    "position",
    [
        Position("727:727:"),
        Position("727:730:727,729", "731:735:734", 2**63 - 1, 1000, "7512345678901234567.00000001"),
        Position(busy(1000), busy(1000), 5, 5, "7512345678901234567.00000001"),
    ],
    ids=["plain", "in the middle", "busy"],
)
def test_a_token_comes_back_as_its_position(position: Position) -> None:
    token = TOKENS.make(position)

    assert TOKENS.read(token) == position
    assert len(token) <= LONGEST


def test_there_is_none_when_too_many_transactions_are_in_progress() -> None:
    assert TOKENS.make(Position(busy(60_000))) == ""


def _altered(token: str) -> list[str]:
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    return [
        base64.urlsafe_b64encode(raw[:index] + bytes([raw[index] ^ 1]) + raw[index + 1 :]).rstrip(b"=").decode()
        for index in range(len(raw))
    ]


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "nonsense",
        "ä",
        "A" * LONGEST,
        ResumeTokens(KEY, "routes").make(Position("1:1:")),
        ResumeTokens(b"o" * 32, "users").make(Position("1:1:")),
        *_altered(TOKENS.make(Position("1:1:"))),
    ],
)
def test_what_was_not_made_here_is_refused(token: str) -> None:
    with pytest.raises(ResumeTokenError) as refused:
        TOKENS.read(token)

    assert [violation.field for violation in refused.value.violations] == ["resume_token"]
