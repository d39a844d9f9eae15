"""What streams are told: everything once and in order, however they join, lag, resume and end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from kronos_db.runtime.database.changes import Position
from kronos_db.runtime.errors import (
    PositionLostError,
    ResumeTokenError,
    ShuttingDownError,
    TooManyStreamsError,
    UnavailableError,
    WatchTooSlowError,
)
from kronos_db.runtime.feed.feed import Feed, Pace
from kronos_db.runtime.feed.limits import CallerStreams
from kronos_db.runtime.feed.subscription import Wanted
from kronos_db.runtime.feed.tokens import ResumeTokens
from kronos_db.runtime.pusher import Pusher
from tests.parts.eventually import eventually
from tests.runtime.feed.parts import MemoryLog, MemoryOutlet, message

TOKENS = ResumeTokens(b"k" * 32, "test")
ALL = Wanted(frozenset({"test"}))
PACE = Pace(page=4, poll=0.02, interval=0.001, most=6)


class World:
    """A feed over a log in memory."""

    def __init__(self, limit: int = 100, **pace: Any) -> None:
        self.log = MemoryLog()
        self.pusher = Pusher()
        self.pusher.start()
        self.streams = CallerStreams(limit)
        self.pace = replace(PACE, **pace)
        self.feeds: list[Feed] = []
        self.feed = self.another_feed()

    def another_feed(self) -> Feed:
        """A feed over the same log, as another process has it."""
        self.feeds.append(Feed(self.log, TOKENS, self.pusher, self.streams, self.pace))
        return self.feeds[-1]

    def watch(self, token: str = "", wanted: Wanted = ALL, feed: Feed | None = None, **kw: Any) -> MemoryOutlet:
        """Watch, and wait for the first message."""
        outlet = MemoryOutlet(**kw)
        (feed or self.feed).watch(outlet, token, wanted, message)
        eventually(lambda: outlet.messages or outlet.error)
        return outlet

    def token(self, seen: int) -> str:
        """The token of who has the first `seen` changes."""
        return TOKENS.make(Position(f"{seen + 1}:{seen + 1}:", history=self.log.history))

    def close(self) -> None:
        for feed in self.feeds:
            feed.close()
        self.pusher.stop()


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(**changes: Any) -> World:
        made.append(World(**changes))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


def names(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


def test_a_stream_begins_with_its_position_and_now(world: World) -> None:
    world.log.append(*names(1, 3))
    outlet = world.watch()
    world.log.append(*names(4, 5))

    eventually(lambda: outlet.told == ["4", "5"])
    assert outlet.messages[0][0] is None
    assert TOKENS.read(outlet.messages[0][1]) == Position("4:4:", history="here.1")


def test_waking_is_faster_than_looking(make_world: Callable[..., World]) -> None:
    slow = make_world(poll=30.0)
    outlet = slow.watch()
    slow.log.append("1")

    slow.feed.wake()

    eventually(lambda: outlet.told == ["1"])


def test_nobody_watches_nothing_is_read(world: World) -> None:
    world.feed.wake()
    outlet = world.watch()
    outlet.close()
    eventually(lambda: world.feed.watched == 0)
    reads = world.log.reads

    world.log.append("1")
    world.feed.wake()
    another = world.watch()

    assert another.told == []
    # One look at where the log is, none at what was appended meanwhile.
    assert world.log.reads <= reads + 2


def test_one_read_serves_all(make_world: Callable[..., World]) -> None:
    patient = make_world(poll=30.0)
    outlets = [patient.watch() for _ in range(20)]
    reads = patient.log.reads
    patient.log.append("1")

    patient.feed.wake()

    eventually(lambda: all(outlet.told == ["1"] for outlet in outlets))
    assert patient.log.reads == reads + 1


@pytest.mark.parametrize("seen", [0, 1, 3, 4, 8, 9, 10])
def test_a_stream_resumes_behind_what_it_has_and_joins(world: World, seen: int) -> None:
    world.log.append(*names(1, 10))
    other = world.watch()
    outlet = world.watch(world.token(seen))
    world.log.append(*names(11, 13))

    eventually(lambda: outlet.told == names(seen + 1, 13))
    assert other.told == names(11, 13)
    # The position from which it goes on comes first.
    assert outlet.messages[0] == (None, world.token(seen))


def test_every_token_resumes_exactly_behind_its_message(world: World) -> None:
    world.log.append(*names(1, 9))
    outlet = world.watch(world.token(0))
    eventually(lambda: outlet.told == names(1, 9))

    for index, (record, token) in enumerate(outlet.messages):
        again = world.watch(token)
        rest = [name for name, _ in outlet.messages[index + 1 :] if name]
        eventually(lambda: again.told == rest, why=lambda: f"{record}: {again.told}")  # noqa: B023  # waited for


def test_it_joins_while_the_log_grows(world: World) -> None:
    """Each read finds more than the one before, from two sides: nothing falls between, nothing comes twice."""
    counter = iter(range(21, 200))

    def grow(_position: Position) -> None:
        if len(world.log.changes) < 120:
            world.log.append(str(next(counter)))

    world.log.append(*names(1, 20))
    world.log.before_read = grow
    outlets = [world.watch(world.token(seen)) for seen in (0, 5, 19, 20)]
    joined = world.watch()

    eventually(lambda: all(outlet.told[-1:] == ["120"] for outlet in [*outlets, joined]))
    for seen, outlet in zip((0, 5, 19, 20), outlets, strict=True):
        assert outlet.told == names(seen + 1, 120)
    assert joined.told == names(int(joined.told[0]), 120)


def test_a_token_of_a_process_that_is_ahead(make_world: Callable[..., World]) -> None:
    """This process has not read for a while; the stream must not be told again what it has."""
    patient = make_world(poll=30.0)
    first = patient.watch()
    patient.log.append(*names(1, 6))
    ahead = patient.watch(feed=patient.another_feed())
    patient.log.append("7")

    resumed = patient.watch(ahead.token)

    eventually(lambda: resumed.told == ["7"] and first.told == names(1, 7))


def test_a_token_from_the_future_is_lost(world: World) -> None:
    outlet = world.watch(world.token(5))

    eventually(lambda: isinstance(outlet.error, PositionLostError))


def test_tokens_of_what_was_purged_and_of_another_history_are_lost(world: World) -> None:
    world.log.append(*names(1, 5))
    expired, valid = world.token(1), world.token(3)
    world.log.purged = 2
    foreign = TOKENS.make(Position("4:4:", history="elsewhere.1"))

    for token in (expired, foreign):
        outlet = world.watch(token)
        eventually(lambda: isinstance(outlet.error, PositionLostError))  # noqa: B023  # waited for
    assert world.watch(valid).error is None


def test_a_failover_ends_those_who_watched(world: World) -> None:
    outlet = world.watch()
    world.log.history = "here.2"

    eventually(lambda: isinstance(outlet.error, PositionLostError))
    fresh = world.watch()
    world.log.append("1")
    eventually(lambda: fresh.told == ["1"])


def test_filters(world: World) -> None:
    mine = world.watch(wanted=Wanted(frozenset({"test"}), frozenset({"a", "c"})))
    others = world.watch(wanted=Wanted(frozenset({"test", "other"})))
    world.log.append("a", "b")
    world.log.append("a", kind="other")
    world.log.append("c")

    eventually(lambda: mine.told == ["a", "c"])
    eventually(lambda: others.told == ["a", "b", "a", "c"])


def test_a_filtered_stream_resumes_through_pages_that_are_not_for_it(world: World) -> None:
    world.log.append(*names(1, 30), "mine", *names(32, 50))

    outlet = world.watch(world.token(0), wanted=Wanted(frozenset({"test"}), frozenset({"mine"})))

    eventually(lambda: outlet.told == ["mine"])
    eventually(lambda: TOKENS.read(outlet.token) == TOKENS.read(world.token(31)) or TOKENS.read(outlet.token).until)


def test_quiet_streams_are_told_where_they_are(make_world: Callable[..., World]) -> None:
    brief = make_world(quiet=0.03)
    outlet = brief.watch(wanted=Wanted(frozenset({"test"}), frozenset({"mine"})))
    brief.log.append(*names(1, 5))

    eventually(lambda: outlet.messages[-1] == (None, brief.token(5)))
    assert outlet.told == []


# Who cannot keep up


def test_who_lags_reads_for_himself_and_is_told_everything(world: World) -> None:
    slow, fast = world.watch(takes=False), world.watch()
    for first in range(1, 60, 3):
        world.log.append(*names(first, first + 2))
        eventually(lambda: fast.told == names(1, len(world.log.changes)))

    slow.take_all()
    eventually(lambda: slow.told == names(1, 60))
    world.log.append("61")
    eventually(lambda: slow.told == names(1, 61))


def test_what_waits_for_one_stream_is_bounded(make_world: Callable[..., World]) -> None:
    bounded = make_world(most=1000, most_bytes=10_000)
    slow = bounded.watch(takes=False)
    (subscription,) = bounded.feed._joined
    fast = bounded.watch()
    for number in range(1, 50):
        bounded.log.append(str(number), size=3000)
        eventually(lambda: fast.told == names(1, number))  # noqa: B023  # waited for
        assert subscription.waiting_bytes <= 10_000

    slow.take_all()
    eventually(lambda: slow.told == names(1, 49))


def test_who_takes_nothing_is_ended_and_told(make_world: Callable[..., World]) -> None:
    world = make_world(stall=0.05, linger=0.05)
    lazy = world.watch(takes=False)
    busy = world.watch()

    eventually(lambda: isinstance(lazy.error, WatchTooSlowError))
    # Takes the end of the stream no more than its messages.
    eventually(lambda: lazy.cancelled)
    assert world.streams.held("friend") == 1
    assert busy.error is None


def test_a_slow_reader_is_not_a_lazy_one(world: World) -> None:
    world.log.append(*names(1, 30))
    slow = world.watch(world.token(0), takes=False)

    while len(slow.told) < 30 and slow.error is None:
        count = len(slow.messages)
        slow.take()
        eventually(lambda: len(slow.messages) > count or slow.error)  # noqa: B023  # waited for

    assert slow.told == names(1, 30)


def test_a_message_that_cannot_be_made_ends_its_stream_alone(world: World) -> None:
    def broken(_noted: Any, _token: str) -> Any:
        raise ZeroDivisionError

    outlet = MemoryOutlet()
    world.feed.watch(outlet, "", ALL, broken)

    eventually(lambda: isinstance(outlet.error, ZeroDivisionError))
    eventually(lambda: world.feed.watched == 0)
    world.log.append("1")
    assert world.watch(world.token(0)).error is None


# The database is away


def test_who_comes_while_the_database_is_away_is_refused_and_who_watches_waits(world: World) -> None:
    there = world.watch()
    world.log.away = UnavailableError("away")

    newcomer, resuming = world.watch(), world.watch(world.token(0))
    assert isinstance(newcomer.error, UnavailableError)
    assert isinstance(resuming.error, UnavailableError)
    world.log.append("1")
    assert there.error is None
    world.log.away = None

    eventually(lambda: there.told == ["1"])


def test_the_database_goes_away_between_two_pages(world: World) -> None:
    outlet = world.watch()
    failed = threading.Event()

    def away_in_the_middle(position: Position) -> None:
        if position.until and not failed.is_set():
            failed.set()
            raise UnavailableError("away")

    world.log.before_read = away_in_the_middle
    world.log.append(*names(1, 10))

    eventually(lambda: outlet.told == names(1, 10))
    assert failed.is_set()


def test_what_nobody_foresaw_does_not_end_the_feed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    outlet = world.watch()

    def broken(_position: Position) -> None:
        world.log.before_read = lambda _position: None
        raise ZeroDivisionError

    world.log.before_read = broken
    world.log.append("1")

    eventually(lambda: outlet.told == ["1"])


# Limits and ends


def test_one_caller_holds_so_many_streams(make_world: Callable[..., World]) -> None:
    narrow = make_world(limit=2)
    first, _second = narrow.watch(), narrow.watch()

    with pytest.raises(TooManyStreamsError) as refused:
        narrow.watch()
    assert refused.value.retry_after
    other = narrow.watch(caller="stranger")
    first.close()
    third = narrow.watch()

    assert other.error is None
    assert third.error is None


def test_a_token_that_is_none_takes_no_room(world: World) -> None:
    with pytest.raises(ResumeTokenError):
        world.watch("nonsense")

    assert world.streams.held("friend") == 0


def test_who_left_before_he_was_served_is_forgotten(world: World) -> None:
    outlet = MemoryOutlet(is_closed=True)

    world.feed.watch(outlet, "", ALL, message)

    assert world.streams.held("friend") == 0
    assert outlet.messages == []


def test_closing_ends_all_and_refuses_new_ones(world: World) -> None:
    outlets = [world.watch() for _ in range(3)]
    stuck = world.watch(takes=False)

    world.feed.close()

    assert all(isinstance(outlet.error, ShuttingDownError) for outlet in [*outlets, stuck])
    assert stuck.cancelled
    with pytest.raises(ShuttingDownError):
        world.watch()
