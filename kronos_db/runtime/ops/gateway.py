"""Answers HTTP requests with methods of the contract: each is a call of the composed handler, as if it came by gRPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2

from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.interceptors.chain import Arrived, Composed
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.ops.http import ProblemError, Request, Response, Route
from kronos_db.runtime.ops.problems import problem_of

# Requests in calls at once, of the threads that the ops port has: probes and scrapers get the others.
MOST_CALLS = 8
# Header that says within how many seconds the answer is wanted, and the most that it may say.
TIMEOUT_HEADER = "request-timeout"
LONGEST_TIMEOUT = 3600.0
# What becomes metadata of the call.
_PASSED_ON = ("authorization", "x-request-id", "traceparent", "tracestate")
_STATUS_KEY = "grpc-status-details-bin"
_REQUEST_ID = "x-request-id"

Document = Mapping[str, Any]


def last(documents: Sequence[Document]) -> Document:
    """Answer a stream with its last message: for streams that tell how far something is."""
    return documents[-1] if documents else {}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A method of the contract on an HTTP path.

    A GET takes the fields of the request from the query, a POST from a JSON body. `joined` makes one document of the
    messages of a stream, each in protobuf's JSON mapping, and `answer` is the JSON schema of that; empty: as of one
    message. `timeout` is in seconds, when the request does not say.
    """

    verb: str
    path: str
    rpc: str
    summary: str
    joined: Callable[[Sequence[Document]], Document] = last
    answer: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 30.0


class Gateway:
    """The endpoints, which answer 503 until `serve` was called."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)
        self._calls: Mapping[str, tuple[Method, Composed]] = {}
        self._room = threading.BoundedSemaphore(MOST_CALLS)

    def routes(self) -> list[Route]:
        """Return what the ops port is to serve."""
        return [Route(each.verb, each.path, self._handler(each)) for each in self.endpoints]

    def serve(self, handlers: Mapping[Method, grpc.RpcMethodHandler[Any, Any]]) -> None:
        """Answer from now on. Raises ValueError for an endpoint whose method is not there or not of a fit kind."""
        by_path = {method.path: (method, handler) for method, handler in handlers.items()}
        calls = {}
        for endpoint in self.endpoints:
            method, handler = by_path.get(endpoint.rpc, (None, None))
            behavior = handler and (handler.unary_unary or handler.unary_stream)
            if method is None or not isinstance(behavior, Composed):
                raise ValueError(f"{endpoint.path} cannot be answered by {endpoint.rpc}")
            calls[endpoint.rpc] = (method, behavior)
        self._calls = calls

    def _handler(self, endpoint: Endpoint) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            if endpoint.rpc not in self._calls or not self._room.acquire(blocking=False):
                raise ProblemError(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    "As many requests are in work as may." if self._calls else "The server does not answer calls yet.",
                    headers={"Retry-After": "1"},
                )
            try:
                return _answer(endpoint, *self._calls[endpoint.rpc], request)
            finally:
                self._room.release()

        return answer


def _answer(endpoint: Endpoint, method: Method, composed: Composed, request: Request) -> Response:
    context = _Context(request, _timeout(request, endpoint))
    try:
        documents = _called(method, composed, request, context)
    except _AbortedError as aborted:
        problem = problem_of(aborted.status)
        if isinstance(context.refusal, ProblemError):
            # What HTTP has more to say about than that the request is bad.
            problem = ProblemError(context.refusal.status, context.refusal.detail, members=problem.members)
        problem.headers.update(context.answered())
        raise problem from None
    finally:
        context.end()
    document = endpoint.joined(documents) if method.descriptor.server_streaming else documents[0]
    response = Response.of_json(document)
    return Response(response.status, response.body, response.content_type, context.answered())


def _called(method: Method, composed: Composed, request: Request, context: _Context) -> list[Document]:
    """Make the call; the request is looked at only after the guards have let it in."""
    arrived = composed.enter(context)
    raw = b""
    if not arrived.refused:
        try:
            raw = _message(method, request)
        except Exception as error:  # noqa: BLE001  # whatever it is, the call has begun and is to end
            context.refusal = error
            ended = BadRequestError(str(error)) if isinstance(error, ProblemError) else error
            raise (arrived.end(ended) or ended) from None
    if composed.experimental_non_blocking:
        return [_document(method.response, each) for each in _pushed(arrived, raw, context)]
    answer = arrived(raw, context)
    if not method.descriptor.server_streaming:
        return [_document(method.response, answer)]
    with closing(answer) as answers:
        return [_document(method.response, each) for each in answers]


def _pushed(arrived: Arrived, raw: bytes, context: _Context) -> list[Any]:
    """Return what is sent on a stream that is answered by callback until its end, or until the time is over."""
    messages: list[Any] = []
    ended = threading.Event()

    def send(message: Any) -> None:
        if message is None:
            ended.set()
        else:
            messages.append(message)

    arrived(raw, context, send)
    ended.wait(context.time_remaining())
    if context.aborted is not None:
        raise context.aborted
    return messages


def _document(descriptor: Descriptor, answer: Any) -> Document:
    # Some handlers answer with bytes that are the message already.
    message = GetMessageClass(descriptor).FromString(answer) if type(answer) is bytes else answer
    document: Document = MessageToDict(message, always_print_fields_with_no_presence=True)
    return document


def _message(method: Method, request: Request) -> bytes:
    """Return the request of the call. Raises ProblemError for what is no JSON, BadRequestError for an unfit field."""
    message = method.request_class()
    if request.method == "POST":
        fields = request.json() if request.body else {}
        if not isinstance(fields, dict):
            raise ProblemError(HTTPStatus.BAD_REQUEST, "The body must be a JSON object.")
    else:
        fields = _fields(method.request, request.query)
    try:
        ParseDict(fields, message)
    except (ParseError, AttributeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"The request is not a {method.request.name}: {reason}.") from None
    return message.SerializeToString()


def _fields(descriptor: Descriptor, query: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the fields that a query names, under either of their names in JSON."""
    fields: dict[str, Any] = {}
    for name, values in query.items():
        found = descriptor.fields_by_name.get(name) or descriptor.fields_by_camelcase_name.get(name)
        if found is None:
            raise BadRequestError.of(name, "is no field of the request")
        if len(values) > 1 and not found.is_repeated:
            raise BadRequestError.of(name, "is given more than once")
        read = [_BOOLEANS.get(value, value) if found.type == FieldDescriptor.TYPE_BOOL else value for value in values]
        fields[name] = read if found.is_repeated else read[0]
    return fields


