"""What was done to an index on advice, and how to tell whether it helped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import NamedTuple

from kronos_db.admin.advice import Kind
from kronos_db.runtime.errors import KronosError

# Calls that a statement must have had before its mean says something.
ENOUGH_CALLS = 20
# A new index has helped when one of its statements takes at most this share of what it took.
_FASTER = 0.9
# A dropped one is missed when a statement takes so many times as long, and so many ms more.
_SLOWER = 2.0
_SLOWER_BY_MS = 1.0


class AdviceGoneError(KronosError):
    """What was advised is no longer advised: something has changed since."""


class ChangeRunningError(KronosError):
    """An index is being changed already."""


class NotOwnerError(KronosError):
    """The role of migrations may not change this table."""


class ChangeFailedError(KronosError):
    """PostgreSQL could not make the change; nothing of it is left."""


class ScratchMissingError(KronosError):
    """There is no database in which indexes can be tried out."""


class ScratchTakenError(KronosError):
    """The scratch database is in use, or holds a schema that is not ours."""


class ChangeState(Enum):
    """How a change stands. DONE: it is not known yet whether it helped."""

    RUNNING = 1
    DONE = 2
    FAILED = 3
    KEPT = 4
    UNDONE = 5


class Mean(NamedTuple):
    """How often a statement was called in some time, and how long it took, in ms."""

    calls: int
    ms: float


@dataclass(frozen=True, slots=True)
class Change:
    """A change of an index. `before` has the statements concerned by their query ids."""

    id: str
    advice_id: str
    kind: Kind
    domain: str
    table: str
    index: str
    statement: str
    undo: str
    caller: str
    state: ChangeState
    detail: str
    before: Mapping[str, Mean]
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a change is: PostgreSQL's phase, the share of it that is done, and for how many sessions it waits."""

    phase: str = ""
    share: float = 0.0
    waiting_for: int = 0
    change: Change | None = None


class Verdict(NamedTuple):
    """Whether a change is to be kept, and why."""

    keep: bool
    why: str


def judge(change: Change, after: Mapping[str, Mean]) -> Verdict | None:
    """Return the verdict on a change of what its statements took `after` it; None while that says nothing yet."""
    if not change.undo or change.kind is Kind.INVALID:
        return Verdict(True, "There is nothing to undo.")
    told = {
        query: (before, after[query])
        for query, before in change.before.items()
        if query in after and after[query].calls >= ENOUGH_CALLS
    }
    if change.kind is Kind.MISSING:
        return _judge_new(told)
    return _judge_dropped(told)


def _judge_new(told: Mapping[str, tuple[Mean, Mean]]) -> Verdict | None:
    if not told:
        return None
    query, (before, after) = min(told.items(), key=lambda each: each[1][1].ms / max(each[1][0].ms, 1e-9))
    sentence = f"Statement {query} took {before.ms:.2f} ms before and {after.ms:.2f} ms after."
    return Verdict(after.ms <= _FASTER * before.ms, sentence)


def _judge_dropped(told: Mapping[str, tuple[Mean, Mean]]) -> Verdict | None:
    for query, (before, after) in told.items():
        if before.calls >= ENOUGH_CALLS and after.ms > _SLOWER * before.ms and after.ms > before.ms + _SLOWER_BY_MS:
            return Verdict(False, f"Statement {query} took {before.ms:.2f} ms before and {after.ms:.2f} ms after.")
    # Nobody missed it so far; somebody still may.
    return None
