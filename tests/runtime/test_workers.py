"""Worker threads: calls that arrive together share a fetch, and every call gets its own answer."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kronos_db.runtime import deadline
from kronos_db.runtime.errors import KronosError, OverloadedError, UnavailableError
from kronos_db.runtime.reception import Completion, Lane
from kronos_db.runtime.workers import Gatherer, Workers, _Lane, about_to_block
from tests.parts.eventually import eventually

_LIMIT = 10.0


class Fetching:
    """Finds the double of a number, nothing for negative ones, and notes what was asked for at once."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.poison: set[int] = set()
        self.gatherer: Gatherer[int, int] = Gatherer(self)

    def __call__(self, keys: Sequence[int]) -> Mapping[int, int]:
        self.asked.append(list(keys))
        if self.poison & set(keys):
            raise ValueError(f"poisoned by {sorted(self.poison & set(keys))}")
        return {key: 2 * key for key in keys if key >= 0}


@pytest.fixture
def fetching() -> Fetching:
    return Fetching()


@pytest.fixture
def one() -> Iterator[Workers]:
    """Workers with one thread."""
    workers = Workers(1)
    yield workers
    workers.shutdown()


class Jobs:
    """Runs functions on workers and collects what each returned or raised."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._done: list[threading.Event] = []
        self.results: dict[int, Any] = {}
        self.order: list[int] = []

    def add(self, function: Callable[[], Any]) -> None:
        """Queue a function."""
        number = len(self._done)
        done = threading.Event()
        self._done.append(done)

        def job() -> None:
            try:
                self.results[number] = function()
            except Exception as error:  # noqa: BLE001
                self.results[number] = error
            self.order.append(number)

        self._workers.submit(job).add_done_callback(lambda _: done.set())

    def wait(self) -> list[Any]:
        """Wait for all; return results in the order of adding."""
        assert all(done.wait(_LIMIT) for done in self._done)
        return [self.results[number] for number in range(len(self._done))]


def _held_up(workers: Workers) -> threading.Event:
    """Keep the one thread busy until the event is set, so that what is queued meanwhile arrives together."""
    go, busy = threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        assert go.wait(_LIMIT)

    workers.submit(block)
    assert busy.wait(_LIMIT)
    return go


def test_calls_that_arrive_together_share_a_fetch(one: Workers, fetching: Fetching) -> None:
    go = _held_up(one)
    jobs = Jobs(one)
    for key in (1, 2, 3, 2, -1, 3):
        jobs.add(lambda key=key: fetching.gatherer.get(key))  # type: ignore[misc]
    go.set()

    assert jobs.wait() == [2, 4, 6, 4, None, 6]
    assert fetching.asked == [[1, 2, 3, -1]]


def test_a_lone_call_waits_for_nobody(one: Workers, fetching: Fetching) -> None:
    for key in range(3):
        jobs = Jobs(one)
        jobs.add(lambda key=key: fetching.gatherer.get(key))  # type: ignore[misc]
        assert jobs.wait() == [2 * key]

    assert fetching.asked == [[0], [1], [2]]


def test_outside_of_workers_it_is_a_plain_fetch(fetching: Fetching) -> None:
    assert (fetching.gatherer.get(4), fetching.gatherer.get(-4)) == (8, None)
    fetching.poison.add(5)
    with pytest.raises(ValueError, match="poisoned by"):
        fetching.gatherer.get(5)
    about_to_block()


def test_a_poisoned_key_fails_alone(one: Workers, fetching: Fetching) -> None:
    fetching.poison.add(13)
    go = _held_up(one)
    jobs = Jobs(one)
    for key in (12, 13, 14, 13):
        jobs.add(lambda key=key: fetching.gatherer.get(key))  # type: ignore[misc]
    go.set()
    results = jobs.wait()

    assert (results[0], results[2]) == (24, 28)
    assert [str(results[number]) for number in (1, 3)] == ["poisoned by [13]"] * 2
    # Each was tried again alone, once.
    assert fetching.asked == [[12, 13, 14], [12], [13], [14]]


@pytest.mark.parametrize("kind", [UnavailableError, OverloadedError])
def test_a_database_that_is_away_is_asked_once_for_all(one: Workers, kind: type[KronosError]) -> None:
    asked: list[list[int]] = []

    def away(keys: Sequence[int]) -> Mapping[int, int]:
        asked.append(list(keys))
        raise kind

    gatherer = Gatherer(away)
    go = _held_up(one)
    jobs = Jobs(one)
    for key in (1, 2, 3):
        jobs.add(lambda key=key: gatherer.get(key))  # type: ignore[misc]
    go.set()
    results = jobs.wait()

    assert [type(results[number]) for number in range(3)] == [kind] * 3
    assert asked == [[1, 2, 3]]


def test_gatherers_do_not_mix(one: Workers) -> None:
    first, second = Fetching(), Fetching()
    second.poison.add(1)
    go = _held_up(one)
    jobs = Jobs(one)
    jobs.add(lambda: first.gatherer.get(1))
    jobs.add(lambda: second.gatherer.get(1))
    jobs.add(lambda: first.gatherer.get(2))
    go.set()
    results = jobs.wait()

    assert (results[0], results[2]) == (2, 4)
    assert isinstance(results[1], ValueError)
    assert first.asked == [[1, 2]]


def test_a_call_may_ask_again_and_again(one: Workers, fetching: Fetching) -> None:
    def chain(start: int) -> int | None:
        value: int | None = start
        for _ in range(3):
            assert value is not None
            value = fetching.gatherer.get(value)
        return value

    go = _held_up(one)
    jobs = Jobs(one)
    for start in (1, 5):
        jobs.add(lambda start=start: chain(start))  # type: ignore[misc]
    go.set()

    assert jobs.wait() == [8, 40]
    assert fetching.asked == [[1, 5], [2, 10], [4, 20]]


def test_before_a_call_blocks_those_set_aside_go_on(one: Workers, fetching: Fetching) -> None:
    go = _held_up(one)
    jobs = Jobs(one)
    finished: list[str] = []

    def ask() -> None:
        fetching.gatherer.get(1)
        finished.append("asked")

    def block() -> None:
        about_to_block()
        finished.append("blocked")

    jobs.add(ask)
    jobs.add(ask)
    jobs.add(block)
    jobs.add(ask)
    go.set()
    jobs.wait()

    # The last one came after the blocking one and is not waited for.
    assert finished == ["asked", "asked", "blocked", "asked"]
    assert fetching.asked == [[1], [1]]


def test_no_more_are_set_aside_than_the_limit(one: Workers, fetching: Fetching) -> None:
    go = _held_up(one)
    jobs = Jobs(one)
    for key in range(300):
        jobs.add(lambda key=key: fetching.gatherer.get(key))  # type: ignore[misc]
    go.set()

    assert jobs.wait() == [2 * key for key in range(300)]
    assert [len(keys) for keys in fetching.asked] == [128, 128, 44]


def test_each_call_keeps_its_own_deadline(one: Workers, fetching: Fetching) -> None:
    go = _held_up(one)
    jobs = Jobs(one)

    def timed(at: float) -> float | None:
        deadline.current.set(at)
        fetching.gatherer.get(1)
        return deadline.current.get()

    for at in (1.0, 2.0, 3.0):
        jobs.add(lambda at=at: timed(at))  # type: ignore[misc]
    go.set()

    assert jobs.wait() == [1.0, 2.0, 3.0]
    assert len(fetching.asked) == 1


def test_an_exception_ends_the_call_and_not_the_thread(one: Workers, fetching: Fetching) -> None:
    done = threading.Event()

    def fail() -> None:
        fetching.gatherer.get(1)
        raise ValueError("unexpected")

    one.submit(fail).add_done_callback(lambda _: done.set())
    assert done.wait(_LIMIT)

    jobs = Jobs(one)
    jobs.add(lambda: fetching.gatherer.get(2))
    assert jobs.wait() == [4]


def _alive(workers: Workers) -> list[str]:
    threads = [thread for lane in workers._lanes.values() if isinstance(lane, _Lane) for thread in lane.threads]
    assert threads
    return [thread.name for thread in threads if thread.is_alive()]


class TestLanes:
    """Threads and queues of their own for each domain and kind."""

    def _run(self, workers: Workers, lane: Lane, function: Callable[[], object]) -> threading.Event:
        done = threading.Event()
        completion = Completion()
        completion.add_done_callback(lambda _: done.set())
        workers._put(lane, (function, (), completion))
        return done

    @pytest.mark.parametrize("other", [Lane("b", "call"), Lane("a", "compute"), Lane("a", "stream")])
    def test_what_holds_the_threads_of_one_holds_none_of_another(self, other: Lane) -> None:
        workers, go = Workers(2, 2, 2), threading.Event()
        held = [self._run(workers, Lane("a", "call"), lambda: go.wait(_LIMIT)) for _ in range(5)]

        assert self._run(workers, other, lambda: None).wait(_LIMIT)

        eventually(lambda: workers.queued()[Lane("a", "call")] == 3)
        assert workers.queued()[other] == 0
        assert not any(done.is_set() for done in held)
        go.set()
        assert all(done.wait(_LIMIT) for done in held)
        assert workers.queued()[Lane("a", "call")] == 0
        workers.shutdown()

    def test_threads_say_whose_they_are_and_those_for_computing_are_prepared(self) -> None:
        prepared: list[str] = []
        names: list[str] = []
        workers = Workers(1, 1, 1, on_compute=lambda: prepared.append(threading.current_thread().name))

        for lane in (Lane("a", "call"), Lane("a", "compute"), Lane("b", "stream")):
            assert self._run(workers, lane, lambda: names.append(threading.current_thread().name)).wait(_LIMIT)

        assert names == ["worker-a-0", "compute-a-0", "stream-b_0"]
        assert prepared == ["compute-a-0"]
        workers.shutdown()

    def test_a_domain_that_nobody_calls_costs_no_thread(self) -> None:
        before = threading.active_count()
        workers = Workers(8)
        assert threading.active_count() == before
        assert workers.expected_wait(Lane("a", "call")) == 0
        workers.shutdown()

    def test_the_expected_wait_is_that_of_the_first_in_the_queue(self, monkeypatch: pytest.MonkeyPatch) -> None:
        workers, lane, gate = Workers(1), Lane("a", "call"), Gate()
        now = [100.0]
        monkeypatch.setattr("kronos_db.runtime.workers.time", SimpleNamespace(monotonic=lambda: now[0]))
        self._run(workers, lane, gate.wait)
        assert gate.waiting.wait(_LIMIT)
        assert workers.expected_wait(lane) == 0
        self._run(workers, lane, gate.wait)
        now[0] += 5
        # No more wait than there are threads: that is a hand-over, however slow.
        assert workers.expected_wait(lane) == 0

        self._run(workers, lane, gate.wait)
        assert workers.expected_wait(lane) == 5
        gate.let_one_through()
        eventually(lambda: workers.queued()[lane] == 1)
        assert workers.expected_wait(lane) == 0

        # The first in the queue came after that. Its wait is no guide to more, though four are in the queue now.
        for _ in range(3):
            self._run(workers, lane, gate.wait)
        now[0] += 1
        assert workers.expected_wait(lane) == 1
        for _ in range(6):
            gate.let_one_through()
        workers.shutdown()

    def test_a_queue_that_became_shorter_promises_less(self, monkeypatch: pytest.MonkeyPatch) -> None:
        workers, lane, gate = Workers(1), Lane("a", "call"), Gate()
        now = [100.0]
        monkeypatch.setattr("kronos_db.runtime.workers.time", SimpleNamespace(monotonic=lambda: now[0]))
        self._run(workers, lane, gate.wait)
        assert gate.waiting.wait(_LIMIT)
        for _ in range(10):
            self._run(workers, lane, gate.wait)
        now[0] += 10
        assert workers.expected_wait(lane) == 10
        for left in range(9, 1, -1):
            gate.let_one_through()
            eventually(lambda left=left: workers.queued()[lane] == left)  # type: ignore[misc]

        # The first in the queue came as the ninth, and two are left.
        assert workers.expected_wait(lane) == pytest.approx(10 * 2 / 9)
        for _ in range(3):
            gate.let_one_through()
        workers.shutdown()


class Gate:
    """Holds up whoever waits at it, and lets one through at a time."""

    def __init__(self) -> None:
        self._passes = threading.Semaphore(0)
        self.waiting = threading.Event()

    def wait(self) -> None:
        self.waiting.set()
        assert self._passes.acquire(timeout=_LIMIT)

    def let_one_through(self) -> None:
        self._passes.release()


def test_shutting_down_finishes_what_is_queued(fetching: Fetching) -> None:
    workers = Workers(3)
    jobs = Jobs(workers)
    for key in range(200):
        jobs.add(lambda key=key: fetching.gatherer.get(key))  # type: ignore[misc]

    workers.shutdown(wait=True)

    assert jobs.wait() == [2 * key for key in range(200)]
    assert not _alive(workers)


def test_shutting_down_without_waiting_ends_the_threads_too(fetching: Fetching) -> None:
    workers = Workers(2)
    jobs = Jobs(workers)
    jobs.add(lambda: fetching.gatherer.get(1))

    workers.shutdown(wait=False)

    assert jobs.wait() == [2]
    eventually(lambda: not _alive(workers))


@pytest.mark.parametrize("threads", [1, 4])
def test_thousands_of_calls_all_get_their_own_answer(threads: int) -> None:
    fetchings = [Fetching(), Fetching()]
    fetchings[0].poison = {number for number in range(500) if number % 50 == 7}
    workers = Workers(threads)
    jobs = Jobs(workers)
    senders = 4
    lock = threading.Lock()
    plans: list[list[tuple[str, int]]] = []

    def work(plan: list[tuple[str, int]]) -> list[Any]:
        found: list[Any] = []
        for what, key in plan:
            if what == "block":
                about_to_block()
                continue
            try:
                found.append(fetchings[what == "second"].gatherer.get(key))
            except ValueError:
                found.append("poisoned")
        return found

    def send(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(800):
            plan = [
                (chance.choice(["first", "second", "block"]), chance.randrange(-20, 500))
                for _ in range(chance.randrange(1, 5))
            ]
            with lock:
                plans.append(plan)
                jobs.add(lambda plan=plan: work(plan))  # type: ignore[misc]

    sending = [threading.Thread(target=send, args=(seed,)) for seed in range(senders)]
    for thread in sending:
        thread.start()
    for thread in sending:
        thread.join(_LIMIT)
    results = jobs.wait()
    workers.shutdown()

    def expected(what: str, key: int) -> Any:
        if what == "first" and key in fetchings[0].poison:
            return "poisoned"
        return 2 * key if key >= 0 else None

    for plan, result in zip(plans, results, strict=True):
        assert result == [expected(what, key) for what, key in plan if what != "block"]
