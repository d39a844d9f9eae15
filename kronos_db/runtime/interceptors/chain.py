"""Composes the interceptors around every handler, once per method when the server is built.

An interceptor is one of two things. A `Guard` stands around a call: it may refuse it at the beginning and sees how it
ended. A `Filter` sees each message: requests on the way in, responses on the way out. Neither needs to know whether a
method streams: that is settled here, for the four kinds, in one place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import grpc
from google.protobuf import descriptor_pool

from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.method import Method

Message: TypeAlias = Any
Handler: TypeAlias = Callable[..., Any]
Begin: TypeAlias = Callable[[Call], None]
End: TypeAlias = Callable[[Call, BaseException | None], None]
Step: TypeAlias = Callable[[Message, Call], Message]


@runtime_checkable
class Guard(Protocol):
    """Stands around a call. Both functions are made once per method; None where there is nothing to do."""

    def begin(self, method: Method) -> Begin | None:
        """Return what runs before the call; it refuses by raising. `end` does not run for a call it refused."""

    def end(self, method: Method) -> End | None:
        """Return what runs after the call, with the exception that ended it, if any."""


@runtime_checkable
class Filter(Protocol):
    """Sees each message. Both functions are made once per method; None where there is nothing to do."""

    def request(self, method: Method) -> Step | None:
        """Return what each request message passes on its way in."""

    def response(self, method: Method) -> Step | None:
        """Return what each response message passes on its way out."""


class Place(NamedTuple):
    """A place in the chain and why it is where it is."""

    name: str
    because: str


# Outermost first. The reasons are part of the design: move nothing without mending them.
ORDER: Sequence[Place] = (
    Place("access_log", "it names the call, and every outcome of it, also a refusal, gets one line under that name"),
    Place("metrics", "refusals by anything below are counted with the code that they leave with"),
    Place("errors", "everything below raises exceptions, and this is the one place that turns them into a status"),
    Place("authentication", "nothing is read, decoded or spent for a caller that is not known and allowed"),
    Place("overload", "limits count known callers' calls alone, and refuse before the work of decoding and validation"),
    Place("validation", "rules are written for what the caller wrote, so they hold before anything is sealed"),
    Place("encryption", "the handler is the first to see the message after it, so nothing below ever holds plaintext"),
)


@dataclass(frozen=True)
class Chain:
    """The interceptors by the names of ORDER, and the pools for what must not hold a worker thread.

    `compute_pool` is for methods that burn processor time, `stream_pool` for handlers of streams that wait for the
    caller's next message: as many idle streams as there are workers would stop the server.
    """

    interceptors: Mapping[str, Guard | Filter]
    compute_pool: ThreadPoolExecutor
    stream_pool: ThreadPoolExecutor

    def __post_init__(self) -> None:
        """Refuse a chain with a missing or an unknown link."""
        if set(self.interceptors) != {place.name for place in ORDER}:
            raise ValueError("the chain needs exactly the interceptors of ORDER")

    def compose(self, method: Method, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """Return `handler` with the whole chain around it. It gets raw request bytes: validation decodes them."""
        inner = _behavior(method, handler)
        if _pushes(handler):
            behavior = self._pushed(method, inner)
        else:
            composed = _with_filters(method, inner, self._filters())
            for guard in reversed(self._guards()):
                composed = _with_guard(method, composed, guard)
            behavior = _entered(method, composed)
        pool = self._pool(method, handler)
        if pool is not None:
            behavior.experimental_thread_pool = pool  # type: ignore[attr-defined]  # read by grpc._server
        factory = {
            "unary": grpc.unary_unary_rpc_method_handler,
            "client_stream": grpc.stream_unary_rpc_method_handler,
            "server_stream": grpc.unary_stream_rpc_method_handler,
            "bidi_stream": grpc.stream_stream_rpc_method_handler,
        }[method.kind]
        return factory(behavior, request_deserializer=None, response_serializer=handler.response_serializer)

    def _pool(self, method: Method, handler: grpc.RpcMethodHandler[Any, Any]) -> ThreadPoolExecutor | None:
        """Return the pool that calls run in; None for the workers."""
        if method.compute:
            return self.compute_pool
        return None if method.kind == "unary" or _pushes(handler) else self.stream_pool

    def _pushed(self, method: Method, handler: Handler) -> Callable[..., Any]:
        """Compose a handler that answers by callback: it returns at once, and its stream holds no thread while idle."""
        guards = [
            (guard.begin(method) or _nothing_before, guard.end(method) or _nothing_after) for guard in self._guards()
        ]
        inward, outward = _steps(method, self._filters())
        receive, emit = _joined(inward), _joined(outward)

        def push(request: Any, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            pushed = _Pushed(Call(method, context), emit, send)
            try:
                for begin, end in guards:
                    begin(pushed.call)
                    pushed.entered.append(end)
                handler(receive(request, pushed.call), pushed.call, pushed.send)
            except BaseException as error:  # noqa: BLE001  # the errors interceptor decides
                raise pushed.end(error) or error from None
            if not context.add_callback(pushed.closed):
                pushed.closed()

        push.experimental_non_blocking = True  # type: ignore[attr-defined]  # read by grpc._server
        return push

    def _guards(self) -> list[Guard]:
        ordered = [self.interceptors[place.name] for place in ORDER]
        return [link for link in ordered if isinstance(link, Guard)]

    def _filters(self) -> list[Filter]:
        ordered = [self.interceptors[place.name] for place in ORDER]
        return [link for link in ordered if isinstance(link, Filter)]


class Registrar:
    """Stands in for the server while generated code registers its handlers, and keeps them by method."""

    def __init__(self) -> None:
        self.handlers: dict[Method, grpc.RpcMethodHandler[Any, Any]] = {}

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Keep the handlers of one service."""
        descriptor = descriptor_pool.Default().FindServiceByName(service)
        for name, handler in handlers.items():
            self.handlers[Method(descriptor.methods_by_name[name])] = handler

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Pass over: the same handlers come through `add_registered_method_handlers`."""


def register(server: grpc.Server, handlers: Mapping[Method, grpc.RpcMethodHandler[Any, Any]]) -> None:
    """Put composed handlers on `server`."""
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for method, handler in handlers.items():
        services.setdefault(method.service, {})[method.name] = handler
    for service, methods in services.items():
        server.add_registered_method_handlers(service, methods)


def _behavior(method: Method, handler: grpc.RpcMethodHandler[Any, Any]) -> Handler:
    found: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    if found is None:
        raise ValueError("a method handler without behavior")
    if method.ours:
        handler_of_ours: Handler = found
        return handler_of_ours

    def foreign(request: Any, call: Call, *send: Callable[[Any], None]) -> Any:
        """Give a handler of another package the context that it expects, and take over the code that it sets."""
        response = found(request, call.context, *send)
        code = call.context.code()  # type: ignore[attr-defined]  # not in the stubs
        if isinstance(code, grpc.StatusCode):
            call.code = code.name
        return response

    return foreign


def _pushes(handler: grpc.RpcMethodHandler[Any, Any]) -> bool:
    return bool(getattr(handler.unary_stream, "experimental_non_blocking", False))


class _Pushed:
    """One call whose handler answers by callback. Whoever ends it, its guards are told once."""

    def __init__(self, call: Call, emit: Step, send: Callable[[Any], None]) -> None:
        self.call = call
        self.entered: list[End] = []
        self._emit = emit
        self._send = send
        self._lock = threading.Lock()
        self._completed = False

    def send(self, message: Any) -> None:
        """Pass one response on to the caller; None ends the stream."""
        if message is None:
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
        """Tell the guards, innermost first, and return what the outermost one made of `error`."""
        with self._lock:
            entered, self.entered = self.entered, []
        for end in reversed(entered):
            try:
                end(self.call, error)
            except Exception as raised:  # noqa: BLE001  # seen by the next guard, and returned
                error = raised
        return error

    def _complete(self) -> None:
        # Handlers may say that they are done after the caller left, or twice; gRPC takes it once.
        with self._lock:
            if self._completed or not self.call.context.is_active():
                return
            self._completed = True
        self._send(None)


def _entered(method: Method, inner: Handler) -> Callable[[Any, grpc.ServicerContext], Any]:
    def enter(request: Any, context: grpc.ServicerContext) -> Any:
        return inner(request, Call(method, context))

    return enter


def _steps(method: Method, filters: Sequence[Filter]) -> tuple[list[Step], list[Step]]:
    """Return the steps of requests, outermost first, and those of responses, innermost first."""
    inward = [step for link in filters if (step := link.request(method)) is not None]
    outward = [step for link in reversed(filters) if (step := link.response(method)) is not None]
    return inward, outward


def _with_filters(method: Method, handler: Handler, filters: Sequence[Filter]) -> Handler:
    """Put the steps for messages directly around the handler."""
    inward, outward = _steps(method, filters)
    composed = handler
    if inward:
        composed = (_stream_in if method.descriptor.client_streaming else _unary_in)(composed, _joined(inward))
    if outward:
        composed = (_stream_out if method.descriptor.server_streaming else _unary_out)(composed, _joined(outward))
    return composed


def _joined(steps: Sequence[Step]) -> Step:
    """Return one step that takes all of `steps`, in their order."""
    if len(steps) == 1:
        return steps[0]

    def run(message: Message, call: Call) -> Message:
        for step in steps:
            message = step(message, call)
        return message

    return run


def _unary_in(inner: Handler, step: Step) -> Handler:
    return lambda request, call: inner(step(request, call), call)


def _stream_in(inner: Handler, step: Step) -> Handler:
    return lambda requests, call: inner((step(request, call) for request in requests), call)


def _unary_out(inner: Handler, step: Step) -> Handler:
    return lambda request, call: step(inner(request, call), call)


def _stream_out(inner: Handler, step: Step) -> Handler:
    return lambda request, call: (step(response, call) for response in inner(request, call))


def _with_guard(method: Method, inner: Handler, guard: Guard) -> Handler:
    begin, end = guard.begin(method), guard.end(method)
    if begin is None and end is None:
        return inner
    around = _guard_stream if method.descriptor.server_streaming else _guard_unary
    return around(inner, begin or _nothing_before, end or _nothing_after)


def _guard_unary(inner: Handler, begin: Begin, end: End) -> Handler:
    def guarded(request: Any, call: Call) -> Any:
        begin(call)
        try:
            response = inner(request, call)
        except BaseException as error:
            end(call, error)
            raise
        end(call, None)
        return response

    return guarded


def _guard_stream(inner: Handler, begin: Begin, end: End) -> Handler:
    def guarded(request: Any, call: Call) -> Iterator[Any]:
        begin(call)
        try:
            yield from inner(request, call)
        except BaseException as error:
            end(call, error)
            raise
        end(call, None)

    return guarded


def _nothing_before(call: Call) -> None:
    """Let the call pass."""


def _nothing_after(call: Call, error: BaseException | None) -> None:
    """Let the outcome pass."""
