"""Serves until it is told to stop: with one process, or with several on one port below a supervisor."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog
from prometheus_client import CollectorRegistry

from kronos_db.config import Settings, environment_of
from kronos_db.runtime import collector
from kronos_db.runtime.errors import KronosError
from kronos_db.runtime.ops.fleet import FleetMetrics, Forwarding, shortfall_of
from kronos_db.runtime.ops.http import Handler, OpsAddressError, OpsServer, standard_routes
from kronos_db.runtime.ops.logs import configure_logs
from kronos_db.runtime.ops.readiness import Readiness
from kronos_db.runtime.processes import PortTakenError, SharedPort, Slot, Supervisor
from kronos_db.runtime.stopping import Stop

# Seconds that a process gets beyond its drain before it is killed, and that its own /readyz may take.
_PATIENCE = 5.0
_READINESS_TIMEOUT = 4.0

_log = structlog.get_logger(__name__)


class FleetStartError(KronosError):
    """The processes cannot be started; the text is one sentence that says why."""


class ProcessRefusedError(KronosError):
    """A serving process could not start, and has said itself why; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__("A serving process could not start.")
        self.code = code


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands among others: its slot of so many, None on a port of its own, and their common folder."""

    slot: int | None
    slots: int
    shared: Path


class Serving(Protocol):
    """What answers calls: one server, or a fleet of them."""

    grpc_address: str

    @property
    def ops_address(self) -> str:
        """HOST:PORT on which the ops port listens."""

    def start(self, stopped: threading.Event) -> bool:
        """Come up; return False when `stopped` was set meanwhile."""

    def reload_policy(self) -> None:
        """Read the access file again."""

    def stop(self) -> None:
        """Drain, and let go of everything."""


def run(settings: Settings, place: Place | None = None, serving: Callable[[Serving], None] = lambda _: None) -> int:
    """Serve until SIGTERM or SIGINT; SIGHUP has the access file read again. Otherwise as `serve`."""
    stopped = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    return serve(settings, stopped, serving, place=place, reload_on=signal.SIGHUP)


def serve(
    settings: Settings,
    stopped: threading.Event,
    serving: Callable[[Serving], None],
    *,
    place: Place | None = None,
    reload_on: signal.Signals | None = None,
) -> int:
    """Serve with as many processes as `settings` say until `stopped` is set; return the exit code.

    Calls `serving` once every process answers. `place` is that of this process among others. `reload_on` is the
    signal that has the access file read again. Raises what `Server.start` or `Fleet.start` raise.
    """
    configure_logs(settings.log_level, settings.log_format)
    running = _built(settings, place)
    collector.resume()
    if reload_on is not None:
        signal.signal(reload_on, lambda *_: reload(running))
    try:
        if running.start(stopped):
            collector.spare()
            serving(running)
            stopped.wait()
    except ProcessRefusedError as error:
        return error.code
    finally:
        running.stop()
    return 0


def reload(running: Serving) -> None:
    """Have the access file read again; whatever is wrong with it, the server goes on with the old policy."""
    try:
        running.reload_policy()
        _log.info("access policy read again")
    # Also a token hashed under a master key that is not there.
    except KronosError as error:
        _log.error("access policy refused, the old one stays", reason=str(error))


def _built(settings: Settings, place: Place | None) -> Serving:
    if place is None and settings.process_count > 1:
        return Fleet(settings)
    # Only here: a supervisor has no use for gRPC.
    from kronos_db.server import Server  # noqa: PLC0415

    return Server(settings) if place is None else Server(settings, place.slot, place.slots, place.shared)


class Fleet:
    """Several serving processes on one port: a supervisor keeps them, and its ops port speaks for all.

    `start` returns when every process serves.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._count = settings.process_count
        # It outlives its processes: what they count, and when their copies were outdated.
        self._shared = tempfile.TemporaryDirectory(prefix="kronos-db-")
        self._port: SharedPort | None = None
        self._supervisor: Supervisor | None = None
        self._readiness = Readiness(timeout=_READINESS_TIMEOUT)
        self._registry = CollectorRegistry()
        self._ops = OpsServer(settings.ops_listen, standard_routes(self._registry, self._readiness), self._forwarded())
        self.grpc_address = settings.grpc_listen

    @property
    def ops_address(self) -> str:
        """HOST:PORT on which the ops port listens."""
        return self._ops.address

    def start(self, stopped: threading.Event) -> bool:
        """Come up; return False when `stopped` was set meanwhile. Raises FleetStartError or ProcessRefusedError."""
        try:
            self._port = SharedPort(self._settings.grpc_listen)
        except PortTakenError as error:
            raise FleetStartError(f"KRONOS_DB_GRPC_LISTEN: {error}") from error
        self.grpc_address = self._port.address
        self._supervisor = supervisor = self._supervised()
        self._registry.register(FleetMetrics(self._serving_processes, self._count))
        for slot in supervisor.slots:
            self._readiness.add(f"process {slot.index}", partial(_shortfall, slot), spare=True)
        try:
            self._ops.start()
        except OpsAddressError as error:
            raise FleetStartError(f"KRONOS_DB_OPS_LISTEN: {error}") from error
        supervisor.start()
        refusal = supervisor.wait_until_serving(stopped.is_set)
        if refusal is not None:
            raise ProcessRefusedError(refusal)
        if stopped.is_set():
            return False
        _log.info("serving", grpc=self.grpc_address, ops=self.ops_address, processes=self._count)
        return True

    def reload_policy(self) -> None:
        """Have every process read the access file again; each says itself what it found."""
        if self._supervisor is not None:
            self._supervisor.signal(signal.SIGHUP)

    def stop(self) -> None:
        """Drain all processes together, and let go of port and files."""
        self._readiness.drain()
        if self._supervisor is not None:
            self._supervisor.stop()
        self._ops.stop()
        if self._port is not None:
            self._port.close()
        self._shared.cleanup()

    def _serving_processes(self) -> dict[int, str]:
        """Return slot and ops address of the processes that serve now."""
        slots = self._supervisor.slots if self._supervisor is not None else []
        return {slot.index: slot.ops for slot in slots if slot.ops}

    def _forwarded(self) -> dict[str, Handler]:
        """Return what a serving process answers: calls of methods, which need gRPC's handlers."""
        forward = Forwarding(self._serving_processes)
        return {"/db/": forward, "/openapi.json": forward}

    def _supervised(self) -> Supervisor:
        # What the processes do not share: each is alone at its ops port, and none is a supervisor.
        inner = {"grpc_listen": self.grpc_address, "ops_listen": "127.0.0.1:0", "processes": 1}
        environment = {**os.environ, **environment_of(self._settings.model_copy(update=inner))}
        patience = self._settings.drain_pause + self._settings.drain_timeout + _PATIENCE
        return Supervisor(self._count, self._command, environment, patience)

    def _command(self, slot: int, status: int) -> list[str]:
        place = ["--slot", str(slot), "--slots", str(self._count)]
        return [sys.executable, "-m", "kronos_db", *place, "--status", str(status), "--shared", self._shared.name]


def _shortfall(slot: Slot) -> str | None:
    return shortfall_of(slot.ops)
