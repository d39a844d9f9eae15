"""SIGHUP reads the access file again: what is right counts at once, what is wrong changes and ends nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from kronos_db import fleet, server
from kronos_db.config import Settings
from kronos_db.runtime.errors import KeyUnavailableError, KronosError
from kronos_db.runtime.interceptors.policy import PolicyError


class Stub:
    """A server without parts, whose policy cannot be read when it is asked for the second time."""

    error: KronosError

    def __init__(self, _settings: Settings) -> None:
        self.grpc_address = self.ops_address = "127.0.0.1:1"
        self.reloads = 0

    def start(self, stopped: threading.Event) -> bool:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return True

    def reload_policy(self) -> None:
        self.reloads += 1
        if self.reloads > 1:
            raise self.error

    def stop(self) -> None:
        """Nothing is there."""


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("error", [PolicyError("no such file"), KeyUnavailableError("no key mk-1")])
def test_a_refused_policy_does_not_end_the_server(monkeypatch: pytest.MonkeyPatch, error: KronosError) -> None:
    stubs: list[Stub] = []

    def build(settings: Settings) -> Stub:
        stubs.append(Stub(settings))
        stubs[0].error = error
        return stubs[0]

    monkeypatch.setattr(server, "Server", build)
    monkeypatch.setattr(fleet, "configure_logs", lambda *_: None)
    assert fleet.run(Settings.model_validate({"processes": 1})) == 0
    assert stubs[0].reloads == 2
