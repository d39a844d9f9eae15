"""Several processes on one port: real ones, killed and drained."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from tests.parts.eventually import eventually
from tests.parts.fleet import Fleet


def call(fleet: Fleet) -> None:
    """Make one call over a connection of its own: the kernel chooses a process for each."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(fleet.settings.grpc_listen, options) as channel:
        users = UsersServiceStub(channel)
        users.ListUsers(pb.ListUsersRequest(), metadata=fleet.bearer, timeout=20, wait_for_ready=True)


def counted(fleet: Fleet) -> float:
    """How many calls of ListUsers /metrics counts."""
    handled = "grpc_server_handled_total"
    return sum(value for name, value in fleet.metrics().items() if name.startswith(handled) and '"ListUsers"' in name)


def test_processes_share_a_port_and_counts_survive_kill_9(fleet: Fleet) -> None:
    for _ in range(20):
        call(fleet)
    eventually(lambda: counted(fleet) == 20)
    killed = fleet.children()
    assert len(killed) == fleet.count

    for process in killed:
        process.kill()
        assert counted(fleet) == 20
    eventually(lambda: fleet.is_ready() and not {child.pid for child in fleet.children()} & {p.pid for p in killed}, 30)

    for _ in range(20):
        call(fleet)
    # Not a count lost, none doubled.
    eventually(lambda: counted(fleet) == 40)


def test_one_that_serves_is_enough_to_be_ready(fleet: Fleet) -> None:
    first, second = fleet.children()

    first.kill()
    # Until the supervisor has noticed, it "does not answer".
    eventually(lambda: sorted(fleet.readyz()[1]["parts"].values()) == ["is being started", "ok", "ok"], 10)
    status, body = fleet.readyz()

    assert (status, body["status"]) == (200, "degraded")
    call(fleet)
    second.kill()
    # The first is not there again so soon.
    eventually(lambda: fleet.readyz()[0] == 503, 10)


def test_sigterm_ends_all_and_leaves_nothing(fleet: Fleet) -> None:
    children = fleet.children()
    assert fleet.process is not None

    fleet.process.send_signal(signal.SIGTERM)

    assert fleet.process.wait(30) == 0
    assert not any(child.is_running() for child in children)


def test_a_killed_supervisor_leaves_no_process(fleet: Fleet) -> None:
    children = fleet.children()
    assert fleet.process is not None

    fleet.process.kill()

    eventually(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 30)


def test_a_second_fleet_on_the_port_is_refused(fleet: Fleet) -> None:
    first = fleet.process
    second = fleet.start(ops_listen="127.0.0.1:0")
    fleet.process = first

    _, said = second.communicate(timeout=30)

    assert second.returncode == 1
    address = fleet.settings.grpc_listen
    assert said.strip() == f"KRONOS_DB_GRPC_LISTEN: {address} cannot be listened on: Address already in use."


def test_a_process_that_cannot_start_ends_the_fleet(database: str, tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, database)
    (tmp_path / "access.toml").write_text("nonsense")

    _, said = fleet.start().communicate(timeout=30)

    assert fleet.process is not None
    assert fleet.process.returncode == 1
    assert "access file" in said
