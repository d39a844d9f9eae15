"""Calls any method of a running server, knowing no more of its contract than its reflection tells."""

from __future__ import annotations

import base64
import difflib
import json
import queue
import re
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2 as details
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from grpc_status import rpc_status

# Seconds for each question to the server's reflection.
REFLECTION_TIMEOUT = 10.0

# What goes with the service config: a lost connection is made anew at once, and large requests can be repeated too.
_RETRY_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.per_rpc_retry_buffer_size", 16 << 20),
)

# A server that listens everywhere is called here.
_HERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - nothing is bound to it

_NOT_SPACE = re.compile(r"[^ \t\r\n]")

Metadata = Sequence[tuple[str, str | bytes]]


class ClientError(Exception):
    """The call cannot be made; the text is one sentence why."""


class CallError(Exception):
    """The server refused or failed a call; what it says, taken out of the details of google.rpc.Status."""

    def __init__(self, error: grpc.RpcError) -> None:
        self.code: str = error.code().name
        self.message: str = error.details() or ""
        self.reason: str | None = None
        self.metadata: dict[str, str] = {}
        # Field path and what is wrong with it.
        self.violations: list[tuple[str, str]] = []
        # Seconds.
        self.retry_after: float | None = None
        trailing: Any = error.trailing_metadata() or ()
        self.request_id: str | None = dict(trailing).get("x-request-id")
        try:
            status = rpc_status.from_call(error)
        except ValueError:
            # The details contradict the status: what stands in the status itself is left.
            status = None
        for detail in status.details if status else ():
            self._take(detail)
        super().__init__(f"{self.code}: {self.message}")

    def _take(self, detail: Any) -> None:
        for kind in (details.ErrorInfo, details.BadRequest, details.RetryInfo, details.RequestInfo):
            message = kind()
            if not detail.Unpack(message):
                continue
            if isinstance(message, details.ErrorInfo):
                self.reason, self.metadata = message.reason, dict(message.metadata)
            elif isinstance(message, details.BadRequest):
                self.violations += [(fault.field, fault.description) for fault in message.field_violations]
            elif isinstance(message, details.RetryInfo):
                self.retry_after = message.retry_delay.ToTimedelta().total_seconds()
            else:
                self.request_id = message.request_id


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the server, with what is needed to read and write its messages as JSON."""

    descriptor: MethodDescriptor
    pool: DescriptorPool

    @property
    def path(self) -> str:
        """The path that gRPC calls it by."""
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def signature(self) -> str:
        """Name, request and response in the words of the contract."""
        package = f"{self.descriptor.containing_service.file.package}."
        request = self.descriptor.input_type.full_name.removeprefix(package)
        response = self.descriptor.output_type.full_name.removeprefix(package)
        streams = [self.descriptor.client_streaming, self.descriptor.server_streaming]
        before, after = ("stream " if stream else "" for stream in streams)
        return f"{self.descriptor.name}({before}{request}) returns ({after}{response})"

    @property
    def request_type(self) -> type[Message]:
        """The class of the requests."""
        return GetMessageClass(self.descriptor.input_type)

    @property
    def response_type(self) -> type[Message]:
        """The class of the responses."""
        return GetMessageClass(self.descriptor.output_type)

    def request(self, text: str) -> Message:
        """Return the request that a JSON text stands for; raises ClientError when it is none."""
        try:
            return self._read(json.loads(text))
        except json.JSONDecodeError as error:
            raise ClientError(f"The request is not JSON: {error}.") from None

    def requests(self, text: str) -> list[Message]:
        """Return the requests of a JSON text: the elements of an array, or one value after another."""
        values: list[Any] = []
        position = 0
        while begin := _NOT_SPACE.search(text, position):
            try:
                value, position = json.JSONDecoder().raw_decode(text, begin.start())
            except json.JSONDecodeError as error:
                raise ClientError(f"Request {len(values) + 1} is not JSON: {error}.") from None
            values.append(value)
        if len(values) == 1 and isinstance(values[0], list):
            values = values[0]
        return [self._read(value) for value in values]

    def text(self, message: Message, *, indent: int | None = None) -> str:
        """Return a response as JSON."""
        return json_format.MessageToJson(message, indent=indent, ensure_ascii=False, descriptor_pool=self.pool)

    def fields(self, message: Message) -> dict[str, Any]:
        """Return a response as the object that its JSON is, under the names of the contract."""
        told: dict[str, Any] = json_format.MessageToDict(
            message, preserving_proto_field_name=True, descriptor_pool=self.pool
        )
        return told

    def _read(self, value: Any) -> Message:
        message = self.request_type()
        name = message.DESCRIPTOR.full_name
        # Only types of protobuf itself, as Timestamp, are anything but an object in JSON.
        if not isinstance(value, dict) and not name.startswith("google.protobuf."):
            raise ClientError(f"The request is not a {name}: it is no JSON object.")
        try:
            json_format.ParseDict(value, message, descriptor_pool=self.pool)
        except (json_format.ParseError, AttributeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ClientError(f"The request is not a {name}: {reason}.") from None
        return message


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one line of many: its number, and the error when it failed."""

    line: int
    error: ClientError | CallError | None


