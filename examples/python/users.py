"""Users: a write that may be repeated, look-ups, pages, permissions, errors by reason, and changes as they happen."""

from __future__ import annotations

import os
import uuid

import grpc
from kronos_db_client import Refusal, connect, follow, pages, repeatable
from kronos_db_client.users.v1 import roles_pb2
from kronos_db_client.users.v1 import users_pb2 as pb
from kronos_db_client.users.v1.users_pb2_grpc import UsersServiceStub


def main() -> None:
    """Go through the life of a user."""
    name = f"ann-{uuid.uuid4().hex[:8]}"
    with connect(os.environ["KRONOS_ADDRESS"], token=os.environ["KRONOS_TOKEN"]) as channel:
        users = UsersServiceStub(channel)

        # With a request id of its own a request may be sent again, also after a crash: it gets the first answer.
        request = repeatable(pb.CreateUserRequest(user=pb.User(username=name, email=f"{name}@example.org")))
        created = users.CreateUser(request).user
        print("created ", created.id, created.username)
        repeated = users.CreateUser(request).user
        print("repeated", repeated.id, "the same user" if repeated == created else "ANOTHER USER")

        found = users.GetUser(pb.GetUserRequest(email=f"{name.upper()}@example.org")).user
        print("found   ", found.id, found.email)
        listing = pb.ListUsersRequest(username_prefix="ann-", page_size=100)
        print("listed  ", sum(len(page.users) for page in pages(users.ListUsers, listing)))

        for faulty in (pb.User(username=name), pb.User(username="-", email="nowhere")):
            try:
                users.CreateUser(pb.CreateUserRequest(user=faulty))
            except grpc.RpcError as error:
                refusal = Refusal.of(error)
                fields = " | ".join(f"{field}: {description}" for field, description in refusal.violations)
                print("refused ", refusal.code.name, refusal.reason, fields)

        # The first message comes at once and says from where on changes are told.
        changes = follow(users.WatchUsers, pb.WatchUsersRequest(user_ids=[created.id]))
        next(changes)
        role = users.CreateRole(role_request(name)).role
        users.GrantRole(roles_pb2.GrantRoleRequest(grant=roles_pb2.Grant(user_id=created.id, role_id=role.id)))
        change = next(message.change for message in changes if message.HasField("change"))
        print("changed ", change.user_id, pb.UserEvent.Name(change.event))
        changes.close()
        question = roles_pb2.CheckPermissionRequest(user_id=created.id, permission="reports:read")
        print("allowed ", users.CheckPermission(question).allowed)


def role_request(name: str) -> roles_pb2.CreateRoleRequest:
    """Return a role that may read reports."""
    return roles_pb2.CreateRoleRequest(role=roles_pb2.Role(name=name, permissions=["reports:read"]))


if __name__ == "__main__":
    main()
