"""Sensitive values leave no trace outside of the caller's answers, and sealed ones open in their place alone."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
import redis
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub
from psycopg.conninfo import conninfo_to_dict

from kronos_db import schemas
from kronos_db.config import Settings
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.embedded.redis import EmbeddedRedis
from tests.conformance.needles import forms, found_in
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import CHEAP, Serving, make_secrets
from tests.users.population import create, new

_ROOT = Path(__file__).parent.parent.parent
_LIMIT = 30.0


class ServerProcess:
    """The server as it is run in production, in a process of its own, logging everything."""

    def __init__(self, folder: Path, dsn: str, **changes: str) -> None:
        self.tokens: dict[str, str] = {}
        settings = {
            **changes,
            "grpc_listen": "127.0.0.1:0",
            "ops_listen": "127.0.0.1:0",
            "postgres_dsn": dsn,
            **make_secrets(folder, self.tokens),
            **CHEAP,
            "log_level": "debug",
        }
        schemas.migrate(Settings.model_validate(settings), lambda _domain, _name: None)
        environment = {f"KRONOS_DB_{name.upper()}": str(value) for name, value in settings.items()}
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kronos_db"],
                env={**os.environ, **environment},
                cwd=_ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        eventually(lambda: self._serving() or self._process.poll() is not None, _LIMIT)
        line = self._serving()
        assert line is not None, self.output()
        self.ops = line["ops"]
        self.users = UsersServiceStub(grpc.insecure_channel(line["grpc"]))

    def output(self) -> bytes:
        """Return all that the process has written."""
        return self._output.read_bytes()

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of its log."""
        return [json.loads(line) for line in self.output().splitlines() if line.startswith(b"{")]

    def metrics(self) -> bytes:
        """Return what Prometheus sees."""
        with urllib.request.urlopen(f"http://{self.ops}/metrics", timeout=_LIMIT) as answer:
            return bytes(answer.read())

    def stop(self) -> None:
        """End it, and see that it ends well."""
        self._process.terminate()
        assert self._process.wait(_LIMIT) == 0, self.output()

    def _serving(self) -> dict[str, Any] | None:
        return next((line for line in self.lines() if line["msg"] == "serving"), None)


@pytest.fixture
def process(database: str, tmp_path: Path) -> Iterator[ServerProcess]:
    running = ServerProcess(tmp_path, database)
    yield running
    running.stop()


class Markers:
    """Values that are nowhere else in the world. They begin alike, so that one search finds any of them."""

    def __init__(self) -> None:
        self._text = f"Marker{uuid4().hex[:14]}"
        self._digits = f"{uuid4().int % 10**14:014d}"
        self._made = 0

    @property
    def beginnings(self) -> dict[str, str]:
        """Return what to search for."""
        return {"text": self._text, "digits": self._digits, "number as it was written": self._spelled(self._digits)}

    def make(self, form: str = "{}") -> str:
        """Return a new value, with something around it."""
        self._made += 1
        return form.format(f"{self._text}{self._made:03d}")

    def phone(self) -> str:
        """Return a new telephone number."""
        self._made += 1
        return f"+1 {self._spelled(self._digits)}{self._made:03d}"

    def _spelled(self, digits: str) -> str:
        return f"({digits[:4]}) {digits[4:]}"


