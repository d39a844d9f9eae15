"""Looks at parts again and again while somebody asks, each on a thread of its own, so that none holds up the others."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import structlog

from kronos_db.runtime import deadline
from kronos_db.runtime.errors import KronosError, OverloadedError

Value = TypeVar("Value")

# Seconds between the beginnings of two looks, after which a look without an answer says that the part is down, and for
# which looking goes on after somebody has asked.
PACE, PATIENCE, WANTED = 0.5, 1.0, 60.0
# Seconds that who asks for parts waits for those that were not looked at of late.
_FIRST_LOOK = 0.03

_log = structlog.get_logger(__name__)


class State(enum.IntEnum):
    """How a part is; the numbers are those of the contract."""

    OK = 1
    DEGRADED = 2
    DOWN = 3
    UNKNOWN = 4


@dataclass(frozen=True, slots=True)
class Health:
    """How a part is, in one sentence why it is not OK, and when it answered last: `latency` in seconds."""

    state: State
    detail: str = ""
    latency: float | None = None
    answer_time: datetime | None = None


class DegradedError(KronosError):
    """A part answers, but has less than it should; the text is one sentence."""

    def __init__(self, detail: str, value: object) -> None:
        super().__init__(detail)
        self.value = value


class Watched(Generic[Value]):
    """One part. `look` returns what there is to tell of it, and raises when it is down.

    `rest` is called when nobody has asked for a minute. `look` has a deadline in `runtime/deadline.py`.
    """

    def __init__(self, name: str, look: Callable[[], Value], rest: Callable[[], None] = lambda: None) -> None:
        self.name = name
        # What was told last, also of a part that is down since.
        self.value: Value | None = None
        self._look = look
        self._rest = rest
        self._wanted_until = 0.0
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        # time.monotonic() at which the look that is under way began; None between two.
        self._begun: float | None = None
        self._seen = Health(State.UNKNOWN, "has not been asked yet")
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch {name}", daemon=True)

    def start(self) -> None:
        """Begin to look, once somebody asks."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a look that is under way runs out by itself."""
        self._stopping.set()
        self._wanted.set()

    def want(self) -> None:
        """Have it looked at from now on."""
        self._wanted_until = time.monotonic() + WANTED
        self._wanted.set()

    def wait(self, seconds: float) -> None:
        """Return when it was looked at since it is wanted, or after `seconds`."""
        self._first.wait(seconds)

    @property
    def health(self) -> Health:
        """How it is, as far as was seen."""
        begun, seen = self._begun, self._seen
        silent = 0.0 if begun is None else time.monotonic() - begun
        if silent < PATIENCE:
            return seen
        return Health(State.DOWN, f"has not answered for {silent:.0f} s", seen.latency, seen.answer_time)

    def _watch(self) -> None:
        while not self._stopping.is_set():
            if time.monotonic() >= self._wanted_until:
                self._go_to_rest()
                self._wanted.wait()
                continue
            self._begun = begun = time.monotonic()
            deadline.current.set(begun + PATIENCE)
            self._seen = self._looked(begun)
            self._begun = None
            self._first.set()
            self._stopping.wait(max(0.0, begun + PACE - time.monotonic()))
        self._rest()

    def _looked(self, begun: float) -> Health:
        before = self._seen
        try:
            self.value = self._look()
            state, detail = State.OK, ""
        except DegradedError as error:
            held: Any = error.value
            self.value = held
            state, detail = State.DEGRADED, str(error)
        except OverloadedError as error:
            return Health(State.DEGRADED, str(error), before.latency, before.answer_time)
        except (KronosError, OSError) as error:
            return Health(State.DOWN, str(error) or type(error).__name__, before.latency, before.answer_time)
        except Exception as error:  # noqa: BLE001  # logged: the thread must go on
            _log.exception("a part could not be looked at", part=self.name)
            return Health(State.UNKNOWN, type(error).__name__, before.latency, before.answer_time)
        return Health(state, detail, time.monotonic() - begun, datetime.now(UTC))

    def _go_to_rest(self) -> None:
        self._wanted.clear()
        if time.monotonic() < self._wanted_until or self._stopping.is_set():
            # Somebody asked in between.
            self._wanted.set()
            return
        self._first.clear()
        self._seen = Health(State.UNKNOWN, "has not been asked of late", answer_time=self._seen.answer_time)
        self._rest()


def ask(parts: Iterable[Watched[Any]]) -> None:
    """Have all parts looked at, and wait a moment for those that have not been of late."""
    wanted = list(parts)
    for part in wanted:
        part.want()
    give_up = time.monotonic() + _FIRST_LOOK
    for part in wanted:
        part.wait(max(0.0, give_up - time.monotonic()))
