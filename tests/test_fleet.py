"""Several processes on one port: real ones, killed and drained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from benchmarks.stand import free_address
from kronos_db import schemas
from kronos_db.config import Settings, environment_of
from tests.parts.eventually import eventually
from tests.parts.serving import CHEAP, make_secrets

COUNT = 2


class Fleet:
    """A supervisor with its processes, as `kronos-db serve --processes 2` starts it."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.tokens: dict[str, str] = {}
        self.settings = Settings.model_validate(
            {
                "grpc_listen": free_address(),
                "ops_listen": free_address(),
                "postgres_dsn": dsn,
                "processes": COUNT,
                **make_secrets(folder, self.tokens),
                **CHEAP,
            }
        )
        schemas.migrate(self.settings, lambda _domain, _name: None)
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, **environment_of(self.settings)}
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-m", "kronos_db"], env=environment, stderr=pipe, text=True)

    def parts(self) -> dict[str, str]:
        """What /readyz says of each part; nothing while there is no answer."""
        try:
            with urllib.request.urlopen(f"http://{self.settings.ops_listen}/readyz", timeout=10) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                body = error.read()
        except OSError:
            return {}
        parts: dict[str, str] = json.loads(body)["parts"]
        return parts

    def is_ready(self) -> bool:
        parts = self.parts()
        return len(parts) == COUNT + 1 and set(parts.values()) == {"ok"}

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def call(self) -> None:
        """Make one call over a connection of its own: the kernel chooses a process for each."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self.settings.grpc_listen, options) as channel:
            bearer = (("authorization", f"Bearer {self.tokens['operator']}"),)
            UsersServiceStub(channel).ListUsers(pb.ListUsersRequest(), metadata=bearer, timeout=20, wait_for_ready=True)

    def counted(self) -> float:
        """How many calls of ListUsers /metrics counts."""
        with urllib.request.urlopen(f"http://{self.settings.ops_listen}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        mine = [line for line in lines if line.startswith("grpc_server_handled_total") and '"ListUsers"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in mine)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def fleet(database: str, tmp_path: Path) -> Iterator[Fleet]:
    running = Fleet(tmp_path, database)
    try:
        eventually(running.is_ready, 30)
        yield running
    finally:
        running.stop()


def test_processes_share_a_port_and_counts_survive_kill_9(fleet: Fleet) -> None:
    for _ in range(20):
        fleet.call()
    eventually(lambda: fleet.counted() == 20)
    killed = fleet.children()
    assert len(killed) == COUNT

    for process in killed:
        process.kill()
        assert fleet.counted() == 20
    eventually(lambda: fleet.is_ready() and not {child.pid for child in fleet.children()} & {p.pid for p in killed}, 30)

    for _ in range(20):
        fleet.call()
    # Not a count lost, none doubled.
    eventually(lambda: fleet.counted() == 40)


def test_sigterm_ends_all_and_leaves_nothing(fleet: Fleet) -> None:
    children = fleet.children()

    fleet.process.send_signal(signal.SIGTERM)

    assert fleet.process.wait(30) == 0
    assert not any(child.is_running() for child in children)


def test_a_killed_supervisor_leaves_no_process(fleet: Fleet) -> None:
    children = fleet.children()

    fleet.process.kill()

    eventually(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 30)


def test_a_second_fleet_on_the_port_is_refused(fleet: Fleet) -> None:
    fleet.settings = fleet.settings.model_copy(update={"ops_listen": "127.0.0.1:0"})
    second = fleet.start()

    _, said = second.communicate(timeout=30)

    assert second.returncode == 1
    assert said.strip() == f"{fleet.settings.grpc_listen} cannot be listened on: Address already in use."


def test_a_process_that_cannot_start_ends_the_fleet(database: str, tmp_path: Path) -> None:
    fleet = Fleet.__new__(Fleet)
    fleet.tokens = {}
    secrets = make_secrets(tmp_path, fleet.tokens)
    (tmp_path / "access.toml").write_text("nonsense")
    fleet.settings = Settings.model_validate(
        {"grpc_listen": "127.0.0.1:0", "ops_listen": "127.0.0.1:0", "postgres_dsn": database, "processes": COUNT}
        | secrets
        | CHEAP
    )
    schemas.migrate(fleet.settings, lambda _domain, _name: None)
    process = fleet.start()

    _, said = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "access file" in said
