"""The Python client: a wheel on its own, and what its channels add to a call."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

from kronos_db import __version__
from tests.clients.conftest import PYTHON
from tests.clients.places import ROOT, PythonPlace, ran
from tests.parts.serving import Serving


def test_the_version_is_the_servers() -> None:
    assert tomllib.loads((PYTHON / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_the_wheel_holds_all_that_is_generated_and_shares_no_file_with_the_servers(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        policy = archive.read("kronos_db_client/service_config.json")
    assert {name.partition("/")[0] for name in names} == {
        "kronos_db_client",
        f"kronos_db_client-{__version__}.dist-info",
    }
    generated = ROOT / "generated" / "kronos"
    for path in generated.rglob("*_pb2*.py*"):
        if path.parent.name != "__pycache__":
            assert f"kronos_db_client/{path.relative_to(generated)}" in names
    assert policy == (generated / "service_config.json").read_bytes()
    # The server's own: where pip would write the other's files.
    assert not any(name.startswith(("kronos/", "buf/", "kronos_db/")) for name in names)


def test_an_sdist_is_enough_to_build_the_wheel(wheel: Path, tmp_path: Path) -> None:
    ran([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)], PYTHON)
    [sdist] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [folder] = (path for path in tmp_path.iterdir() if path.is_dir())
    ran([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], folder)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


ALONE = """
import importlib.util, os
for name in ("kronos_db", "kronos", "buf", "psycopg", "protovalidate"):
    assert importlib.util.find_spec(name) is None, name
import grpc
from kronos_db_client import Refusal, connect, pages
from kronos_db_client.users.v1 import users_pb2 as pb
from kronos_db_client.users.v1.users_pb2_grpc import UsersServiceStub
import kronos_db_client.admin.v1.admin_pb2_grpc, kronos_db_client.cache.v1.cache_pb2_grpc
import kronos_db_client.logs.v1.logs_pb2_grpc, kronos_db_client.messages.v1.messages_pb2_grpc
import kronos_db_client.routes.v1.routes_pb2_grpc, kronos_db_client.tokens.v1.tokens_pb2_grpc

with connect(os.environ["KRONOS_ADDRESS"], token=os.environ["KRONOS_TOKEN"]) as channel:
    users = UsersServiceStub(channel)
    request = pb.CreateUserRequest(user=pb.User(username="alone-1", email="alone-1@example.org"))
    created = users.CreateUser(request).user
    assert not request.request_id
    users.CreateUser(pb.CreateUserRequest(user=pb.User(username="alone-2")))
    assert users.GetUser(pb.GetUserRequest(id=created.id)).user == created
    every = pages(users.ListUsers, pb.ListUsersRequest(username_prefix="alone-", page_size=1))
    assert [[user.username for user in page.users] for page in every] == [["alone-1"], ["alone-2"]]
    try:
        users.CreateUser(request)
    except grpc.RpcError as error:
        refusal = Refusal.of(error)
        print(refusal.code.name, refusal.reason, refusal.violations[0].field, bool(refusal.request_id))
"""


def test_it_calls_a_server_from_where_no_server_is_installed(serving: Serving, python_place: PythonPlace) -> None:
    settings = {"KRONOS_ADDRESS": serving.server.grpc_address, "KRONOS_TOKEN": serving.tokens["operator"]}
    said = python_place.run(ALONE, **settings)
    assert said == "ALREADY_EXISTS EMAIL_TAKEN user.email True\n"


TYPED = """
import grpc
from kronos_db_client import Refusal, Tls, connect, follow, pages, repeatable
from kronos_db_client.users.v1 import users_pb2 as pb
from kronos_db_client.users.v1.users_pb2_grpc import UsersServiceStub

def read(address: str) -> list[str]:
    with connect(address, token_file="token", tls=Tls("ca.pem"), deadline=2.5) as channel:
        users = UsersServiceStub(channel)
        request = repeatable(pb.CreateUserRequest(user=pb.User(username="ann")))
        reveal_type(users.CreateUser(request).user)
        for change in follow(users.WatchUsers, pb.WatchUsersRequest()):
            reveal_type(change)
        reveal_type(Refusal.of(grpc.RpcError()).retry_after)
        users.GetUser(pb.ListUsersRequest())
        return [user.username for page in pages(users.ListUsers, pb.ListUsersRequest()) for user in page.users]
"""


def test_it_is_typed(python_place: PythonPlace, tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "--python-executable"]
    done = subprocess.run(
        [*command, str(python_place.python), "--ignore-missing-imports", str(sample)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert revealed[0].endswith("users_pb2.User"), done.stdout
    assert revealed[1].endswith("users_pb2.WatchUsersResponse")
    assert revealed[2] in {"float | None", "Union[builtins.float, None]", "builtins.float | None"}
    [error] = re.findall(r":(\d+): error: (.*)", done.stdout)
    assert "ListUsersRequest" in error[1]
