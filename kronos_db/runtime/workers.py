"""The threads that run calls, and the gathering of what concurrent calls ask for into one statement.

A worker thread runs each call in a greenlet. A call that asks a `Gatherer` for something is set aside; its thread
goes on with the next call in the queue. When the queue is empty, or enough calls are set aside, what they asked for
is fetched with one statement and each goes on with its own answer. So calls that arrive together share a round trip,
a call that arrives alone waits for nobody, no answer passes from thread to thread, and handlers read as if they were
alone. docs/decisions/0003-workers.md has the measurements.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

import structlog
from greenlet import getcurrent, greenlet

from kronos_db.runtime.errors import OverloadedError, UnavailableError
from kronos_db.runtime.reception import Completion, Job, Reception

Key = TypeVar("Key")
Value = TypeVar("Value")

_MOST_SET_ASIDE = 128
_log = structlog.get_logger(__name__)


class Gatherer(Generic[Key, Value]):
    """Turns concurrent look-ups of one kind into one. `fetch` takes distinct keys and returns what it found of them.

    A look-up that fails because of one key fails for that key alone: the others are fetched again without it. When the
    database is away or full it fails for all at once: no key is at fault.
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
        except (UnavailableError, OverloadedError) as error:
            # Trying each alone would hold this thread for as many time-outs as there are keys.
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
    """A fixed number of threads; stands in for the thread pool of `grpc.server`."""

    def __init__(self, threads: int) -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._reception = Reception(self._queue.put)
        self._threads = [_Worker(self._queue, f"worker-{number}") for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Completion:
        """Queue a call."""
        completion = Completion()
        self._reception.receive((function, arguments, completion))
        return completion

    def shutdown(self, wait: bool = True) -> None:
        """Let the threads end when the queue is empty."""
        for _ in self._threads:
            self._queue.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def queued(self) -> int:
        """Return how many calls wait for a thread."""
        return self._queue.qsize()

    def as_executor(self) -> ThreadPoolExecutor:
        """Return itself under the type that gRPC's signatures ask for; gRPC uses `submit` and `shutdown` alone."""
        return cast("ThreadPoolExecutor", self)


class _Call(greenlet):
    """Runs one call after the other on its worker thread, and is kept between them: a new one costs an mmap."""

    def __init__(self, worker: _Worker) -> None:
        super().__init__(self._serve)
        self.worker = worker

    def _serve(self, job: Job) -> None:
        while True:
            function, arguments, completion = job
            try:
                function(*arguments)
            except Exception:  # noqa: BLE001  # the thread must go on
                _log.exception("a call ended outside of its chain")
            completion.finish()
            del function, arguments, completion
            job = self.worker.idle(self)


class _Worker(threading.Thread):
    """Runs calls, and fetches for those that it has set aside."""

    def __init__(self, queue: SimpleQueue[Job | None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._queue = queue
        self._aside: dict[Gatherer[Any, Any], dict[Any, list[_Call]]] = {}
        self._count = 0
        self._idle: list[_Call] = []
        # Calls that want to block, and wait until nobody is set aside.
        self._unsettled: deque[_Call] = deque()

    def run(self) -> None:
        self._main = getcurrent()
        while (job := self._queue.get()) is not None:
            self._begin(job)
            while self._count or self._unsettled:
                following = self._following()
                if following is None:
                    self._fetch_and_resume()
                else:
                    self._begin(following)

    def _following(self) -> Job | None:
        """Return the next call when there is one and it may still join those set aside."""
        if self._unsettled or self._count >= _MOST_SET_ASIDE:
            return None
        try:
            job = self._queue.get_nowait()
        except Empty:
            return None
        if job is None:
            # Shutting down: seen again when those set aside have gone on.
            self._queue.put(None)
        return job

    def _begin(self, job: Job) -> None:
        call = self._idle.pop() if self._idle else _Call(self)
        call.switch(job)

    def idle(self, call: _Call) -> Job:
        """Park `call`, whose work is done, until there is more; return that."""
        self._idle.append(call)
        return cast("Job", self._main.switch())

    def set_aside(self, call: _Call, gatherer: Gatherer[Any, Any], key: Any) -> Any:
        """Park `call` until `key` was fetched; return what was found for it."""
        self._aside.setdefault(gatherer, {}).setdefault(key, []).append(call)
        self._count += 1
        return self._main.switch()

    def settle(self, call: _Call) -> None:
        """Park `call` until nobody else is set aside."""
        if self._count:
            self._unsettled.append(call)
            self._main.switch()

    def _fetch_and_resume(self) -> None:
        aside, self._aside, self._count = self._aside, {}, 0
        for gatherer, waiting in aside.items():
            found = gatherer.resolve(list(waiting))
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
