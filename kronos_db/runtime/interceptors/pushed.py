"""Streams that are answered by callback: their handlers return at once, and an idle stream holds no thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import grpc

from kronos_db.runtime.interceptors.call import Call, Step

Send: TypeAlias = Callable[[Any], None]


class Arrived(Protocol):
    """A call whose guards have begun."""

    call: Call

    def end(self, error: BaseException | None) -> BaseException | None:
        """Tell the guards, and return what they made of `error`."""


def run_pushed(handler: Callable[..., Any], receive: Step, emit: Step) -> Callable[[Any, Any, Send], None]:
    """Compose a handler that takes a request, the call and `send`; `receive` and `emit` are the filters."""

    def run(arrived: Arrived, request: Any, send: Send) -> None:
        call, pushed = arrived.call, Pushed(arrived, emit, send)
        try:
            handler(receive(request, call), call, pushed.send)
        except BaseException as error:  # noqa: BLE001  # the errors interceptor decides
            raise pushed.end(error) or error from None
        if not call.context.add_callback(pushed.closed):
            pushed.closed()

    return run


class Pushed:
    """One call whose handler answers by callback. Whoever ends it, its guards are told once."""

    def __init__(self, arrived: Arrived, emit: Step, send: Send) -> None:
        self.call = arrived.call
        self._arrived = arrived
        self._emit = emit
        self._send = send
        self._lock = threading.Lock()
        self._ended = False
        self._completed = False

    def send(self, message: Any) -> None:
        """Pass one response on to the caller; None ends the stream, an exception ends it with its status."""
        if self._ended:
            return
        if message is None:
            self._complete()
            return
        if isinstance(message, Exception):
            self.end(message)
            self._complete()
            return
        try:
            emitted = self._emit(message, self.call)
        except Exception as error:  # noqa: BLE001  # whoever calls serves other streams too
            # The errors interceptor leaves the status in the context, and it goes out with the end of the stream.
            self.end(error)
            self._complete()
            return
        self._send(emitted)

    def closed(self) -> None:
        """Take note that gRPC is done with the call: its handler completed it, or else the caller left."""
        self.end(None if self._completed else grpc.RpcError("the caller left"))

    def end(self, error: BaseException | None) -> BaseException | None:
        """Tell the guards, once, and return what they made of `error`."""
        with self._lock:
            ended, self._ended = self._ended, True
        return error if ended else self._arrived.end(error)

    def _complete(self) -> None:
        # Handlers may say that they are done after the caller left, or twice; gRPC takes it once.
        with self._lock:
            if self._completed or not self.call.context.is_active():
                return
            self._completed = True
        self._send(None)
