"""Waits for the request of a call on gRPC's own thread, so that a worker thread gets a call when there is work to do.

`grpc.server` hands a call to its thread pool before the request has arrived, and the pool's thread waits for it: two
switches between threads for each call, and a client that sends slowly holds a thread. Here the waiting is done in a
greenlet on the thread that takes the events of gRPC's core, which is the one that brings the request too.

This leans on two things inside `grpc/_server.py` (1.60 to 1.85 at least): the arguments that it hands to the pool,
and that it waits on `state.condition`. Where they are not as expected, calls are queued as gRPC would, only slower; a
test tells. docs/decisions/0003-workers.md has the measurements.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from greenlet import getcurrent, greenlet

Job: TypeAlias = "tuple[Callable[..., Any], tuple[Any, ...], Completion]"

# Positions among what gRPC hands to the pool: (handle, rpc_event, state, behavior, receive, …).
_STATE = 2
_RECEIVE = 4


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
    """Calls `ready` with each call, its request received. Used by one thread: that of gRPC's events."""

    def __init__(self, ready: Callable[[Job], None]) -> None:
        self._ready = ready
        self._idle: list[_Receiver] = []

    def receive(self, job: Job) -> None:
        """Begin to wait for the request of `job`; returns at once."""
        _, arguments, _ = job
        if not _is_as_expected(arguments):
            self._ready(job)
            return
        arguments[_STATE].condition = _Condition()
        receiver = self._idle.pop() if self._idle else _Receiver(self._serve)
        receiver.switch(job)

    def _serve(self, job: Job) -> None:
        """Receive for one call after the other: a new greenlet for each would cost an mmap."""
        receiver = cast("_Receiver", getcurrent())
        while True:
            function, arguments, completion = job
            request = arguments[_RECEIVE]()
            self._ready((function, _with_request(arguments, request), completion))
            del function, arguments, completion, request
            self._idle.append(receiver)
            job = receiver.parent.switch()


def _is_as_expected(arguments: tuple[Any, ...]) -> bool:
    return (
        len(arguments) > _RECEIVE
        and isinstance(getattr(arguments[_STATE], "condition", None), threading.Condition)
        and callable(arguments[_RECEIVE])
    )


def _with_request(arguments: tuple[Any, ...], request: Any) -> tuple[Any, ...]:
    return (*arguments[:_RECEIVE], lambda: request, *arguments[_RECEIVE + 1 :])


class _Receiver(greenlet):
    """Waits for requests without holding the thread."""

    parent: greenlet


class _Condition(threading.Condition):
    """A condition on which a receiver waits by stepping aside; for everybody else it is what it was."""

    _receiver: _Receiver | None = None

    def wait(self, timeout: float | None = None) -> bool:
        receiver = getcurrent()
        if not isinstance(receiver, _Receiver):
            return super().wait(timeout)
        self._receiver = receiver
        self.release()
        receiver.parent.switch()
        # The notifier is this very thread and holds the lock, which is reentrant.
        self.acquire()
        return True

    def notify_all(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.switch()
        super().notify_all()
