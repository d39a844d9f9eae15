"""Serves with several processes on one port: a supervisor keeps them, and its ops port speaks for all."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from kronos_db.config import Settings, environment_of
from kronos_db.runtime.ops.fleet import FleetMetrics, shortfall_of
from kronos_db.runtime.ops.http import OpsServer, standard_routes
from kronos_db.runtime.ops.logs import configure_logs
from kronos_db.runtime.ops.readiness import Readiness
from kronos_db.runtime.processes import SharedPort, Slot, Supervisor
from kronos_db.runtime.stopping import Stop

# Seconds that a process gets beyond its drain before it is killed, and that its own /readyz may take.
_PATIENCE = 5.0
_READINESS_TIMEOUT = 4.0

_log = structlog.get_logger(__name__)


def run(settings: Settings, serving: Callable[[Settings], None] = lambda _settings: None) -> int:
    """Serve with `settings.processes` processes until SIGTERM or SIGINT; SIGHUP has them read the access file again.

    Calls `serving` with the addresses as they are, once every process answers. Returns the exit code: that of a process
    which could not start, else 0. Raises PortTakenError or OpsAddressError.
    """
    stopped = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    configure_logs(settings.log_level, settings.log_format)
    port = SharedPort(settings.grpc_listen)
    with tempfile.TemporaryDirectory(prefix="kronos-db-metrics-") as metrics:
        inner = settings.model_copy(update={"grpc_listen": port.address, "ops_listen": "127.0.0.1:0", "processes": 1})
        supervisor = Supervisor(
            settings.processes,
            partial(_command, metrics),
            {**os.environ, **environment_of(inner)},
            settings.drain_pause + settings.drain_timeout + _PATIENCE,
        )
        readiness = _readiness(supervisor)
        ops = OpsServer(settings.ops_listen, standard_routes(_registry(supervisor), readiness))
        signal.signal(signal.SIGHUP, lambda *_: supervisor.signal(signal.SIGHUP))
        try:
            ops.start()
            supervisor.start()
            refusal = supervisor.wait_until_serving(stopped.is_set)
            if refusal is None and not stopped.is_set():
                addressed = settings.model_copy(update={"grpc_listen": port.address, "ops_listen": ops.address})
                _log.info("serving", grpc=port.address, ops=ops.address, processes=settings.processes)
                serving(addressed)
                stopped.wait()
        finally:
            readiness.drain()
            supervisor.stop()
            ops.stop()
            port.close()
        return refusal or 0


def _command(metrics: str, slot: int, status: int) -> list[str]:
    program = [sys.executable, "-m", "kronos_db"]
    return [*program, "--slot", str(slot), "--status", str(status), "--metrics", str(Path(metrics))]


def _registry(supervisor: Supervisor) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(FleetMetrics(lambda: {slot.index: slot.ops for slot in supervisor.slots if slot.ops}))
    return registry


def _readiness(supervisor: Supervisor) -> Readiness:
    readiness = Readiness(timeout=_READINESS_TIMEOUT)
    for slot in supervisor.slots:
        readiness.add(f"process {slot.index}", partial(_shortfall, slot))
    return readiness


def _shortfall(slot: Slot) -> str | None:
    return shortfall_of(slot.ops)
