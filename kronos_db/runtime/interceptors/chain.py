"""Composes the interceptors around every handler, once per method when the server is built.

An interceptor is one of two things. A `Guard` stands around a call: it may refuse it at the beginning and sees how it
ended. A `Filter` sees each message: requests on the way in, responses on the way out. Neither needs to know whether a
method streams: that is settled here, for the four kinds, in one place.

Guards begin when a call arrives, on gRPC's own thread (`runtime/reception.py`), so they must not wait for anything;
whom they refuse is answered from there. All else happens on the thread that takes the call up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import grpc
from google.protobuf import descriptor_pool
from grpc import _server as grpc_server

from kronos_db.runtime.interceptors.call import Call, Step
from kronos_db.runtime.interceptors.conversation import Conversations
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.interceptors.pushed import run_pushed
from kronos_db.runtime.interceptors.terms import terms_of
from kronos_db.runtime.parking import StepAside

Message: TypeAlias = Any
Handler: TypeAlias = Callable[..., Any]
Begin: TypeAlias = Callable[[Call], None]
End: TypeAlias = Callable[[Call, BaseException | None], None]
# What runs a call whose guards have begun: takes it and what gRPC hands to a behavior, without the context.
Run: TypeAlias = Callable[..., Any]
# gRPC's view of a call, made of what it hands to its thread pool; None should a later grpcio have it no more.
_CONTEXT: Callable[..., grpc.ServicerContext] | None = getattr(grpc_server, "_Context", None)


@runtime_checkable
class Guard(Protocol):
    """Stands around a call. Both functions are made once per method; None where there is nothing to do."""

    def begin(self, method: Method) -> Begin | None:
        """Return what runs when a call arrives: it must not wait, and refuses by raising.

        `end` does not run for a call it refused.
        """

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
    Place("audit_outcome", "it records the reason of every refusal below, before that has become a status"),
    Place("authentication", "nothing is read, decoded or spent for a caller that is not known and allowed"),
    Place("overload", "limits count known callers' calls alone, and refuse before the work of decoding and validation"),
    Place("validation", "rules are written for what the caller wrote, so they hold before anything is sealed"),
    Place("audit_request", "only calls that may run are recorded as begun, and with what the caller wrote"),
    Place("encryption", "the handler is the first to see the message after it, so nothing below ever holds plaintext"),
)


@dataclass(frozen=True)
class Chain:
    """The interceptors by the names of ORDER; `conversations` are needed where both sides of a stream speak."""

    interceptors: Mapping[str, Guard | Filter]
    conversations: Conversations | None = None

    def __post_init__(self) -> None:
        """Refuse a chain with a missing or an unknown link."""
        if set(self.interceptors) != {place.name for place in ORDER}:
            raise ValueError("the chain needs exactly the interceptors of ORDER")

    def compose(self, method: Method, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """Return `handler` with the whole chain around it. It gets raw request bytes: validation decodes them."""
        method = replace(method, pushed=_pushes(handler))
        inner = _behavior(method, handler)
        if method.pushed:
            run = self._answered_by_callback(method, inner)
        else:
            composed = _with_filters(method, inner, self._filters)
            run = (_run_stream if method.descriptor.server_streaming else _run_unary)(composed)
        factory = {
            "unary": grpc.unary_unary_rpc_method_handler,
            "client_stream": grpc.stream_unary_rpc_method_handler,
            "server_stream": grpc.unary_stream_rpc_method_handler,
            "bidi_stream": grpc.stream_stream_rpc_method_handler,
        }[method.kind]
        behavior = Composed(method, self._guards, run)
        return factory(behavior, request_deserializer=None, response_serializer=_serializer(handler))

    def _answered_by_callback(self, method: Method, handler: Handler) -> Run:
        inward, outward = _steps(method, self._filters)
        receive, emit = _joined(inward), _joined(outward)
        if not method.descriptor.client_streaming:
            return run_pushed(handler, receive, emit)
        if self.conversations is None:
            raise ValueError("a conversation needs the conversations of the process")
        return self.conversations.run(handler, receive, emit)

    @cached_property
    def _guards(self) -> list[Guard]:
        ordered = [self.interceptors[place.name] for place in ORDER]
        return [link for link in ordered if isinstance(link, Guard)]

    @cached_property
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
            terms = terms_of(_behavior_of(handler))
            self.handlers[Method(descriptor.methods_by_name[name], terms=terms)] = handler

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Keep the handlers of services too whose code is of a generator that registers them in this way alone."""
        for service in handlers:
            if isinstance(service, grpc.ServiceRpcHandler):
                methods = descriptor_pool.Default().FindServiceByName(service.service_name()).methods_by_name
                found = {name: service.service(_Details(f"/{service.service_name()}/{name}")) for name in methods}
                self.add_registered_method_handlers(
                    service.service_name(), {name: handler for name, handler in found.items() if handler is not None}
                )

    def largest_request(self, usual: int) -> int:
        """Return how many bytes the largest request of any method may have; `usual` is the limit of most."""
        return max((usual, *(method.terms.most_bytes or 0 for method in self.handlers)))


@dataclass
class _Details:
    """What gRPC tells a generic handler of a call."""

    method: str
    invocation_metadata: Any = ()


def register(server: grpc.Server, handlers: Mapping[Method, grpc.RpcMethodHandler[Any, Any]]) -> None:
    """Put composed handlers on `server`."""
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for method, handler in handlers.items():
        services.setdefault(method.service, {})[method.name] = handler
    for service, methods in services.items():
        server.add_registered_method_handlers(service, methods)


def _behavior_of(handler: grpc.RpcMethodHandler[Any, Any]) -> Any:
    found: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    if found is None:
        raise ValueError("a method handler without behavior")
    return found


