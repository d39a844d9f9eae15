"""Users from Python: create, get, list, read an error's details, and have gRPC repeat what is lost on the way."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from importlib.resources import files
from typing import TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from kronos.users.v1 import users_pb2, users_pb2_grpc

ADDRESS = os.environ.get("KRONOS_ADDRESS", "127.0.0.1:50051")
CREDENTIAL = (("authorization", f"Bearer {os.environ['KRONOS_TOKEN']}"),)
DEADLINE = 5.0  # seconds
# gRPC repeats by itself what the service config names, until the deadline. That is safe for writes because they carry a
# request_id: a repeat gets the first answer and changes nothing.
OPTIONS = [
    ("grpc.service_config", files("kronos").joinpath("service_config.json").read_text()),
    ("grpc.initial_reconnect_backoff_ms", 100),
]

Request = TypeVar("Request")
Response = TypeVar("Response")


def call(method: Callable[..., Response], request: Request) -> Response:
    """Call with credential and deadline."""
    return method(request, metadata=CREDENTIAL, timeout=DEADLINE)


def explain(error: grpc.RpcError) -> str:
    """Return status and reason of a refused call, with the fields at fault."""
    words = [error.code().name]
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            words.append(info.reason)
        elif detail.Unpack(bad):
            words += [f"{violation.field}: {violation.description}" for violation in bad.field_violations]
    return " | ".join(words)


def main() -> None:
    """Go through the life of a user."""
    name = f"ann-{uuid.uuid4().hex[:8]}"
    with grpc.insecure_channel(ADDRESS, OPTIONS) as channel:
        users = users_pb2_grpc.UsersServiceStub(channel)

        request = users_pb2.CreateUserRequest(
            user=users_pb2.User(username=name, email=f"{name}@example.org"), request_id=str(uuid.uuid4())
        )
        created = call(users.CreateUser, request).user
        print("created ", created.id, created.username)

        repeated = call(users.CreateUser, request).user
        print("repeated", repeated.id, "the same user" if repeated == created else "ANOTHER USER")

        found = call(users.GetUser, users_pb2.GetUserRequest(email=f"{name.upper()}@example.org")).user
        print("found   ", found.id, found.email)

        page = users_pb2.ListUsersRequest(username_prefix="ann-", page_size=100)
        count = 0
        while True:
            answer = call(users.ListUsers, page)
            count += len(answer.users)
            if not answer.next_page_token:
                break
            page.page_token = answer.next_page_token
        print("listed  ", count)

        for faulty in (users_pb2.User(username=name), users_pb2.User(username="-", email="nowhere")):
            try:
                call(users.CreateUser, users_pb2.CreateUserRequest(user=faulty, request_id=str(uuid.uuid4())))
            except grpc.RpcError as error:
                print("refused ", explain(error))


if __name__ == "__main__":
    main()
