"""The threads that run calls, and the gathering of what concurrent calls ask for into one statement.

A worker thread runs each call in a greenlet. A call that asks a `Gatherer` for something is set aside; its thread
goes on with the next call in the queue. When the queue is empty, or enough calls are set aside, what they asked for
is fetched with one statement and each goes on with its own answer. So calls that arrive together share a round trip,
a call that arrives alone waits for nobody, no answer passes from thread to thread, and handlers read as if they were
alone. docs/decisions/0003-workers.md has the measurements.

What writes ask for is written by one thread at a time: what comes while it waits for the disk, and while its calls are
answered, is written together after that (group commit), instead of by as many threads as are free, each with a commit
of its own.

Each domain has threads and a queue of its own: the slow calls of one hold no thread of another. How many calls may be
queued is for the overload interceptor to say (docs/decisions/0006-overload.md).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar, cast

import structlog
from greenlet import getcurrent, greenlet

from kronos_db.runtime import deadline, issuer, tracing
from kronos_db.runtime.errors import DeadlineTooShortError, OverloadedError, StatementTimeoutError, UnavailableError
from kronos_db.runtime.parking import StepAside
from kronos_db.runtime.reception import Completion, Job, Lane, Reception, leave
from kronos_db.runtime.turn import Turn

Key = TypeVar("Key")
Value = TypeVar("Value")

_MOST_SET_ASIDE = 128
# No key is at fault, and trying each alone would hold the thread for as many time-outs as there are keys.
_OF_ALL = (UnavailableError, OverloadedError, StatementTimeoutError, DeadlineTooShortError)
_log = structlog.get_logger(__name__)


class Gatherer(Generic[Key, Value]):
    """Turns concurrent look-ups of one kind into one. `fetch` takes distinct keys and returns what it found of them.

    A look-up that fails because of one key fails for that key alone: the others are fetched again without it. When the
    database is away, full or too slow it fails for all at once: no key is at fault. `fetch` runs under the latest
    deadline of those that it fetches for.
    """

    def __init__(self, fetch: Callable[[Sequence[Key]], Mapping[Key, Value]]) -> None:
        self._fetch = fetch

    def get(self, key: Key) -> Value | None:
        """Return what `fetch` finds for `key`, None when it finds nothing; raises what it raises."""
        call = getcurrent()
        if isinstance(call, _Call):
            return cast("Value | None", call.worker.set_aside(call, self, key))
        return self._fetch([key]).get(key)

    def resolve(self, keys: Sequence[Key]) -> Mapping[Key, Value | Exception]:
        """Return for each of `keys` what was found or the exception that it caused; nothing for those not found."""
        try:
            return cast("Mapping[Key, Value | Exception]", self._fetch(keys))
        except _OF_ALL as error:
            return dict.fromkeys(keys, error)
        except Exception as error:  # noqa: BLE001  # handed to the calls that asked
            if len(keys) == 1:
                return {keys[0]: error}
        found: dict[Key, Value | Exception] = {}
        for key in keys:
            found |= self.resolve([key])
        return found


def about_to_block() -> None:
    """Let the calls that this thread has set aside go on first: to be called before anything that waits."""
    call = getcurrent()
    if isinstance(call, _Call):
        call.worker.settle(call)


class Workers:
    """The threads of all domains, started when a domain is first called; stands in for the pool of `grpc.server`.

    `calls`, `compute`, `streams` and `writes` are the most threads of one domain for each kind of call; by default as
    many for writes as for other calls. `on_compute` is run by each thread for what burns processor time, before its
    first call.
    """

    def __init__(
        self,
        calls: int,
        compute: int = 1,
        streams: int = 1,
        writes: int | None = None,
        *,
        on_compute: Callable[[], object] = lambda: None,
    ) -> None:
        self._calls = calls
        self._writes = writes or calls
        self._compute = compute
        self._streams = streams
        self._on_compute = on_compute
        # Filled by one thread, that of gRPC's events; read by others too.
        self._lanes: dict[Lane, _Lane | _StreamLane] = {}
        self._reception = Reception(self._put)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Completion:
        """Let a call in or refuse it, and queue it when its request has come."""
        completion = Completion()
        self._reception.receive((function, arguments, completion))
        return completion

    def post(self, name: Lane, work: Callable[[], None]) -> None:
        """Have a thread of a lane do `work`, behind the calls that are queued; the lane was called before."""
        self._put(name, (work, (), Completion()))

    def shutdown(self, wait: bool = True) -> None:
        """Let the threads end when their queues are empty."""
        for lane in self._opened():
            lane.close()
        if wait:
            for lane in self._opened():
                lane.join()

    def queued(self) -> dict[Lane, int]:
        """Return how many calls wait for a thread."""
        return {name: lane.queued() for name, lane in list(self._lanes.items())}

    def expected_wait(self, name: Lane) -> float:
        """Return for how many seconds, about, a call that came now would wait for a thread."""
        lane = self._lanes.get(name)
        return 0.0 if lane is None else lane.expected_wait()

    def as_executor(self) -> ThreadPoolExecutor:
        """Return itself under the type that gRPC's signatures ask for; gRPC uses `submit` and `shutdown` alone."""
        return cast("ThreadPoolExecutor", self)

    def _put(self, name: Lane, job: Job) -> None:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = self._open(name)
        lane.put(job)

    def _open(self, lane: Lane) -> _Lane | _StreamLane:
        if lane.kind == "stream":
            return _StreamLane(self._streams, f"stream-{lane.domain}")
        if lane.kind == "compute":
            return _Lane(self._compute, f"compute-{lane.domain}", self._on_compute)
        if lane.kind == "write":
            return _Lane(self._writes, f"writer-{lane.domain}", lambda: None, Turn())
        return _Lane(self._calls, f"worker-{lane.domain}", lambda: None)

    def _opened(self) -> list[_Lane | _StreamLane]:
        return list(self._lanes.values())


