"""gRPC health follows readiness service by service, and watchers learn of changes alone."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kronos_db.runtime.ops.health import Health
from kronos_db.runtime.ops.readiness import Readiness

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
USERS, LOGS = "kronos.users.v1.UsersService", "kronos.logs.v1.LogsService"


class House:
    """A server with health alone, whose two parts can be switched off."""

    def __init__(self) -> None:
        self.faults: dict[str, str | None] = {"users database": None, "logs database": None}
        self.readiness = Readiness()
        for part in self.faults:
            self.readiness.add(part, functools.partial(self.faults.get, part))
        services = {USERS: ["users database"], LOGS: ["logs database"]}
        self.health = Health(self.readiness, services, interval=0.02)
        self.server = grpc.server(ThreadPoolExecutor(2))
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.stub = health_pb2_grpc.HealthStub(self.channel)

    def statuses(self) -> list[int]:
        """Of the whole, of users and of logs."""
        ask = health_pb2.HealthCheckRequest
        return [self.stub.Check(ask(service=name), timeout=10).status for name in ("", USERS, LOGS)]


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.health.stop()
    house.channel.close()
    house.server.stop(None).wait(10)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_nothing_serves_before_the_first_refresh(house: House) -> None:
    assert house.statuses() == [NOT_SERVING] * 3
    house.health.refresh()
    assert house.statuses() == [SERVING] * 3


def test_a_service_needs_its_own_parts_alone_and_the_whole_needs_all(house: House) -> None:
    house.faults["logs database"] = "away"
    house.health.refresh()
    assert house.statuses() == [NOT_SERVING, SERVING, NOT_SERVING]


def test_statuses_follow_in_the_background(house: House) -> None:
    house.health.start()
    house.faults["users database"] = "away"
    eventually(lambda: house.statuses() == [NOT_SERVING, NOT_SERVING, SERVING])
    house.faults["users database"] = None
    eventually(lambda: house.statuses() == [SERVING] * 3)


def test_draining_shows_at_once_and_stays(house: House) -> None:
    house.health.refresh()
    house.readiness.drain()
    assert house.statuses() == [NOT_SERVING] * 3
    house.health.refresh()
    assert house.statuses() == [NOT_SERVING] * 3


def test_a_watcher_learns_of_changes_alone(house: House) -> None:
    house.health.refresh()
    seen = house.stub.Watch(health_pb2.HealthCheckRequest(service=USERS), timeout=10)
    assert next(seen).status == SERVING
    for _ in range(3):
        house.health.refresh()
    house.readiness.drain()
    assert next(seen).status == NOT_SERVING
    seen.cancel()


def test_an_unknown_service_is_not_found(house: House) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        house.stub.Check(health_pb2.HealthCheckRequest(service="kronos.none.v1.None"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_service_cannot_need_what_is_not_checked() -> None:
    with pytest.raises(ValueError, match="no readiness check is called moon"):
        Health(Readiness(), {USERS: ["moon"]})
