"""Writers of users and watchers that come back: what the tests of WatchUsers share."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from uuid import uuid4

import grpc
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from tests.parts.commit_order import Write, timed

# Whether tests that have a long form take that: `make soak`.
SOAK = os.environ.get("KRONOS_TEST_SOAK") == "1"
# Seconds that a stream, or a wait for the end of one, takes at most.
LIMIT = 1200.0 if SOAK else 60.0


def write_users(users: UsersServiceStub, ids: Sequence[str], count: int, seed: int) -> list[Write]:
    """Change `count` times one of the users; return the writes."""
    chance = random.Random(seed)
    writes = []
    for number in range(count):
        user = pb.User(id=chance.choice(ids), display_name=f"{seed} {number}")
        # A request_id, since a process may be killed after it wrote and before it answered.
        request = pb.UpdateUserRequest(user=user, request_id=str(uuid4()))
        answer, began, ended = timed(lambda: persistently(lambda: users.UpdateUser(request, timeout=LIMIT)))  # noqa: B023
        writes.append(Write(answer.user.id, int(answer.user.etag), began, ended))
    return writes


def persistently(call: Callable[[], pb.UpdateUserResponse]) -> pb.UpdateUserResponse:
    """Repeat a call as long as the process that should answer it is away."""
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined]  # not in the stubs
                raise


class Watcher:
    """Watches users, and comes back with its last token whenever its stream ends. `told` holds id and version."""

    def __init__(self, users: Callable[[], UsersServiceStub], ids: Sequence[str] = ()) -> None:
        self._users = users
        self._ids = ids
        self.token = ""
        self.told: list[tuple[str, int]] = []
        self.came_back = 0

    def begin(self) -> None:
        """Learn from where on to watch."""
        stream = self._users().WatchUsers(pb.WatchUsersRequest(user_ids=self._ids), timeout=LIMIT)
        self.token = next(stream).resume_token
        stream.cancel()

    def watch(self, count: int, patience: Callable[[], int]) -> None:
        """Watch until `count` changes were told; leave each stream after `patience()` messages."""
        while len(self.told) < count:
            request = pb.WatchUsersRequest(resume_token=self.token, user_ids=self._ids)
            stream = self._users().WatchUsers(request, timeout=LIMIT)
            left = patience()
            try:
                for message in stream:
                    self.take(message)
                    left -= 1
                    if left <= 0 or len(self.told) >= count:
                        break
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined]  # not in the stubs
                    raise
            stream.cancel()
            self.came_back += 1

    def take(self, message: pb.WatchUsersResponse) -> None:
        """Take note of a message."""
        self.token = message.resume_token or self.token
        if message.HasField("change"):
            self.told.append((message.change.user_id, int(message.change.etag)))