class _Lane:
    """One domain's queue of calls, and the threads that serve it."""

    def __init__(self, threads: int, name: str, first: Callable[[], object], turn: Turn | None = None) -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self.turn = turn
        # Of each call in the queue: time.monotonic() when it came, and how many were before it.
        self._waiting: deque[tuple[float, int]] = deque()
        self.threads = [_Worker(self, f"{name}-{number}", first) for number in range(threads)]
        for thread in self.threads:
            thread.start()

    def put(self, job: Job) -> None:
        self._waiting.append((time.monotonic(), len(self._waiting)))
        self._queue.put(job)

    def get(self) -> Job | None:
        """Wait for the next call; None when there will be no more."""
        if self.turn is None:
            return self._taken(self._queue.get())
        with self.turn.awaited():
            return self._taken(self._queue.get())

    def get_nowait(self) -> Job | None:
        """Return the next call, None when there is none now."""
        try:
            job = self._queue.get_nowait()
        except Empty:
            return None
        if job is None:
            # Shutting down: seen again when those set aside have gone on.
            self._queue.put(None)
        return self._taken(job)

    def queued(self) -> int:
        return len(self._waiting)

    def expected_wait(self) -> float:
        """Return as much as the first in the queue has waited, less where the queue has become shorter since.

        Nobody waits where there are no more calls than threads: they are being handed over. So one slow call, or one
        slow moment, never counts; only that somebody is waiting that long right now.
        """
        queued = len(self._waiting)
        if queued <= len(self.threads):
            return 0.0
        try:
            since, before = self._waiting[0]
        except IndexError:
            # Taken meanwhile.
            return 0.0
        return (time.monotonic() - since) * min(1.0, queued / (before + 1))

    def close(self) -> None:
        for _ in self.threads:
            self._queue.put(None)

    def join(self) -> None:
        for thread in self.threads:
            thread.join()

    def _taken(self, job: Job | None) -> Job | None:
        if job is not None:
            self._waiting.popleft()
        return job


