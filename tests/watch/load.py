"""Calls of every service, so that every panel has something to show."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from kronos.admin.v1 import backups_pb2, statements_pb2, status_pb2
from kronos.admin.v1.admin_pb2_grpc import AdminServiceStub
from kronos.logs.v1.logs_pb2_grpc import LogsServiceStub
from kronos.messages.v1 import messages_pb2
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub
from kronos.routes.v1 import routes_pb2
from kronos.routes.v1.routes_pb2_grpc import RoutesServiceStub
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub
from kronos.users.v1 import users_pb2
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from tests.cache import population as cache
from tests.logs.records import record, write_request
from tests.messages import population as messages
from tests.parts.eventually import eventually
from tests.routes import population as routes
from tests.tokens import population as tokens
from tests.watch.site import Site

LIMIT = 60.0


class Load:
    """What was made of each domain at first, and a round of calls of it."""

    def __init__(self, site: Site) -> None:
        channel: Any = site.channel_of("operator")
        self.users = UsersServiceStub(channel)
        self.tokens = TokensServiceStub(channel)
        self.logs = LogsServiceStub(channel)
        self.routes = RoutesServiceStub(channel)
        self.messages = MessagesServiceStub(channel)
        self.cache: Any = cache.stub(site)  # type: ignore[arg-type] # it asks for a channel alone
        self.admin = AdminServiceStub(channel)
        self.user = self._user()
        # Of whom nobody has a copy.
        self.spare = self._user()
        self.queue = messages.create(self.messages)
        self.namespace = cache.new_namespace(self.cache)
        self.quota = routes.create_quota(self.routes, failure_mode=routes_pb2.QUOTA_FAILURE_MODE_REFUSE)
        routes.create(self.routes)

    def round(self) -> None:
        """Call every service."""
        self._user()
        for _ in range(5):
            self.users.GetUser(users_pb2.GetUserRequest(id=self.user), timeout=LIMIT)
        self.users.ListUsers(users_pb2.ListUsersRequest(page_size=5), timeout=LIMIT)
        tokens.introspect(self.tokens, tokens.issue(self.tokens).issued.secret)
        self.logs.WriteLogs(write_request("shop", [record(), record()]), timeout=LIMIT)
        self.consume()
        messages.enqueue(self.messages, self.queue, "one", "two")
        leased = messages.lease(self.messages, self.queue, 1)
        acks = [messages_pb2.Receipt(message_id=each.message.id, lease_token=each.lease_token) for each in leased]
        self.messages.AckMessages(messages_pb2.AckMessagesRequest(queue=self.queue, receipts=acks), timeout=LIMIT)
        cache.put(self.cache, self.namespace, "key")
        for key in ("key", "none"):
            cache.get(self.cache, self.namespace, key)
        self.admin.GetStatus(status_pb2.GetStatusRequest(), timeout=LIMIT)
        self.admin.ListSlowQueries(statements_pb2.ListSlowQueriesRequest(page_size=1), timeout=LIMIT)

    def consume(self) -> None:
        """Take from a quota."""
        self.routes.ConsumeQuota(routes_pb2.ConsumeQuotaRequest(quota=self.quota.name), timeout=LIMIT)

    def drill(self, site: Site) -> None:
        """Try out the backup that the schedule makes at first, when it is there and what follows it is done."""
        over = "SELECT id FROM admin.backup_run WHERE task = 'retain' AND state = 'done'"
        eventually(lambda: site.run(over), LIMIT)
        request = backups_pb2.VerifyBackupRequest(drill=True, request_id=str(uuid4()))
        report = list(self.admin.VerifyBackup(request, timeout=LIMIT))[-1].report
        assert report.sound, report

    def _user(self) -> str:
        name = f"u-{uuid4().hex[:12]}"
        user = users_pb2.User(username=name, email=f"{name}@example.org")
        request = users_pb2.CreateUserRequest(user=user, request_id=str(uuid4()))
        return self.users.CreateUser(request, timeout=LIMIT).user.id
