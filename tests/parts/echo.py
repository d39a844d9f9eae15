"""A server with reflection and a service of every kind of call, by a contract that this process does not know."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # .pyi files, but no py.typed
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import ReflectionServicer
from grpc_status import rpc_status
from grpc_tools import protoc  # type: ignore[import-untyped] # its authors publish no types

TOKEN = "kdb_sesame"
WELL_KNOWN = Path(protoc.__file__).parent / "_proto"
CONTRACT = """
syntax = "proto3";
package kronos.echo.v1;
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";

service EchoService {
  rpc Once(Item) returns (Item);
  rpc Count(Item) returns (stream Item);
  rpc Sum(stream Item) returns (Item);
  rpc Talk(stream Item) returns (stream Item);
}
service OtherService { rpc Once(Item) returns (Item); }
enum Mood { MOOD_UNSPECIFIED = 0; MOOD_GOOD = 1; }
message Item {
  string text = 1;
  int64 number = 2;
  google.protobuf.Timestamp create_time = 3;
  google.protobuf.Struct extra = 4;
  Mood mood = 5;
  repeated Item parts = 6;
  map<string, int32> by_name = 7;
  oneof kind { string a = 8; bytes b = 9; }
  optional string note = 10;
}
"""


def contract_in(folder: Path) -> DescriptorPool:
    """Compile the contract in `folder`; it is apart from what this process knows by itself."""
    (folder / "echo.proto").write_text(CONTRACT)
    arguments = [f"-I{folder}", f"-I{WELL_KNOWN}", "--include_imports", f"--descriptor_set_out={folder / 'set'}"]
    assert protoc.main(["protoc", *arguments, "echo.proto"]) == 0
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString((folder / "set").read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


class Echo:
    """A server with reflection and the echo service; its method Once wants the token."""

    def __init__(self, pool: DescriptorPool) -> None:
        self.item: Any = GetMessageClass(pool.FindMessageTypeByName("kronos.echo.v1.Item"))
        self.metadata: dict[str, Any] = {}
        self.deadline: float | None = None
        # Seconds that a sum waits to be cancelled, and whether it was.
        self.patience = 0.0
        self.cancelled = threading.Event()
        self.in_work = 0
        self.most_in_work = 0
        self.together = threading.Barrier(4)
        self._lock = threading.Lock()
        self.server = grpc.server(ThreadPoolExecutor(16))
        services = ["kronos.echo.v1.EchoService", "kronos.echo.v1.OtherService"]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionServicer(services, pool), self.server)
        kinds = {
            "Once": (grpc.unary_unary_rpc_method_handler, self.once),
            "Count": (grpc.unary_stream_rpc_method_handler, self.count),
            "Sum": (grpc.stream_unary_rpc_method_handler, self.sum),
            "Talk": (grpc.stream_stream_rpc_method_handler, self.talk),
        }
        handlers: dict[str, Any] = {
            name: make(handler, self.item.FromString, self.item.SerializeToString)
            for name, (make, handler) in kinds.items()
        }
        self.server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, handlers) for service in services]
        )
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def once(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.metadata = dict(context.invocation_metadata())
        self.deadline = context.time_remaining()
        if self.metadata.get("authorization") != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Who are you?")
        if request.text == "refuse":
            context.abort_with_status(rpc_status.to_status(refusal_status()))
        if request.text == "hang":
            ended = threading.Event()
            context.add_callback(ended.set)
            ended.wait(30)
        if request.text == "together":
            with self._lock:
                self.in_work += 1
                self.most_in_work = max(self.most_in_work, self.in_work)
            self.together.wait(30)
            with self._lock:
                self.in_work -= 1
        return request

    def count(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for number in range(request.number):
            yield self.item(number=number)
        if request.text == "refuse":
            context.abort(grpc.StatusCode.DATA_LOSS, "The rest is lost.")

    def sum(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        ended = threading.Event()
        if not context.add_callback(ended.set):
            ended.set()
        try:
            total = sum(request.number for request in requests)
        finally:
            # gRPC may hand on the end of a stream that was cancelled before it knows that it was.
            if self.patience and ended.wait(self.patience):
                self.cancelled.set()
        return self.item(number=total)

    def talk(self, requests: Iterator[Any], _context: grpc.ServicerContext) -> Iterator[Any]:
        for request in requests:
            yield self.item(text=request.text.upper())


def refusal_status() -> Any:
    violation = error_details_pb2.BadRequest.FieldViolation(field="item.text", description="must not be refuse")
    status = status_pb2.Status(code=3, message="The request breaks a rule of the contract.")
    for detail in (
        error_details_pb2.ErrorInfo(reason="BAD_REQUEST", domain="db.kronos", metadata={"limit": "3"}),
        error_details_pb2.BadRequest(field_violations=[violation]),
        error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=500_000_000)),
        error_details_pb2.RequestInfo(request_id="r-1"),
        error_details_pb2.DebugInfo(detail="of a kind that is not shown"),
    ):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
