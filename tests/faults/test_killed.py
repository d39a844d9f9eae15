"""Serving processes are killed with -9 under load: callers with the shipped retry policy do not notice."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.resources import files

import grpc
import psycopg
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from tests.parts.eventually import eventually
from tests.parts.fleet import Fleet

KILLS = 4
CALLERS = 4
DEADLINE = 20.0  # seconds
LIMIT = 30.0
# As docs/operations.md says; each channel has a connection of its own, to whichever process the kernel gives it.
OPTIONS = [
    ("grpc.service_config", files("kronos").joinpath("service_config.json").read_text()),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.use_local_subchannel_pool", 1),
]
_SUFFIXES = ("_total", "_bucket", "_count", "_sum")


class Caller:
    """Updates a user of its own and reads it back, again and again."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.name = f"caller-{number}"
        self.updates = 0
        self._fleet = fleet
        self._channel = grpc.insecure_channel(fleet.settings.grpc_listen, OPTIONS)
        self._users = UsersServiceStub(self._channel)

    def run(self, stop: threading.Event) -> None:
        """Call until told to stop. A call that fails ends it."""
        with self._channel:
            user = pb.User(username=self.name, email=f"{self.name}@example.org")
            created = self._call(self._users.CreateUser, pb.CreateUserRequest(user=user, request_id=_fresh()))
            while not stop.is_set():
                self._update(created.user.id)

    def _update(self, user_id: str) -> None:
        changed = pb.User(id=user_id, display_name=f"{self.updates}")
        request = pb.UpdateUserRequest(user=changed, request_id=_fresh())
        request.update_mask.paths.append("display_name")
        answer = self._call(self._users.UpdateUser, request)
        # Once: each write moves the etag by one.
        assert answer.user.etag == str(self.updates + 2)
        self.updates += 1
        assert self._call(self._users.GetUser, pb.GetUserRequest(id=user_id)).user == answer.user

    def _call(self, method: Callable[..., object], request: object) -> object:
        return method(request, metadata=self._fleet.bearer, timeout=DEADLINE)


def _fresh() -> str:
    return str(uuid.uuid4())


def _watch_counters(fleet: Fleet, stop: threading.Event) -> int:
    """Scrape until told to stop, and return how often; fail when anything that only grows has gone back."""
    highest: dict[str, float] = {}
    scrapes = 0
    while not stop.is_set():
        now = fleet.metrics()
        for series, value in now.items():
            if series.partition("{")[0].endswith(_SUFFIXES):
                assert value >= highest.get(series, 0.0), series
                highest[series] = value
        assert highest.keys() <= now.keys()
        scrapes += 1
    return scrapes


def _wait_for_progress(callers: Sequence[Caller], jobs: Sequence[Future[object]]) -> None:
    """Return when every caller has made some more calls, or one has failed."""
    enough = [caller.updates + 5 for caller in callers]

    def reached() -> bool:
        return all(caller.updates >= updates for caller, updates in zip(callers, enough, strict=True))

    eventually(lambda: reached() or any(job.done() for job in jobs), LIMIT)


def test_callers_do_not_notice_that_processes_are_killed(fleet: Fleet, database: str) -> None:
    stop = threading.Event()
    callers = [Caller(fleet, number) for number in range(CALLERS)]
    with ThreadPoolExecutor(CALLERS + 1) as threads:
        jobs: list[Future[object]] = [threads.submit(caller.run, stop) for caller in callers]
        scraping = threads.submit(_watch_counters, fleet, stop)
        try:
            for _kill in range(KILLS):
                _wait_for_progress(callers, jobs)
                fleet.await_ready()
                random.choice(fleet.children()).kill()
            _wait_for_progress(callers, jobs)
        finally:
            stop.set()
        for job in jobs:
            job.result(LIMIT)
        assert scraping.result(LIMIT) > KILLS
    with psycopg.connect(database) as admin:
        kept = dict(admin.execute("SELECT username, display_name FROM users.users").fetchall())
    assert kept == {caller.name: f"{caller.updates - 1}" for caller in callers}