class _StreamLane:
    """One domain's threads for handlers that wait for their caller's next message: made when needed, never shared.

    Not in greenlets: a call that was set aside would wait for a caller that it does not know.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)

    def put(self, job: Job) -> None:
        function, arguments, completion = job
        self._pool.submit(function, *arguments).add_done_callback(lambda _: completion.finish())

    def queued(self) -> int:
        """Return 0: no more streams are let in than there are threads."""
        return 0

    def expected_wait(self) -> float:
        return 0.0

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        self._pool.shutdown()


class _Call(greenlet):
    """Runs one call after the other on its worker thread, and is kept between them: a new one costs an mmap."""

    def __init__(self, worker: _Worker) -> None:
        super().__init__(self._serve)
        self.worker = worker
        # Of the call that is set aside.
        self.deadline: float | None = None
        self.issuer = ""
        self.subject: tracing.Subject | None = None

    def _serve(self, job: Job) -> None:
        while True:
            function, arguments, completion = job
            try:
                function(*arguments)
                completion.finish()
            except StepAside as aside:
                aside.parked.hold(partial(self.worker.put_back, job), partial(leave, job))
            except Exception:  # noqa: BLE001  # the thread must go on
                _log.exception("a call ended outside of its chain")
                completion.finish()
            del function, arguments, completion
            job = self.worker.idle(self)


def _latest(waiting: Iterable[Sequence[_Call]]) -> float | None:
    """Return the latest deadline of `waiting`; None when one of them has none."""
    latest = 0.0
    for calls in waiting:
        for call in calls:
            if call.deadline is None:
                return None
            latest = max(latest, call.deadline)
    return latest


# By key, the calls that wait for it; and what was found.
_Fetched: TypeAlias = tuple[Mapping[Any, Sequence[_Call]], Mapping[Any, Any]]


class _Worker(threading.Thread):
    """Runs calls, and fetches for those that it has set aside."""

    def __init__(self, lane: _Lane, name: str, first: Callable[[], object]) -> None:
        super().__init__(name=name, daemon=True)
        self._lane = lane
        self._first = first
        self._aside: dict[Gatherer[Any, Any], dict[Any, list[_Call]]] = {}
        self._count = 0
        self._idle: list[_Call] = []
        # Calls that want to block, and wait until nobody is set aside.
        self._unsettled: deque[_Call] = deque()

    def run(self) -> None:
        self._main = getcurrent()
        self._first()
        while (job := self._lane.get()) is not None:
            self._begin(job)
            while self._count or self._unsettled:
                # Whoever has the turn takes what there is.
                following = self._following() if self._lane.turn is None or self._lane.turn.take(wait=False) else None
                if following is None:
                    self._fetch_and_resume()
                else:
                    self._begin(following)
            self._leave_turn()
        self._let_go()

    def _leave_turn(self) -> None:
        if self._lane.turn is not None:
            self._lane.turn.leave()

    def _let_go(self) -> None:
        """End what is parked: with the thread gone it would never be freed, nor what it knows."""
        for call in self._idle:
            call.throw()
        self._idle.clear()
        # greenlet frees the main one with its thread when the collector shows nobody who holds it, and what was frozen
        # the collector does not show.
        del self._main

    def _following(self) -> Job | None:
        """Return the next call when there is one and it may still join those set aside."""
        if self._unsettled or self._count >= _MOST_SET_ASIDE:
            return None
        return self._lane.get_nowait()

    def _begin(self, job: Job) -> None:
        call = self._idle.pop() if self._idle else _Call(self)
        call.switch(job)

    def idle(self, call: _Call) -> Job:
        """Park `call`, whose work is done, until there is more; return that."""
        self._idle.append(call)
        return cast("Job", self._main.switch())

    def set_aside(self, call: _Call, gatherer: Gatherer[Any, Any], key: Any) -> Any:
        """Park `call` until `key` was fetched; return what was found for it."""
        call.deadline = deadline.current.get()
        call.issuer = issuer.current.get()
        call.subject = tracing.current.get()
        self._aside.setdefault(gatherer, {}).setdefault(key, []).append(call)
        self._count += 1
        return self._main.switch()

    def put_back(self, job: Job) -> None:
        """Queue a call that had stepped aside; from any thread."""
        self._lane.put(job)

    def settle(self, call: _Call) -> None:
        """Park `call` until nobody else is set aside."""
        if self._count:
            self._unsettled.append(call)
            self._main.switch()
        self._leave_turn()

    def _fetch_and_resume(self) -> None:
        if self._lane.turn is not None and self._count:
            self._lane.turn.take(wait=True)
            while (following := self._following()) is not None:
                self._begin(following)
        for waiting, found in self._fetched():
            for key, calls in waiting.items():
                value = found.get(key)
                for call in calls:
                    if isinstance(value, Exception):
                        call.throw(value)
                    else:
                        call.switch(value)
        if self._unsettled:
            # One at a time: what it does next may set calls aside, who then go on before the next one blocks.
            self._unsettled.popleft().switch()

    def _fetched(self) -> Iterator[_Fetched]:
        aside, self._aside, self._count = self._aside, {}, 0
        for gatherer, waiting in aside.items():
            deadline.current.set(_latest(waiting.values()))
            # One of those that it is fetched for: in the long run, each of them is.
            issuer.current.set(next(iter(waiting.values()))[0].issuer)
            tracing.current.set(tracing.together([call.subject for calls in waiting.values() for call in calls]))
            yield waiting, gatherer.resolve(list(waiting))
