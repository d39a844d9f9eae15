"""`kronos-db dev` as a user meets it: one command, calls to paste, Ctrl-C, a crash, a second start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import psycopg
import pytest
from kronos.users.v1 import users_pb2, users_pb2_grpc

from kronos_db import first_secrets
from kronos_db.config import PREFIX
from kronos_db.embedded.redis import EmbeddedRedis
from tests.parts.dev import Dev
from tests.parts.serving import ROLE_SECRET

LIMIT = 30.0  # seconds
Start = Callable[..., Dev]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def start(data: Path) -> Iterator[Start]:
    """Start one on the test's data directory, with settings by their short names; all are ended with the test."""
    started: list[Dev] = []

    def start(**settings: str) -> Dev:
        started.append(Dev(data, {PREFIX + name.upper(): text for name, text in settings.items()}))
        return started[-1]

    yield start
    for dev in started:
        dev.close()


def still_running(family: list[psutil.Process]) -> list[psutil.Process]:
    return psutil.wait_procs(family, LIMIT)[1]


def of(data: Path, process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return str(data) in " ".join(process.cmdline())
    return False


def paste(call: str) -> dict[str, object]:
    done = subprocess.run(call, shell=True, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_the_printed_calls_work_and_ctrl_c_leaves_nothing(start: Start, data: Path) -> None:
    dev = start()
    dev.serve()
    family = dev.family()
    names = {process.name() for process in family}
    assert "postgres" in names
    assert ("redis-server" in names) == EmbeddedRedis.available()
    # As many processes serve as there are cores; one alone serves itself, without a supervisor.
    cores = len(os.sched_getaffinity(0))
    assert len(serving(family)) == (cores if cores > 1 else 0)
    created, found, listed = map(paste, dev.calls)
    assert created == found
    assert listed == {"users": [created["user"]]}

    second = start()
    assert second.end() == 1
    assert second.lines == [f"{data} is in use by another kronos-db (pid {dev.process.pid}).\n"]

    dev.signal(signal.SIGINT)
    dev.signal(signal.SIGINT)
    assert dev.end() == 0
    assert still_running(family) == []
    assert "Traceback" not in "".join(dev.lines)


def serving(family: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in family:
        # A backend of PostgreSQL may have ended since it was listed.
        with suppress(psutil.NoSuchProcess):
            if "--slot" in process.cmdline():
                found.append(process)
    return found


def test_a_killed_one_leaves_no_serving_process(start: Start) -> None:
    dev = start(processes="3")
    dev.serve()
    left = serving(dev.family())
    assert len(left) == 3
    dev.process.kill()
    assert still_running(left) == []
    # What is left of PostgreSQL and Redis, the next start ends.
    start(processes="1").serve()


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 2), (signal.SIGHUP, 1)])
def test_other_signals_are_as_ctrl_c(start: Start, number: signal.Signals, processes: int) -> None:
    dev = start(processes=str(processes))
    dev.serve()
    family = dev.family()
    assert len(serving(family)) == (processes if processes > 1 else 0)
    dev.signal(number)
    assert dev.end() == 0
    assert still_running(family) == []


@pytest.mark.parametrize(("moment", "number"), [("Starting PostgreSQL", signal.SIGTERM), ("Migrated", signal.SIGINT)])
def test_a_start_can_be_stopped(start: Start, data: Path, moment: str, number: signal.Signals) -> None:
    dev = start()
    dev.wait_for(moment)
    family = dev.family()
    dev.signal(number)
    assert dev.end() == 0
    assert still_running(family) == []
    assert [process for process in psutil.process_iter() if of(data, process)] == []
    start(processes="1").serve()


def test_what_was_acknowledged_is_there_after_kill_9_of_everything(start: Start) -> None:
    dev = start()
    dev.serve()
    acknowledged: list[str] = []
    enough = threading.Event()

    def write(writer: int) -> None:
        with grpc.insecure_channel(dev.address) as channel, suppress(grpc.RpcError):
            create = users_pb2_grpc.UsersServiceStub(channel).CreateUser
            for number in range(100_000):
                user = users_pb2.User(username=f"user-{writer}-{number}", email=f"{writer}-{number}@example.org")
                request = users_pb2.CreateUserRequest(user=user)
                answer = create(request, metadata=dev.credential, timeout=LIMIT)
                acknowledged.append(answer.user.id)
                if len(acknowledged) >= 200:
                    enough.set()

    writers = [threading.Thread(target=write, args=[writer]) for writer in range(4)]
    for writer in writers:
        writer.start()
    assert enough.wait(LIMIT)
    family = dev.family()
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for writer in writers:
        writer.join(LIMIT)
    dev.end()

    again = start(processes="1")
    again.serve()
    with grpc.insecure_channel(again.address) as channel:
        get = users_pb2_grpc.UsersServiceStub(channel).BatchGetUsers
        for begin in range(0, len(acknowledged), 1000):
            request = users_pb2.BatchGetUsersRequest(ids=acknowledged[begin : begin + 1000])
            answer = get(request, metadata=again.credential, timeout=LIMIT)
            assert list(answer.missing_ids) == []
            assert {user.email.partition("@")[2] for user in answer.users} == {"example.org"}


@pytest.mark.parametrize("setting", ["grpc_listen", "ops_listen"])
def test_a_port_that_is_taken_is_one_sentence(start: Start, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        dev = start(processes="1", log_level="error", **{setting: address})
        dev.wait_for("Migrated")
        family = dev.family()
        assert dev.end() == 1
    assert still_running(family) == []
    *_, told = [line for line in dev.lines if not line.startswith("Migrated")]
    assert told.startswith(f"{PREFIX}{setting.upper()}: ")
    assert address in told
    assert dev.lines[-1] == told


def test_a_postgresql_that_is_set_replaces_the_own_one(start: Start, data: Path, empty_database: str) -> None:
    (data / "keys").mkdir(parents=True)
    (data / "keys" / first_secrets.ROLE_SECRET).write_text(ROLE_SECRET)
    dev = start(postgres_dsn=empty_database, processes="1")
    dev.serve()
    names = {process.name() for process in dev.family()}
    assert "postgres" not in names
    paste(dev.calls[0])
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM users.users").fetchone() == (1,)
    dev.close()