def _behavior(method: Method, handler: grpc.RpcMethodHandler[Any, Any]) -> Handler:
    found = _behavior_of(handler)
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
    return bool(getattr(handler.unary_stream or handler.stream_stream, "experimental_non_blocking", False))


def _serializer(handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[[Any], bytes]:
    """Return what makes bytes of an answer, and passes on those of a handler that answers with bytes."""
    serialize = handler.response_serializer or bytes
    return lambda answer: answer if type(answer) is bytes else serialize(answer)


class Composed:
    """What gRPC gets of a method. Reception lets its calls in by `arrive`; without that they are when they run."""

    def __init__(self, method: Method, guards: Sequence[Guard], run: Run) -> None:
        self.lane = method.lane
        # Read by grpc._server.
        self.experimental_non_blocking = method.pushed
        self._method = method
        # Steps in the order in which they are taken; one of the two may be there alone.
        self._guards = [(guard.begin(method), guard.end(method)) for guard in guards]
        self._guards = [each for each in self._guards if each != (None, None)]
        self._run = run
        self.arrive = None if _CONTEXT is None else partial(self._arrive, _CONTEXT)

    def __call__(self, request: Any, context: grpc.ServicerContext, *send: Callable[[Any], None]) -> Any:
        """Take a call, as gRPC's behaviors do."""
        return self.enter(context)(request, context, *send)

    def _arrive(self, view: Callable[..., grpc.ServicerContext], event: Any, state: Any) -> Arrived:
        """Have the guards let a call in or refuse it."""
        return self.enter(view(event, state, None))

    def enter(self, context: grpc.ServicerContext) -> Arrived:
        """Have the guards let a call in or refuse it; what is returned runs it, or raises the refusal."""
        call = Call(self._method, context)
        arrived = Arrived(call, self._run)
        entered = arrived.entered
        try:
            for begin, end in self._guards:
                if begin is not None:
                    begin(call)
                if end is not None:
                    entered.append(end)
        except BaseException as error:  # noqa: BLE001  # raised again when gRPC runs the call
            arrived.refusal = arrived.end(error)
        return arrived


class Arrived:
    """A call whose guards have begun; run in place of the composed behavior."""

    __slots__ = ("_run", "call", "entered", "experimental_non_blocking", "refusal")

    def __init__(self, call: Call, run: Run) -> None:
        self.call = call
        self.entered: list[End] = []
        # What the guards made of the refusal.
        self.refusal: BaseException | None = None
        self.experimental_non_blocking = call.method.pushed
        self._run = run

    def __call__(self, request: Any, _context: grpc.ServicerContext, *send: Callable[[Any], None]) -> Any:
        """Run the call, or raise what the guards made of their refusal."""
        self.call.come_back()
        if self.refusal is not None:
            try:
                raise self.refusal
            finally:
                # Its traceback knows this frame: together they would wait for the collector, and floods make many.
                self.refusal = None
        return self._run(self, request, *send)

    @property
    def refused(self) -> bool:
        """Whether a guard refused it."""
        return self.refusal is not None

    def left(self) -> None:
        """Take note that the caller left before its request came, or while the call had stepped aside."""
        self.call.come_back()
        self.end(grpc.RpcError("the caller left"))

    def end(self, error: BaseException | None) -> BaseException | None:
        """Tell the guards, innermost first, and return what the outermost one made of `error`."""
        for end in reversed(self.entered):
            try:
                end(self.call, error)
            except Exception as raised:  # noqa: BLE001  # seen by the next guard, and returned
                error = raised
        try:
            return error
        finally:
            # Its traceback knows this frame, as above.
            del error


def _run_unary(handler: Handler) -> Run:
    def run(arrived: Arrived, request: Any) -> Any:
        try:
            response = handler(request, arrived.call)
        except StepAside:
            # Not over: it runs again.
            raise
        except BaseException as error:  # noqa: BLE001  # the errors interceptor decides
            raise arrived.end(error) or error from None
        failure = arrived.end(None)
        if failure is not None:
            raise failure
        return response

    return run


def _run_stream(handler: Handler) -> Run:
    def run(arrived: Arrived, request: Any) -> Iterator[Any]:
        try:
            yield from handler(request, arrived.call)
        except BaseException as error:  # noqa: BLE001  # the errors interceptor decides
            raise arrived.end(error) or error from None
        failure = arrived.end(None)
        if failure is not None:
            raise failure

    return run


def _steps(method: Method, filters: Sequence[Filter]) -> tuple[list[Step], list[Step]]:
    """Return the steps of requests, outermost first, and those of responses, innermost first."""
    inward = [step for link in filters if (step := link.request(method)) is not None]
    outward = [step for link in reversed(filters) if (step := link.response(method)) is not None]
    return inward, outward


def _with_filters(method: Method, handler: Handler, filters: Sequence[Filter]) -> Handler:
    """Put the steps for messages directly around the handler."""
    inward, outward = _steps(method, filters)
    if method.kind == "unary":
        return _unary(handler, inward, outward)
    composed = handler
    if inward:
        composed = (_stream_in if method.descriptor.client_streaming else _unary_in)(composed, _joined(inward))
    if outward:
        composed = (_stream_out if method.descriptor.server_streaming else _unary_out)(composed, _joined(outward))
    return composed


def _unary(inner: Handler, inward: Sequence[Step], outward: Sequence[Step]) -> Handler:
    """In one frame: most calls are unary, and each frame costs them what a step does."""

    def composed(message: Message, call: Call) -> Message:
        for step in inward:
            message = step(message, call)
        message = inner(message, call)
        for step in outward:
            message = step(message, call)
        return message

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