class Client:
    """A connection to a server; `headers` go with every call. Deadlines are in seconds, None is none."""

    def __init__(self, channel: grpc.Channel, *, headers: Metadata = ()) -> None:
        self._channel = channel
        self._headers = tuple(headers)
        self._reflection = _Reflection(channel, self._headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def services(self) -> list[tuple[str, list[Method]]]:
        """Return the full name and methods of every service that the server lists."""
        return [(name, self._methods(name)) for name in sorted(self._reflection.services())]

    def method(self, name: str) -> Method:
        """Return the method SERVICE/METHOD; the service's name may lack parts as long as one service is meant."""
        service, slash, method = name.lstrip("/").partition("/")
        if not slash or not service or not method:
            raise ClientError(f"{name} is not of the form SERVICE/METHOD.")
        methods = {found.descriptor.name: found for found in self._methods(self._full_name(service))}
        if method not in methods:
            raise ClientError(f"{service} has no method {method}; {_like(method, methods)}")
        return methods[method]

    def call(
        self, method: Method, requests: Iterable[Message], *, deadline: float | None = None
    ) -> Generator[Message, None, None]:
        """Make one call of any kind and yield its responses as they come; a ClientError of `requests` cancels it."""
        # On the wire all kinds are alike: the streaming form serves unary calls too.
        invoke = self._channel.stream_stream(
            method.path, method.request_type.SerializeToString, method.response_type.FromString
        )
        fault: list[ClientError] = []
        begun: queue.Queue[Any] = queue.Queue()

        def guarded() -> Iterator[Message]:
            # Runs in a thread of gRPC, which would log the error and end the call as if it were the server's.
            try:
                yield from requests if method.descriptor.client_streaming else map(_repeatable, requests)
            except ClientError as error:
                fault.append(error)
                begun.get(timeout=REFLECTION_TIMEOUT).cancel()

        call = invoke(guarded(), timeout=deadline, metadata=self._headers, wait_for_ready=False)
        begun.put(call)
        try:
            yield from call
        except grpc.RpcError as error:
            raise (fault[0] if fault else CallError(error)) from None
        finally:
            call.cancel()

    def repeat(
        self, method: Method, lines: Iterable[str], *, in_flight: int, deadline: float
    ) -> Generator[Outcome, None, None]:
        """Make one unary call for each line that is not empty, some at a time, and yield what became of each."""
        if method.descriptor.client_streaming or method.descriptor.server_streaming:
            raise ClientError(f"{method.descriptor.name} streams; only a unary method can be repeated.")
        invoke = self._channel.unary_unary(
            method.path, method.request_type.SerializeToString, method.response_type.FromString
        )
        running: dict[int, Any] = {}
        done: queue.SimpleQueue[int] = queue.SimpleQueue()

        def noted(number: int) -> Callable[[Any], None]:
            return lambda _call: done.put(number)

        def finished() -> Outcome:
            # Every call ends by its deadline, so this does too.
            number = done.get()
            error = running.pop(number).exception()
            return Outcome(number, CallError(error) if error else None)

        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                if len(running) >= in_flight:
                    yield finished()
                try:
                    request = method.request(line)
                except ClientError as error:
                    yield Outcome(number, error)
                    continue
                running[number] = call = invoke.future(
                    _repeatable(request), timeout=deadline, metadata=self._headers, wait_for_ready=False
                )
                call.add_done_callback(noted(number))
            while running:
                yield finished()
        finally:
            for call in running.values():
                call.cancel()

    def _methods(self, service: str) -> list[Method]:
        found = self._reflection.service(service)
        return [Method(method, self._reflection.pool) for method in found.methods]

    def _full_name(self, short: str) -> str:
        names = self._reflection.services()
        if short in names:
            return short
        meant = [name for name in names if _is_short_for(short, name)]
        if len(meant) == 1:
            return meant[0]
        if meant:
            raise ClientError(f"{short} may be {' or '.join(sorted(meant))}.")
        last = {name.rpartition(".")[2]: name for name in names}
        raise ClientError(f"The server has no service {short}; {_like(short.rpartition('.')[2], last)}")


class _Reflection:
    """What the server says of its contract (grpc.reflection.v1alpha), gathered in a pool of its own."""

    def __init__(self, channel: grpc.Channel, headers: Metadata) -> None:
        self.pool = DescriptorPool()
        self._stub = ServerReflectionStub(channel)
        self._headers = headers
        self._services: list[str] | None = None
        self._files: dict[str, FileDescriptorProto] = {}
        self._added: set[str] = set()

    def services(self) -> list[str]:
        """Return the full names of all services."""
        if self._services is None:
            answer = self._ask(ServerReflectionRequest(list_services=""))
            self._services = [service.name for service in answer.list_services_response.service]
        return self._services

    def service(self, name: str) -> ServiceDescriptor:
        """Return a service by its full name."""
        answer = self._ask(ServerReflectionRequest(file_containing_symbol=name))
        for file in self._taken(answer):
            self._add(file)
        try:
            return self.pool.FindServiceByName(name)
        except KeyError:
            raise ClientError(f"The server lists {name} but does not describe it.") from None

    def _add(self, name: str) -> None:
        if name in self._added:
            return
        self._added.add(name)
        if name not in self._files:
            self._taken(self._ask(ServerReflectionRequest(file_by_filename=name)))
        file = self._files.get(name)
        if file is None:
            raise ClientError(f"The server does not describe {name}, which its contract imports.")
        for imported in file.dependency:
            self._add(imported)
        self.pool.AddSerializedFile(file.SerializeToString())

    def _taken(self, answer: ServerReflectionResponse) -> list[str]:
        files = [FileDescriptorProto.FromString(raw) for raw in answer.file_descriptor_response.file_descriptor_proto]
        for file in files:
            self._files.setdefault(file.name, file)
        return [file.name for file in files]

    def _ask(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        try:
            answers = self._stub.ServerReflectionInfo(
                iter([request]), timeout=REFLECTION_TIMEOUT, metadata=self._headers
            )
            answer: ServerReflectionResponse = next(answers)
            answers.cancel()
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise ClientError("The server does not offer reflection.") from None
            raise CallError(error) from None
        except StopIteration:
            raise ClientError("The server's reflection gives no answer.") from None
        return answer


def connect(
    address: str, *, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> grpc.Channel:
    """Return a channel to HOST:PORT that repeats as the service config of the contract says.

    With any of the PEM files it speaks TLS, with a certificate if there is one.
    """
    policy = files("kronos").joinpath("service_config.json").read_text(encoding="utf-8")
    options = [("grpc.max_receive_message_length", -1), ("grpc.service_config", policy), *_RETRY_OPTIONS]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or port == "0":
        raise ClientError(f"{address} is not the HOST:PORT of a server.")
    target = f"{_HERE.get(host, host)}:{port}"
    if not (ca or certificate or key):
        return grpc.insecure_channel(target, options)
    if bool(certificate) != bool(key):
        raise ClientError("A client certificate and its key go together.")
    try:
        pems = [path.read_bytes() if path else None for path in (ca, key, certificate)]
    except OSError as error:
        raise ClientError(f"{error.filename} cannot be read: {error.strerror}.") from None
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(*pems), options)


def headers_of(lines: Iterable[str], token: str | None = None) -> list[tuple[str, str | bytes]]:
    """Return metadata of `NAME: VALUE` lines, values of -bin names in base64, and the bearer token; or ClientError."""
    headers: list[tuple[str, str | bytes]] = []
    for line in lines:
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or not re.fullmatch(r"[0-9a-z_.-]+", name.lower()) or not re.fullmatch(r"[ -~]*", value):
            raise ClientError(f"{name} is not metadata of the form NAME: VALUE in ASCII.")
        try:
            headers.append(
                (name.lower(), base64.b64decode(value, validate=True) if name.lower().endswith("-bin") else value)
            )
        except ValueError:
            raise ClientError(f"The value of {name} is not base64.") from None
    if token:
        if not re.fullmatch(r"[!-~]+", token):
            raise ClientError("The token has characters that no token has.")
        headers.append(("authorization", f"Bearer {token}"))
    return headers


def _repeatable(request: Message) -> Message:
    """Give a write its request_id, unless it has one: gRPC may send it again."""
    if getattr(request, "request_id", None) == "":
        request.request_id = str(uuid.uuid4())  # type: ignore[attr-defined] # it was there just now
    return request


def _is_short_for(short: str, name: str) -> bool:
    """Tell whether the parts of `short` stand in `name` in their order, the last one last."""
    parts = iter(reversed(name.split(".")))
    wanted = short.split(".")[::-1]
    return next(parts) == wanted[0] and all(part in parts for part in wanted[1:])


def _like(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {nearest[0]}?" if nearest else "`kronos-db call --list` shows all."