def _exercise(process: ServerProcess, markers: Markers, control: str) -> None:
    """Make every kind of call with markers in every sensitive field, also in calls that fail."""
    operator = (("authorization", f"Bearer {process.tokens['operator']}"),)
    users = process.users

    def call(method: Any, request: Any, **kw: Any) -> Any:
        return method(request, metadata=kw.pop("metadata", operator), timeout=_LIMIT, **kw)

    email = markers.make("{}@sealed.example")
    phone = markers.phone()
    password = markers.make()
    wanted = new(email=email, phone=phone, display_name=control)
    create_it = pb.CreateUserRequest(user=wanted, request_id=str(uuid4()))
    user = call(users.CreateUser, create_it).user
    assert user.email == email
    batch = [new(email=markers.make("{}@x.example"), phone=markers.phone()) for n in "ab"]
    call(users.BatchCreateUsers, pb.BatchCreateUsersRequest(users=batch))
    call(users.SetPassword, pb.SetPasswordRequest(id=user.id, password=password))
    changed = pb.User(id=user.id, email=markers.make("{}@sealed.example"), phone=markers.phone())
    assert call(users.UpdateUser, pb.UpdateUserRequest(user=changed)).user.email == changed.email
    newest = markers.make()
    call(users.SetPassword, pb.SetPasswordRequest(id=user.id, password=newest))
    assert call(users.GetUser, pb.GetUserRequest(email=changed.email)).user.phone == changed.phone
    call(users.BatchGetUsers, pb.BatchGetUsersRequest(ids=[user.id]))
    call(users.ListUsers, pb.ListUsersRequest())
    for key in ({"email": changed.email}, {"id": user.id}):
        call(users.VerifyPassword, pb.VerifyPasswordRequest(password=newest, **key))
    call(users.VerifyPassword, pb.VerifyPasswordRequest(password=markers.make(), email=changed.email))
    unknown = markers.make("{}@nobody.example")
    call(users.VerifyPassword, pb.VerifyPasswordRequest(password="x", email=unknown))
    call(users.CreateUser, pb.CreateUserRequest(user=new(email=markers.make("{}@x.example")), validate_only=True))
    call(users.EraseUser, pb.EraseUserRequest(id=call(users.CreateUser, _another(markers)).user.id))

    too_large = new(email=markers.make("{}@x.example"))
    too_large.attributes["x"] = "y" * 5_000_000
    reader = (("authorization", f"Bearer {process.tokens['reader']}"),)
    wrong = (("authorization", f"Bearer {markers.make()}"),)
    failing: list[tuple[str, Any, Any, Any]] = [
        ("ALREADY_EXISTS", users.CreateUser, pb.CreateUserRequest(user=new(email=changed.email)), operator),
        ("ALREADY_EXISTS", users.CreateUser, pb.CreateUserRequest(user=new(phone=changed.phone)), operator),
        ("ALREADY_EXISTS", users.BatchCreateUsers, pb.BatchCreateUsersRequest(users=[batch[0]]), operator),
        (
            "ALREADY_EXISTS",
            users.UpdateUser,
            pb.UpdateUserRequest(user=pb.User(id=user.id, email=batch[0].email)),
            operator,
        ),
        ("NOT_FOUND", users.GetUser, pb.GetUserRequest(email=unknown), operator),
        ("INVALID_ARGUMENT", users.CreateUser, _bad(email=markers.make("{} at x")), operator),
        ("INVALID_ARGUMENT", users.CreateUser, _bad(phone=markers.make()), operator),
        ("INVALID_ARGUMENT", users.CreateUser, _bad(email=markers.make("{}\0@x.example")), operator),
        ("INVALID_ARGUMENT", users.CreateUser, _reused(create_it, markers), operator),
        (
            "INVALID_ARGUMENT",
            users.SetPassword,
            pb.SetPasswordRequest(id=user.id, password=markers.make() * 60),
            operator,
        ),
        (
            "NOT_FOUND",
            users.SetPassword,
            pb.SetPasswordRequest(id=str(uuid4()), password=markers.make()),
            operator,
        ),
        ("RESOURCE_EXHAUSTED", users.CreateUser, pb.CreateUserRequest(user=too_large), operator),
        ("PERMISSION_DENIED", users.CreateUser, _another(markers), reader),
        ("UNAUTHENTICATED", users.CreateUser, _another(markers), wrong),
    ]
    for code, method, request, metadata in failing:
        found = refused(lambda: call(method, request, metadata=metadata))  # noqa: B023  # called here and now
        assert found.code == code
        assert found_in(found.everything, markers.beginnings) == []


def _bad(**changes: str) -> pb.CreateUserRequest:
    return pb.CreateUserRequest(user=new(**changes))