_BOOLEANS = {"true": True, "false": False}


def _timeout(request: Request, endpoint: Endpoint) -> float:
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return endpoint.timeout
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST, f"Request-Timeout must be seconds, above 0 and {LONGEST_TIMEOUT:g} at most."
        )
    return seconds


class _AbortedError(Exception):
    """The call ended with a status."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


class _Context(grpc.ServicerContext):
    """What the chain sees of gRPC in a call that came by HTTP."""

    def __init__(self, request: Request, timeout: float) -> None:
        self.refusal: Exception | None = None
        # What the call was ended with, also when that was on another thread.
        self.aborted: _AbortedError | None = None
        self._metadata = tuple((name, request.headers[name]) for name in _PASSED_ON if name in request.headers)
        self._give_up = time.monotonic() + timeout
        self._trailing: Any = ()
        self._callbacks: list[Callable[[], None]] | None = []

    def answered(self) -> dict[str, str]:
        """Return the headers of the answer."""
        found = dict(self._trailing).get(_REQUEST_ID)
        return {"X-Request-Id": found} if found else {}

    def end(self) -> None:
        """Call those who asked to be told."""
        callbacks, self._callbacks = self._callbacks or [], None
        for callback in callbacks:
            callback()

    def invocation_metadata(self) -> Any:
        return self._metadata

    def time_remaining(self) -> float:
        return max(0.0, self._give_up - time.monotonic())

    def is_active(self) -> bool:
        return self._callbacks is not None

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if self._callbacks is None:
            return False
        self._callbacks.append(callback)
        return True

    def peer(self) -> str:
        return "http"

    def peer_identities(self) -> None:
        return None

    def peer_identity_key(self) -> None:
        return None

    def auth_context(self) -> Any:
        return {}

    def send_initial_metadata(self, _metadata: Any) -> None:
        """Nothing is sent before the answer."""

    def set_trailing_metadata(self, metadata: Any) -> None:
        self._trailing = metadata

    def trailing_metadata(self) -> Any:
        return self._trailing

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        number: Any = code.value
        raise _AbortedError(status_pb2.Status(code=number[0], message=details))

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        packed: Any = status
        self._trailing = packed.trailing_metadata
        raw = next(value for name, value in packed.trailing_metadata if name == _STATUS_KEY)
        self.aborted = _AbortedError(status_pb2.Status.FromString(raw))
        raise self.aborted

    def set_code(self, _code: Any) -> None:
        """Errors are raised."""

    def set_details(self, _details: str) -> None:
        """Errors are raised."""

    def cancel(self) -> bool:
        """Nobody else knows of this call."""
        return False
