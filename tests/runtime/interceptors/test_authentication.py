"""Authentication: who a caller is taken for, by token and by certificate, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.errors import KeyUnavailableError
from kronos_db.runtime.interceptors.authentication import hash_token, new_token
from kronos_db.runtime.interceptors.policy import Policy
from tests.parts.eventually import eventually
from tests.parts.refusal import read, refused
from tests.parts.serving import Serving
from tests.runtime.interceptors.certificates import Authority, Pair
from tests.runtime.interceptors.probe import ALL_KINDS, SERVICE, Probe, ProbeServer


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_nobody_and_strangers_are_refused_before_anything_is_read(probe: ProbeServer, kind: str) -> None:
    # Not even a message: decoding would say so.
    nobody = refused(lambda: probe.call(kind, b"\xff", caller=None))
    stranger = refused(lambda: probe.call(kind, b"\xff", caller="stranger"))

    assert (nobody.code, nobody.reason) == ("UNAUTHENTICATED", "CREDENTIAL_INVALID")
    assert (stranger.code, stranger.reason) == ("PERMISSION_DENIED", "METHOD_NOT_ALLOWED")
    assert stranger.metadata == {"method": f"{SERVICE}/{kind}", "caller": "stranger"}
    assert probe.calls == []


_HEADERS: list[tuple[str, Any]] = [
    ("authorization", ""),
    ("authorization", "Bearer"),
    ("authorization", "Bearer "),
    ("authorization", "Bearer x"),
    ("authorization", "Basic {token}"),
    ("authorization", "{token}"),
    ("authorization", "Bearer {token}x"),
    ("authorization", "Bearer Bearer {token}"),
    ("authorization", "Bearer {token},Bearer {token}"),
    ("authorization", "Bearer {upper}"),
    ("authorization", "Bearer {hash}"),
    ("authorization-bin", b"Bearer {token}"),
    ("x-authorization", "Bearer {token}"),
]


@pytest.mark.parametrize("header", _HEADERS, ids=str)
def test_a_header_that_is_no_credential(probe: ProbeServer, header: tuple[str, Any]) -> None:
    token = probe.tokens["friend"]
    name, value = header
    if isinstance(value, str):
        value = value.format(token=token, upper=token.upper(), hash=hash_token(token, probe.masters))
    else:
        value = value.replace(b"{token}", token.encode())

    found = refused(lambda: probe.call("Unary", caller=None, metadata=[(name, value)]))

    assert (found.code, found.reason) == ("UNAUTHENTICATED", "CREDENTIAL_INVALID")
    assert token.encode() not in found.everything


@pytest.mark.parametrize("header", ["Bearer {token}", "bearer {token}", "BEARER  {token} "])
def test_the_scheme_is_known_in_any_case(probe: ProbeServer, header: str) -> None:
    value = header.format(token=probe.tokens["friend"])

    probe.call("Unary", caller=None, metadata=[("authorization", value)])

    assert probe.calls[0].caller == "friend"


def test_tokens_are_random_and_kept_hashed(probe: ProbeServer) -> None:
    tokens = {new_token() for _ in range(100)}

    assert len(tokens) == 100
    assert all(token.startswith("kdb_") and len(token) == 47 for token in tokens)
    token = tokens.pop()
    assert token.removeprefix("kdb_") not in hash_token(token, probe.masters)
    assert hash_token(token, probe.masters) == hash_token(token, probe.masters)


def test_a_new_policy_holds_from_the_next_call_on(probe: ProbeServer) -> None:
    policy = probe.authentication._known.policy
    probe.call("Unary")
    try:
        probe.authentication.use(Policy({}, {}, {}))
        assert refused(lambda: probe.call("Unary")).code == "UNAUTHENTICATED"
        # A policy that cannot be used changes nothing.
        with pytest.raises(KeyUnavailableError):
            probe.authentication.use(Policy({f"hmac-sha256:mk-gone:{'a' * 43}": "friend"}, {}, {"friend": frozenset()}))
        assert refused(lambda: probe.call("Unary")).code == "UNAUTHENTICATED"
    finally:
        probe.authentication.use(policy)
    probe.call("Unary", Probe())


class Secured:
    """A server that asks for client certificates."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.authority = Authority()
        pair = self.authority.server()
        files = {
            "tls_client_ca_file": self.authority.certificate,
            "tls_certificate_file": pair.certificate,
            "tls_key_file": pair.key,
        }
        for name, content in files.items():
            (folder / name).write_bytes(content)
        self.serving = Serving(folder, dsn, **{name: str(folder / name) for name in files})
        access = folder / "access.toml"
        access.write_text(
            access.read_text()
            + '[callers.user-service]\nspiffe_ids = ["spiffe://kronos/user-service"]\n'
            + 'allow = ["kronos.users.v1.UsersService/GetUser"]\n'
        )
        self.serving.start()

    def users(self, pair: Pair | None) -> UsersServiceStub:
        """Return a stub whose calls show a certificate."""
        key, certificate = (pair.key, pair.certificate) if pair else (None, None)
        credentials = grpc.ssl_channel_credentials(self.authority.certificate, key, certificate)
        return UsersServiceStub(grpc.secure_channel(self.serving.server.grpc_address, credentials))