def _another(markers: Markers) -> pb.CreateUserRequest:
    user = new(email=markers.make("{}@x.example"), phone=markers.phone())
    return pb.CreateUserRequest(user=user)


def _reused(first: pb.CreateUserRequest, markers: Markers) -> pb.CreateUserRequest:
    other = _another(markers)
    other.request_id = first.request_id
    return other


def _dump(postgres: EmbeddedPostgres) -> bytes:
    command = [str(postgres.bin_dir / "pg_dumpall"), "-d", postgres.dsn]
    # It connects to one database after the other, and hands on everything but the password.
    environment = {**os.environ, "PGPASSWORD": str(conninfo_to_dict(postgres.dsn)["password"])}
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                yield path, path.read_bytes()
        except FileNotFoundError:
            # PostgreSQL removes files as it goes.
            continue


def test_no_sensitive_value_is_left_anywhere(process: ServerProcess, postgres: EmbeddedPostgres) -> None:
    markers, control = Markers(), f"Control{uuid4().hex[:18]}"
    _exercise(process, markers, control)
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    searched = {**markers.beginnings, "control": control}
    hits: dict[str, list[str]] = {}

    hits["dump"] = found_in(_dump(postgres), searched)
    data = [name for path, raw in _files(postgres.data / "base") for name in found_in(raw, searched)]
    wal = [name for path, raw in _files(postgres.data / "pg_wal") for name in found_in(raw, searched)]
    rest = [
        name for path, raw in _files(postgres.data) if path.parts[-2] != "pg_wal" for name in found_in(raw, searched)
    ]
    hits |= {
        "data": data,
        "wal": wal,
        "rest": rest,
        "log of PostgreSQL": found_in(postgres.log_file.read_bytes(), searched),
    }
    hits["metrics"] = found_in(process.metrics(), searched)
    hits["log"] = found_in(process.output(), searched)

    # The search finds what is not sealed …
    for place in ("dump", "data", "wal"):
        assert "control as it is" in hits[place], place
    # … and nothing that is.
    leaked = {place: [hit for hit in found if not hit.startswith("control")] for place, found in hits.items()}
    assert leaked == {place: [] for place in leaked}
    # Not even the control is in logs and metrics, and credentials are nowhere.
    assert hits["log"] == hits["metrics"] == hits["log of PostgreSQL"] == []
    tokens = {caller: token.removeprefix("kdb_") for caller, token in process.tokens.items()}
    assert found_in(process.output() + process.metrics() + _dump(postgres), tokens) == []
    # The log was there to be searched.
    assert {"ALREADY_EXISTS", "OK", "PERMISSION_DENIED"} <= {line.get("code") for line in process.lines()}


@pytest.mark.parametrize("what", forms("x" * 12))
def test_the_search_finds_each_form(what: str) -> None:
    value = "Marker0123456789"
    for noise in (b"", b"a", b"ab", b"abc"):
        haystack = noise + forms(value)[what] + b"tail"
        assert f"it {what}" in found_in(haystack, {"it": value})
    for noise in (b"", b"a", b"ab"):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            assert found_in(encode(noise + value.encode() + b"some more"), {"it": value})


