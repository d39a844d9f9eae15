"""A gRPC server that answers users' calls as a test says, and keeps what callers sent with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1 import users_pb2_grpc


class Seen(NamedTuple):
    """One call: its method, request, headers, and the seconds that it had left."""

    method: str
    request: Any
    headers: dict[str, str | bytes]
    left: float


class AnsweredError(Exception):
    """Has a call answered with a status, a reason, and when to come back."""

    def __init__(self, code: int, reason: str, retry_seconds: int = 0) -> None:
        super().__init__(reason)
        details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain="db.kronos", metadata={"key": "value"})]
        if retry_seconds:
            wait = duration_pb2.Duration(seconds=retry_seconds)
            details.append(error_details_pb2.RetryInfo(retry_delay=wait))
        packed = [any_pb2.Any() for _ in details]
        for each, detail in zip(packed, details, strict=True):
            each.Pack(detail)
        self.status = rpc_status.to_status(status_pb2.Status(code=code, message=f"{reason}.", details=packed))


def unavailable() -> AnsweredError:
    return AnsweredError(code_pb2.UNAVAILABLE, "SHUTTING_DOWN")


@dataclass
class Scripted(users_pb2_grpc.UsersServiceServicer):
    """Each call takes the next answer of `script`: what it returns is the answer, what it raises the failure."""

    script: list[Callable[[], Any]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def start(self, credentials: grpc.ServerCredentials | None = None) -> str:
        """Listen on a free port and return the address."""
        self._server = grpc.server(ThreadPoolExecutor(4))
        users_pb2_grpc.add_UsersServiceServicer_to_server(self, self._server)
        address = "127.0.0.1:0"
        server = self._server
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        server.start()
        return f"127.0.0.1:{port}"

    def stop(self) -> None:
        self._server.stop(0).wait(10)

    def CreateUser(self, request: pb.CreateUserRequest, context: Any) -> Any:
        return self._answer("CreateUser", request, context) or pb.CreateUserResponse()

    def GetUser(self, request: pb.GetUserRequest, context: Any) -> Any:
        return self._answer("GetUser", request, context) or pb.GetUserResponse()

    def WatchUsers(self, request: pb.WatchUsersRequest, context: Any) -> Iterator[Any]:
        for answer in self._answer("WatchUsers", request, context) or ():
            if isinstance(answer, AnsweredError):
                context.abort_with_status(answer.status)
            yield answer

    def _answer(self, method: str, request: Any, context: Any) -> Any:
        headers = dict(context.invocation_metadata())
        self.seen.append(Seen(method, request, headers, context.time_remaining()))
        answer = self.script.pop(0)() if self.script else None
        if isinstance(answer, AnsweredError):
            context.abort_with_status(answer.status)
        return answer
