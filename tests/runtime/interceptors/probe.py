"""A service made for the tests of the chain: every kind of method, and every kind of field that the chain looks at."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from buf.validate import validate_pb2
from google.protobuf import descriptor_pool, struct_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, MethodOptions
from google.protobuf.message_factory import GetMessageClass
from kronos.options.v1 import options_pb2
from prometheus_client import CollectorRegistry

from kronos_db.runtime.crypto.keyring import KeyRing
from kronos_db.runtime.crypto.marks import Marks
from kronos_db.runtime.crypto.master_key import FileMasterKeys, create_master_key_file
from kronos_db.runtime.errors import RUNTIME_ERRORS, Answer, Code, ErrorTable, KronosError
from kronos_db.runtime.feed.limits import CallerStreams
from kronos_db.runtime.interceptors.access_log import AccessLog
from kronos_db.runtime.interceptors.audit import AuditOutcome, AuditRequest, Entry
from kronos_db.runtime.interceptors.authentication import Authentication, hash_token, new_token
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.chain import Chain, register
from kronos_db.runtime.interceptors.conversation import Conversations, converses
from kronos_db.runtime.interceptors.encryption import Encryption
from kronos_db.runtime.interceptors.errors import Errors
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.interceptors.metrics import Metrics
from kronos_db.runtime.interceptors.overload import Limits, Overload
from kronos_db.runtime.interceptors.policy import Policy
from kronos_db.runtime.interceptors.validation import VALIDATION_ERRORS, Validation
from kronos_db.runtime.ops.metrics import RpcMetrics
from kronos_db.runtime.pusher import Pusher
from kronos_db.runtime.workers import Workers
from tests.parts.eventually import eventually
from tests.runtime.crypto.conftest import MemoryRows

SERVICE = "kronos.probe.v1.ProbeService"
# Name, whether requests stream, whether responses stream, type of the request.
METHODS: Sequence[tuple[str, bool, bool, str]] = (
    ("Unary", False, False, "Probe"),
    ("ClientStream", True, False, "Probe"),
    ("ServerStream", False, True, "Probe"),
    ("BidiStream", True, True, "Probe"),
    ("Push", False, True, "Probe"),
    ("Converse", True, True, "Probe"),
    ("Burn", False, False, "Probe"),
    ("Write", False, False, "WriteRequest"),
    ("OtherWrite", False, False, "WriteRequest"),
)
ALL_KINDS = ("Unary", "ClientStream", "ServerStream", "BidiStream", "Push")
KIND_NAMES = {
    "Unary": "unary",
    "ClientStream": "client_stream",
    "BidiStream": "bidi_stream",
    "Converse": "bidi_stream",
}
CALLER_STREAMS = 50
MAX_BYTES = 64 * 1024
_WIDE = Limits(64, 64, 16, 64, 0.0)

_STRING, _MESSAGE, _BOOL = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_MESSAGE, 8
_ONE, _MANY = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED


class TeapotError(KronosError):
    """An error with an answer of its own."""


class UnmappedError(KronosError):
    """An error of ours that the table forgot."""


ERRORS: Mapping[type[KronosError], Answer] = {
    TeapotError: Answer(Code.FAILED_PRECONDITION, "TEAPOT", "The {vessel} is short and stout.")
}


def _field(message: Any, name: str, number: int, kind: int = _STRING, label: int = _ONE) -> Any:
    return message.field.add(name=name, number=number, type=kind, label=label)


def _map(message: DescriptorProto, name: str, number: int, type_name: str = "") -> None:
    entry = message.nested_type.add(name=name.title().replace("_", "") + "Entry")
    entry.options.map_entry = True
    _field(entry, "key", 1)
    value = _field(entry, "value", 2, _MESSAGE if type_name else _STRING)
    if type_name:
        value.type_name = type_name
    _field(message, name, number, _MESSAGE, _MANY).type_name = f".kronos.probe.v1.{message.name}.{entry.name}"


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="kronos/probe/v1/probe.proto", package="kronos.probe.v1", syntax="proto3")
    file.dependency.extend(["buf/validate/validate.proto", "kronos/options/v1/options.proto"])
    file.dependency.append(struct_pb2.DESCRIPTOR.name)
    probe = file.message_type.add(name="Probe")
    _field(probe, "id", 1).options.Extensions[options_pb2.record_id] = True
    secret = _field(probe, "secret", 2).options.Extensions[options_pb2.sensitive]
    secret.protection, secret.index = options_pb2.PROTECTION_ENCRYPTED, "probe.secret"
    secret.normalization = options_pb2.NORMALIZATION_CASELESS
    lookup = _field(probe, "lookup", 3).options.Extensions[options_pb2.sensitive]
    lookup.protection, lookup.index = options_pb2.PROTECTION_HASHED, "probe.secret"
    lookup.normalization = options_pb2.NORMALIZATION_CASELESS
    word = _field(probe, "word", 4).options.Extensions[options_pb2.sensitive]
    word.protection = options_pb2.PROTECTION_REDACTED
    _field(probe, "name", 5).options.Extensions[validate_pb2.field].string.max_len = 10
    tags = _field(probe, "tags", 6, _STRING, _MANY)
    tags.options.Extensions[validate_pb2.field].repeated.items.string.max_len = 5
    _map(probe, "labels", 7)
    labels = probe.field[-1].options.Extensions[validate_pb2.field].map
    labels.values.string.max_len = 5
    _map(probe, "by_name", 8, ".kronos.probe.v1.Probe")
    _field(probe, "children", 9, _MESSAGE, _MANY).type_name = ".kronos.probe.v1.Probe"
    _field(probe, "child", 10, _MESSAGE).type_name = ".kronos.probe.v1.Probe"
    _field(probe, "attributes", 11, _MESSAGE).type_name = ".google.protobuf.Struct"
    write = file.message_type.add(name="WriteRequest")
    _field(write, "probe", 1, _MESSAGE).type_name = ".kronos.probe.v1.Probe"
    _field(write, "request_id", 2)
    _field(write, "validate_only", 3, _BOOL)
    service = file.service.add(name="ProbeService")
    for name, requests, responses, request in METHODS:
        method = service.method.add(
            name=name,
            input_type=f".kronos.probe.v1.{request}",
            output_type=".kronos.probe.v1.Probe",
            client_streaming=requests,
            server_streaming=responses,
        )
        if name == "Burn":
            method.options.Extensions[options_pb2.workload] = options_pb2.WORKLOAD_COMPUTE
            method.options.idempotency_level = MethodOptions.NO_SIDE_EFFECTS
    return file


_pool = descriptor_pool.Default()
_pool.Add(_file())
_service = _pool.FindServiceByName(SERVICE)
Probe: Any = GetMessageClass(_pool.FindMessageTypeByName("kronos.probe.v1.Probe"))
WriteRequest: Any = GetMessageClass(_pool.FindMessageTypeByName("kronos.probe.v1.WriteRequest"))


class MemoryRecorder:
    """Keeps entries in memory; fails with `failure`, if any, where it may."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.failure: Exception | None = None

    def record(self, entry: Entry) -> None:
        if self.failure is not None:
            raise self.failure
        self.entries.append(entry)

    def note(self, entry: Entry) -> None:
        self.entries.append(entry)