@pytest.fixture(scope="module")
def secured(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE secured")
    server = Secured(tmp_path_factory.mktemp("secured"), postgres.dsn_for("secured"))
    yield server
    server.serving.stop()


def _get(users: UsersServiceStub, **kw: Any) -> Any:
    return refused(lambda: users.GetUser(pb.GetUserRequest(id=str(uuid4())), timeout=10, **kw))


def test_a_certificate_with_the_right_spiffe_id(secured: Secured) -> None:
    users = secured.users(secured.authority.client("spiffe://kronos/user-service"))

    # Known and allowed: it is told that there is no such user.
    assert _get(users).reason == "USER_NOT_FOUND"
    denied = refused(lambda: users.ListUsers(pb.ListUsersRequest()))
    assert (denied.reason, denied.metadata["caller"]) == ("METHOD_NOT_ALLOWED", "user-service")


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("spiffe://kronos/log-service",),
        ("spiffe://elsewhere/user-service",),
        ("spiffe://kronos/user-service", "spiffe://kronos/other"),
        ("spiffe://kronos/user-service", "https://kronos.example/user-service"),
        ("https://kronos/user-service",),
        ("spiffe://kronos/user-service/deeper",),
    ],
)
def test_other_certificates_of_the_authority(secured: Secured, uris: tuple[str, ...]) -> None:
    found = _get(secured.users(secured.authority.client(*uris)))

    assert (found.code, found.reason) == ("UNAUTHENTICATED", "CREDENTIAL_INVALID")


def test_a_bearer_token_counts_before_the_certificate(secured: Secured) -> None:
    users = secured.users(secured.authority.client("spiffe://kronos/user-service"))
    token = secured.serving.tokens["operator"]

    assert _get(users, metadata=[("authorization", f"Bearer {token}")]).reason == "USER_NOT_FOUND"
    users.ListUsers(pb.ListUsersRequest(), metadata=(("authorization", f"Bearer {token}"),))
    # A wrong one is not made good by the certificate.
    assert _get(users, metadata=[("authorization", "Bearer wrong")]).code == "UNAUTHENTICATED"


@pytest.mark.parametrize("foreign", [False, True], ids=["none", "of another authority"])
def test_without_a_certificate_of_the_authority_there_is_no_connection(secured: Secured, foreign: bool) -> None:
    pair = Authority("others").client("spiffe://kronos/user-service") if foreign else None

    with pytest.raises(grpc.RpcError) as caught:
        secured.users(pair).GetUser(pb.GetUserRequest(id=str(uuid4())), timeout=10)

    assert (read(caught.value).code, read(caught.value).reason) == ("UNAVAILABLE", "")


def test_the_line_of_a_call_names_the_caller(probe: ProbeServer) -> None:
    probe.call("Unary")
    eventually(lambda: probe.lines)

    assert probe.lines[0]["caller"] == "friend"
