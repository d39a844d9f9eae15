"""A whole server of the tests, in this process, with callers of different rights."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from kronos.users.v1 import users_pb2_grpc

from kronos_db import schemas
from kronos_db.config import Settings
from kronos_db.runtime.crypto.master_key import FileMasterKeys, create_master_key_file
from kronos_db.runtime.interceptors.authentication import hash_token, new_token
from kronos_db.server import Server

# What the callers of the tests may call. Hashing is made cheap: its strength is argon2's own concern.
CALLERS: Mapping[str, str] = {
    "operator": '["*"]\nmay = ["tokens.introspect.reason"]',
    "second": '["kronos.routes.v1.RoutesService/ConsumeQuota"]',
    "reader": '["kronos.users.v1.UsersService/GetUser", "kronos.users.v1.UsersService/ListUsers"]',
    "gateway": '["kronos.tokens.v1.TokensService/IntrospectToken", "kronos.tokens.v1.TokensService/CheckToken"]',
}
CHEAP = {
    "password_memory_kib": 64,
    "password_iterations": 1,
    "log_level": "error",
    "cpu_affinity": "off",
    "drain_pause": 0.0,
}


class Serving:
    """Settings, server and credentials. `dsn` is a superuser's; `folder` takes the key and access files."""

    def __init__(self, folder: Path, dsn: str, **changes: Any) -> None:
        self.folder = folder
        self.tokens: dict[str, str] = {}
        self.settings = Settings.model_validate(
            {
                "grpc_listen": "127.0.0.1:0",
                "ops_listen": "127.0.0.1:0",
                "postgres_dsn": dsn,
                **make_secrets(folder, self.tokens),
                **CHEAP,
                **changes,
            }
        )
        schemas.migrate(self.settings, lambda _domain, _name: None)
        self.server = Server(self.settings)
        self._channel: grpc.Channel | None = None

    def start(self) -> None:
        """Serve."""
        assert self.server.start(threading.Event())
        self._channel = grpc.insecure_channel(self.server.grpc_address)

    def restart(self) -> None:
        """Serve with a new server on the same data, as after a restart of the process."""
        self.stop()
        self.server = Server(self.settings)
        self.start()

    def stop(self) -> None:
        """End it."""
        if self._channel is not None:
            self._channel.close()
        self.server.stop()

    @property
    def channel(self) -> grpc.Channel:
        """A channel without credentials."""
        assert self._channel is not None
        return self._channel

    def channel_of(self, caller: str) -> grpc.Channel:
        """A channel whose calls carry the bearer token of `caller`."""
        return grpc.intercept_channel(self.channel, _Bearer(self.tokens[caller]))

    def users(self, caller: str = "operator") -> users_pb2_grpc.UsersServiceStub:
        """A stub whose calls carry the bearer token of `caller`; other services: their stub on `channel_of`."""
        return users_pb2_grpc.UsersServiceStub(self.channel_of(caller))


# The same for all servers of a test run: roles belong to the whole PostgreSQL.
ROLE_SECRET = "the role secret of the tests, 32 or more"


def make_secrets(folder: Path, tokens: dict[str, str]) -> dict[str, str]:
    """Make master key, role secret and access file; fill `tokens`; return the settings that name them."""
    create_master_key_file(folder / "master.key")
    masters = FileMasterKeys(folder / "master.key")
    (folder / "role.secret").write_text(ROLE_SECRET)
    text = ""
    for caller, allow in CALLERS.items():
        tokens[caller] = new_token()
        text += f'[callers.{caller}]\ntokens = ["{hash_token(tokens[caller], masters)}"]\nallow = {allow}\n'
    (folder / "access.toml").write_text(text)
    return {
        "master_key_file": str(folder / "master.key"),
        "postgres_role_secret_file": str(folder / "role.secret"),
        "access_file": str(folder / "access.toml"),
    }


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds a bearer token to every call."""

    def __init__(self, token: str) -> None:
        self._header = ("authorization", f"Bearer {token}")

    def _with_token(self, details: grpc.ClientCallDetails) -> Any:
        return details._replace(metadata=[*(details.metadata or ()), self._header])  # type: ignore[attr-defined]

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(self._with_token(client_call_details), request_iterator)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(self._with_token(client_call_details), request_iterator)