class ProbeServer:
    """The probe service behind the whole chain on a real port. `on` holds what a method does, by its name."""

    def __init__(self, folder: Path, limits: Limits = _WIDE) -> None:
        create_master_key_file(folder / "master.key")
        self.masters = FileMasterKeys(folder / "master.key")
        self.tokens = {"friend": new_token(), "stranger": new_token()}
        self.on: dict[str, Callable[..., Any]] = {}
        self.seen: list[Any] = []
        self.calls: list[Call] = []
        self.lines: list[dict[str, Any]] = []
        # Of every call of the service; a list, since appending is safe from any thread.
        self._logged: list[str] = []
        self.registry = CollectorRegistry()
        self.ring = KeyRing("probe", self.masters, MemoryRows())
        self.metrics = RpcMetrics(self.registry)
        self.workers = Workers(2, 1, limits.streams)
        self.overload = Overload(limits, self.workers.expected_wait, self.metrics.refused)
        self.authentication = Authentication(self._policy(), self.masters)
        self.pusher = Pusher()
        self.pusher.start()
        self.streams = CallerStreams(CALLER_STREAMS)
        self.conversations = Conversations(self.workers.post, self.pusher, self.streams)
        table = ErrorTable(RUNTIME_ERRORS, VALIDATION_ERRORS, ERRORS)
        self.recorder = MemoryRecorder()
        self.recorders = {"probe": self.recorder}
        self.chain = Chain(
            {
                "access_log": AccessLog(self._line),
                "metrics": Metrics(self.metrics),
                "errors": Errors(table),
                "audit_outcome": AuditOutcome(self.recorders, table),
                "authentication": self.authentication,
                "overload": self.overload,
                "validation": Validation(MAX_BYTES),
                "audit_request": AuditRequest(self.recorders, Marks()),
                "encryption": Encryption({"probe": self.ring}, Marks(), 3600.0),
            },
            self.conversations,
        )
        self.server = grpc.server(
            self.workers.as_executor(), options=[("grpc.max_receive_message_length", 4 * MAX_BYTES)]
        )
        handlers = {Method(method): self._handler(method.name) for method in _service.methods}
        self.composed = {method: self.chain.compose(method, handler) for method, handler in handlers.items()}
        register(self.server, self.composed)
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def stop(self) -> None:
        """End it."""
        self.channel.close()
        self.server.stop(0).wait(10)
        self.workers.shutdown()
        self.pusher.stop()

    def reset(self) -> None:
        """Forget what earlier tests did, once their calls are over: callers may know that before the log does."""
        eventually(lambda: sum(self.counts(method[0])["started"] for method in METHODS) == len(self._logged))
        self.on.clear()
        self.seen.clear()
        self.calls.clear()
        self.lines.clear()
        self.recorder.entries.clear()
        self.recorder.failure = None

    def start(self, name: str, *requests: Any, caller: str | None = "friend", timeout: float = 20, **kw: Any) -> Any:
        """Begin a call of method `name` with messages, or raw bytes, and return what grpc returns."""
        method = _service.methods_by_name[name]
        make = {
            (False, False): self.channel.unary_unary,
            (True, False): self.channel.stream_unary,
            (False, True): self.channel.unary_stream,
            (True, True): self.channel.stream_stream,
        }[method.client_streaming, method.server_streaming]
        stub: Any = make(f"/{SERVICE}/{name}", _encoded, Probe.FromString)
        metadata = [*kw.pop("metadata", ())]
        if caller is not None:
            metadata.append(("authorization", f"Bearer {self.tokens[caller]}"))
        # A single iterator stands for a stream that the test drives.
        driven = len(requests) == 1 and isinstance(requests[0], Iterator)
        argument = (requests[0] if driven else iter(requests)) if method.client_streaming else requests[0]
        if method.server_streaming:
            return stub(argument, timeout=timeout, metadata=metadata)
        return stub.future(argument, timeout=timeout, metadata=metadata)

    def start_late(self, name: str, messages: queue.SimpleQueue[bytes | None], caller: str | None = "friend") -> Any:
        """Begin a unary call whose message, of `messages`, comes later."""
        metadata = [("authorization", f"Bearer {self.tokens[caller]}")] if caller else []
        stub: Any = self.channel.stream_unary(f"/{SERVICE}/{name}")
        return stub.future(iter(messages.get, None), timeout=20, metadata=metadata)

    def refusals(self) -> dict[str, int]:
        """Return how many calls were refused for overload, by reason."""
        found: dict[str, int] = {}
        for family in self.registry.collect():
            for sample in family.samples:
                if sample.name == "kronos_db_calls_refused_total":
                    assert sample.labels["domain"] == "probe"
                    found[sample.labels["reason"]] = int(sample.value)
        return found

    def call(self, name: str, *requests: Any, **kw: Any) -> list[Any]:
        """Make a call and return the responses."""
        started = self.start(name, *(requests or (Probe(),)), **kw)
        method = _service.methods_by_name[name]
        return list(started) if method.server_streaming else [started.result()]

    def counts(self, name: str) -> Counter[str]:
        """Return how many calls of a method were started, handled by code, and how many messages were counted."""
        found: Counter[str] = Counter()
        for family in self.registry.collect():
            for sample in family.samples:
                if sample.labels.get("grpc_method") != name:
                    continue
                short = sample.name.removeprefix("grpc_server_").removesuffix("_total")
                code = sample.labels.get("grpc_code")
                if sample.value and short in {
                    "started",
                    "handled",
                    "msg_received",
                    "msg_sent",
                    "handling_seconds_count",
                }:
                    found[f"{short} {code}" if code else short] += int(sample.value)
        return found

    def _policy(self) -> Policy:
        paths = frozenset(f"{SERVICE}/{method[0]}" for method in METHODS)
        hashes = {hash_token(token, self.masters): caller for caller, token in self.tokens.items()}
        return Policy(hashes, {}, {"friend": paths, "stranger": frozenset({f"{SERVICE}/Burn"})})

    def _line(self, message: str, names: Sequence[str], **fixed: str) -> Callable[..., None]:
        def log(*values: object) -> None:
            self.lines.append({"event": message, **fixed, **dict(zip(names, values, strict=True))})
            if fixed["method"].startswith(SERVICE):
                self._logged.append(fixed["method"])

        return log

    def _handler(self, name: str) -> grpc.RpcMethodHandler[Any, Any]:
        method = _service.methods_by_name[name]
        behavior: Any = _Behavior(self, name, method.server_streaming)
        if name == "Push":

            def push(request: Any, call: Call, send: Any) -> None:
                self.calls.append(call)
                self.seen.append(_copy(request))
                wish: Callable[..., Any] = self.on.get(name, _push_back)
                wish(request, call, send)

            push.experimental_non_blocking = True  # type: ignore[attr-defined]
            behavior = push
        if name == "Converse":
            behavior = converses(lambda _probe, replies: self.on[name](replies)).__get__(self)
        make: Any = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]
        handler: grpc.RpcMethodHandler[Any, Any] = make(behavior, None, _encoded)
        return handler


class _Behavior:
    """What a test wants of a method; without a wish, requests come back as responses."""

    def __init__(self, probe: ProbeServer, name: str, streams: bool) -> None:
        self._probe = probe
        self._name = name
        self._streams = streams

    def __call__(self, request: Any, call: Call) -> Any:
        self._probe.calls.append(call)
        if isinstance(request, Iterator):
            requests: Any = self._noted(request)
        else:
            self._probe.seen.append(_copy(request))
            requests = request
        wish = self._probe.on.get(self._name)
        if wish is not None:
            return wish(requests, call)
        if not isinstance(requests, Iterator):
            back = getattr(requests, "probe", requests)
            return iter([_copy(back), back]) if self._streams else back
        return requests if self._streams else list(requests)[-1]

    def _noted(self, requests: Iterator[Any]) -> Iterator[Any]:
        for request in requests:
            self._probe.seen.append(_copy(request))
            yield request


def _push_back(request: Any, _call: Call, send: Any) -> None:
    """Answer twice and end, from another thread, as real ones do."""

    def answer() -> None:
        send(_copy(request))
        send(request)
        send(None)

    threading.Thread(target=answer).start()


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _encoded(message: Any) -> bytes:
    encoded: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return encoded