class TestMoved:
    """A sealed value that is not where it was sealed."""

    @pytest.fixture
    def sql(self, own_serving: Serving) -> Iterator[Callable[..., Any]]:
        dsn = own_serving.settings.postgres_dsn.get_secret_value()  # type: ignore[union-attr]
        with psycopg.connect(dsn, autocommit=True) as connection:

            def run(statement: str, *params: object) -> Any:
                cursor = connection.execute(statement, params)
                row = cursor.fetchone() if cursor.description else None
                return row[0] if row else None

            yield run
            # Else the next test lists what cannot be opened here.
            connection.execute("DELETE FROM users.users")

    def _take(self, sql: Callable[..., Any], column: str, user_id: str) -> str:
        """Return a sealed value, and free its index."""
        value = sql(f"SELECT {column} FROM users.users WHERE id = %s", user_id)
        sql(f"UPDATE users.users SET {column} = NULL WHERE id = %s", user_id)
        return str(value)

    @pytest.mark.parametrize(
        ("source", "target", "same_row"),
        [
            ("email", "email", False),
            ("phone", "phone", False),
            ("email", "phone", False),
            ("phone", "email", False),
            ("email", "phone", True),
            ("phone", "email", True),
        ],
    )
    def test_it_does_not_open(
        self, own_serving: Serving, sql: Callable[..., Any], source: str, target: str, same_row: bool
    ) -> None:
        users = own_serving.users()
        victim, mallory = create(users), create(users)
        taker = victim if same_row else mallory
        sealed = self._take(sql, source, victim.id)

        sql(f"UPDATE users.users SET {target} = %s WHERE id = %s", sealed, taker.id)

        calls: list[Callable[[], Any]] = [
            lambda: users.GetUser(pb.GetUserRequest(id=taker.id)),
            lambda: users.BatchGetUsers(pb.BatchGetUsersRequest(ids=[taker.id])),
            lambda: users.ListUsers(pb.ListUsersRequest()),
            lambda: users.SuspendUser(pb.SuspendUserRequest(id=taker.id)),
        ]
        for call in calls:
            found = refused(call)
            assert (found.code, found.reason) == ("DATA_LOSS", "SEALED_VALUE_INVALID")
            assert found.metadata == {"field": f"kronos.users.v1.User.{target}"}
            assert f"kronos.users.v1.User.{target}" in found.message
            assert found_in(found.everything, {"sealed": sealed, "e-mail": victim.email, "phone": victim.phone}) == []

    @pytest.mark.parametrize("part", ["version", "key id", "nonce", "ciphertext", "tag", "index"])
    def test_a_flipped_bit_does_not_open(self, own_serving: Serving, sql: Callable[..., Any], part: str) -> None:
        users = own_serving.users()
        user = create(users)
        mark, box_text, index = sql("SELECT email FROM users.users WHERE id = %s", user.id).split(".")
        box = bytearray(base64.urlsafe_b64decode(box_text + "=="))
        if part == "index":
            index = ("A" if index[0] != "A" else "B") + index[1:]
        else:
            box[{"version": 0, "key id": 5, "nonce": 20, "ciphertext": 45, "tag": -1}[part]] ^= 1
        altered = f"{mark}.{base64.urlsafe_b64encode(box).rstrip(b'=').decode()}.{index}"

        sql("UPDATE users.users SET email = %s WHERE id = %s", altered, user.id)

        found = refused(lambda: users.GetUser(pb.GetUserRequest(id=user.id)))
        assert (found.code, found.reason) == ("DATA_LOSS", "SEALED_VALUE_INVALID")
        assert found.metadata == {"field": "kronos.users.v1.User.email"}

    def test_plaintext_put_in_by_hand_does_not_pass_for_sealed(
        self, own_serving: Serving, sql: Callable[..., Any]
    ) -> None:
        users = own_serving.users()
        user = create(users)
        sql("UPDATE users.users SET email = 'mallory@example.org' WHERE id = %s", user.id)

        assert refused(lambda: users.GetUser(pb.GetUserRequest(id=user.id))).reason == "SEALED_VALUE_INVALID"


def test_no_sensitive_value_is_in_redis(database: str, tmp_path: Path, redis_server: EmbeddedRedis) -> None:
    markers, control = Markers(), f"Control{uuid4().hex}"
    process = ServerProcess(tmp_path, database, redis_url=redis_server.url)
    try:
        _exercise(process, markers, control)
        with redis.Redis.from_url(redis_server.url) as client:

            def kept() -> bytes:
                names = list(client.scan_iter("kronos-db:*"))
                return b"".join(value for value in client.mget(names) if value) if names else b""

            # A page of users was kept: what is not sensitive of them can be read there.
            eventually(lambda: control.encode() in kept(), _LIMIT)
            assert found_in(kept(), markers.beginnings) == []
    finally:
        process.stop()
