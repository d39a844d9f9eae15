"""Lets calls in on gRPC's own thread, and waits there for their requests: workers get them when there is work to do.

`grpc.server` hands a call to its thread pool before the request has arrived, and the pool's thread waits for it: two
switches between threads for each call, and a client that sends slowly holds a thread. Here the waiting is done in a
greenlet on the thread that takes the events of gRPC's core, which is the one that brings the request too. A call that
is refused (docs/decisions/0006-overload.md) is answered on that thread at once, whatever the workers are busy with.

This leans on two things inside `grpc/_server.py` (1.60 to 1.85 at least): the arguments that it hands to the pool,
and that it waits on `state.condition`. Where they are not as expected, calls are queued as gRPC would and let in by a
worker, only slower; a test tells. docs/decisions/0003-workers.md has the measurements.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from greenlet import getcurrent, greenlet

# A function, its arguments, and what is told when it is done.
Job: TypeAlias = "tuple[Callable[..., Any], Sequence[Any], Completion]"
# One whose arguments are being made ready.
_Received: TypeAlias = "tuple[Callable[..., Any], list[Any], Completion]"

# Positions among what gRPC hands to the pool: (handle, rpc_event, state, behavior, receive, …).
_EVENT = 1
_STATE = 2
_BEHAVIOR = 3
_RECEIVE = 4
# What stands for the request of a call that is refused before it came.
_NO_REQUEST = b""


class Lane(NamedTuple):
    """Which threads run a call: those of its domain for reads, for writes, for computing, or for streams."""

    domain: str
    kind: Literal["call", "write", "compute", "stream"]


# For calls of which nothing is known.
NO_LANE = Lane("", "call")


class Arrived(Protocol):
    """A call that was let in or refused; gRPC calls it in place of the method's behavior.

    The behavior of a method makes it by `arrive(rpc_event, state)`, which must neither wait nor raise; `lane` of the
    behavior says where the call runs. Both are looked for, and none is needed.
    """

    @property
    def refused(self) -> bool:
        """Whether running it does nothing but answer why."""

    def left(self) -> None:
        """Take note that the caller left before its request came, or while it waited: it will not be run."""


class Completion:
    """Tells when a call is done: the part of a Future that gRPC uses, at a tenth of its cost."""

    __slots__ = ("_callbacks", "_done", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = False
        self._callbacks: list[Callable[[Completion], object]] = []

    def add_done_callback(self, callback: Callable[[Completion], object]) -> None:
        """Call `callback` when the call is done; at once when it is done already."""
        with self._lock:
            if not self._done:
                self._callbacks.append(callback)
                return
        callback(self)

    def finish(self) -> None:
        """Note that the call is done."""
        with self._lock:
            self._done = True
        for callback in self._callbacks:
            callback(self)


class Reception:
    """Calls `ready` with each call that is let in, its request received. Used by one thread: that of gRPC's events."""

    def __init__(self, ready: Callable[[Lane, Job], None]) -> None:
        self._ready = ready
        self._idle: list[_Receiver] = []

    def receive(self, job: Job) -> None:
        """Let `job` in or refuse it, and begin to wait for its request; returns at once."""
        function, arguments, completion = job
        if not _is_as_expected(arguments):
            self._ready(_lane_among(arguments), job)
            return
        ours = list(arguments)
        behavior = arguments[_BEHAVIOR]
        arrive = getattr(behavior, "arrive", None)
        if arrive is not None:
            # `function` runs what it is given in the context of the call, where a worker will find what was set.
            arrived: Arrived = function(arrive, arguments[_EVENT], arguments[_STATE])
            ours[_BEHAVIOR] = arrived
            if arrived.refused:
                ours[_RECEIVE] = lambda: _NO_REQUEST
                function(*ours)
                completion.finish()
                return
        arguments[_STATE].condition = Condition()
        receiver = self._idle.pop() if self._idle else _new_receiver()
        receiver.switch(self, getattr(behavior, "lane", NO_LANE), (function, ours, completion))

    def came(self, receiver: _Receiver, lane: Lane, job: _Received, request: Any) -> None:
        """Take the request of a call from a receiver, who is free again; None when the caller left."""
        if request is not None:
            job[1][_RECEIVE] = lambda: request
            self._ready(lane, job)
        else:
            leave(job)
        self._idle.append(receiver)


def _is_as_expected(arguments: Sequence[Any]) -> bool:
    return (
        len(arguments) > _RECEIVE
        and isinstance(getattr(arguments[_STATE], "condition", None), threading.Condition)
        and callable(arguments[_RECEIVE])
    )


def _lane_among(arguments: Sequence[Any]) -> Lane:
    lanes = (getattr(argument, "lane", None) for argument in arguments)
    return next((lane for lane in lanes if isinstance(lane, Lane)), NO_LANE)


def leave(job: Job) -> None:
    """End a call whose caller left before it was run, or while it had stepped aside."""
    _, arguments, completion = job
    behavior = arguments[_BEHAVIOR]
    if hasattr(behavior, "left"):
        behavior.left()
    completion.finish()


class _Receiver(greenlet):
    """Waits for requests without holding the thread, of one call after the other: a new one would cost an mmap.

    One that is idle when gRPC's thread ends stays for ever: so it knows nothing meanwhile, not even by its arguments.
    """

    parent: greenlet

    def run(self) -> None:
        """Receive for whom it is switched to with a reception, a lane and a job."""
        while True:
            reception, lane, job = self.parent.switch()
            request = job[1][_RECEIVE]()
            reception.came(self, lane, job, request)
            del reception, lane, job, request


def _new_receiver() -> _Receiver:
    receiver = _Receiver()
    receiver.switch()
    return receiver


class SentWithoutWaiting(Exception):  # noqa: N818  # says that all went well
    """A message was handed to gRPC, and its sender does not wait until the reader took it."""


# The type of reentrant locks has no public name.
_RLock: Any = type(threading.RLock())


class Condition(_RLock):  # type: ignore[misc]  # see above
    """A condition on which a receiver waits by stepping aside; for everybody else it is what it was.

    It is its own lock, which gRPC takes ten times for a call: that of a `threading.Condition` is taken in Python.

    With `on_notify` senders do not wait either: `wait` raises SentWithoutWaiting, and `on_notify` is called in place of
    their going on. It is called under the lock, and must not wait.
    """

    on_notify: Callable[[], None] | None = None
    _receiver: _Receiver | None = None
    # Where others wait, when somebody does.
    _waiting: threading.Condition | None = None

    def wait(self, timeout: float | None = None) -> bool:
        """Step aside, raise, or wait: see above."""
        receiver = getcurrent()
        if not isinstance(receiver, _Receiver):
            if self.on_notify is not None:
                raise SentWithoutWaiting
            self._waiting = self._waiting or threading.Condition(self)
            return self._waiting.wait(timeout)
        self._receiver = receiver
        self.release()
        receiver.parent.switch()
        # The notifier is this very thread and holds the lock, which is reentrant.
        self.acquire()
        return True

    def notify_all(self) -> None:
        """Let all go on who wait."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.switch()
        if self.on_notify is not None:
            self.on_notify()
        if self._waiting is not None:
            self._waiting.notify_all()
