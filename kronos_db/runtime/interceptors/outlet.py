"""Sends on a stream without waiting for its reader: for handlers that answer by callback.

gRPC's `send` waits on the condition of its call until the message has passed flow control, however long the reader
takes. The condition that `runtime/reception.py` puts in its place does not wait, and tells when gRPC would have gone
on: so one thread serves any number of streams, and whoever queues messages knows how many a reader leaves untaken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import grpc

from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.reception import Condition, SentWithoutWaiting

Service = TypeVar("Service")
Request = TypeVar("Request")


class CallOutlet:
    """The stream of one call. See `runtime/feed/subscription.py` for what each method promises."""

    __slots__ = ("_call", "_send")

    def __init__(self, call: Call, send: Callable[[Any], None]) -> None:
        self._call = call
        self._send = send

    @property
    def caller(self) -> str:
        """Who calls, as the access policy names it."""
        return self._call.caller

    @property
    def call(self) -> Call:
        """The call whose stream this is."""
        return self._call

    def send(self, message: Any) -> None:
        """Hand one message to gRPC."""
        with suppress(SentWithoutWaiting):
            self._send(message)

    def fail(self, error: Exception) -> None:
        """End the stream with the answer of `error`, behind what was sent."""
        self._send(error)

    def complete(self) -> None:
        """End the stream with OK, behind what was sent."""
        self._send(None)

    def cancel(self) -> None:
        """Reset the stream."""
        self._call.context.cancel()

    def on_taken(self, taken: Callable[[], None]) -> bool:
        """Have `taken` called, on gRPC's thread and under its lock, when a message has passed flow control."""
        return tell_taken(self._call.context, taken)

    def on_closed(self, closed: Callable[[], None]) -> bool:
        """Have `closed` called when gRPC is done with the call."""
        return self._call.context.add_callback(closed)


def tell_taken(context: grpc.ServicerContext, taken: Callable[[], None]) -> bool:
    """Have sends on a stream raise SentWithoutWaiting instead of waiting, and `taken` called as `on_taken` says.

    False, and nothing changes, where the server does not receive by `runtime/reception.py`.
    """
    condition = getattr(getattr(context, "_state", None), "condition", None)
    if not isinstance(condition, Condition):
        return False
    condition.on_notify = taken
    return True


def pushes(
    handler: Callable[[Service, Request, CallOutlet], None],
) -> Callable[[Service, Request, grpc.ServicerContext], Iterator[Any]]:
    """Make a handler that answers by callback of one that takes an outlet.

    It looks like the generated one that returns an iterator; gRPC calls it with `send` as third argument.
    """

    def push(service: Service, request: Request, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
        handler(service, request, CallOutlet(Call.of(context), send))

    push.__doc__ = handler.__doc__
    push.experimental_non_blocking = True  # type: ignore[attr-defined]  # read by the chain, and by grpc._server
    return push  # type: ignore[return-value]  # see above
