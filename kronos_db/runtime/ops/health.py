"""gRPC health (grpc.health.v1): the status of each service follows the readiness of the parts that it needs."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping

import structlog
from grpc_health.v1.health import OVERALL_HEALTH, HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse

from kronos_db.runtime.ops.readiness import OK, SERVER, Readiness

log = structlog.get_logger(__name__)


class Health:
    """Keeps a standard health servicer up to date.

    `services` gives each full service name the parts of `readiness` that it needs; the server as a whole needs all.
    Everything is NOT_SERVING until the first refresh, and at once when draining begins. `interval` in seconds.
    """

    def __init__(self, readiness: Readiness, services: Mapping[str, Collection[str]], *, interval: float = 1.0) -> None:
        unknown = {part for parts in services.values() for part in parts} - readiness.parts
        if unknown:
            raise ValueError(f"no readiness check is called {', '.join(sorted(unknown))}")
        self.servicer = HealthServicer()
        self._readiness = readiness
        self._needs = {OVERALL_HEALTH: readiness.parts} | {
            service: frozenset({SERVER, *parts}) for service, parts in services.items()
        }
        self._interval = interval
        self._lock = threading.Lock()
        self._shown: dict[str, bool] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="health", daemon=True)
        self._show(frozenset())
        readiness.on_drain(self._drain)

    def start(self) -> None:
        """Refresh now, and from then on in the background."""
        self.refresh()
        self._thread.start()

    def stop(self) -> None:
        """End the background thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(self._interval)

    def refresh(self) -> None:
        """Bring every status up to what readiness reports now."""
        report = self._readiness.report()
        with self._lock:
            # Draining may have begun while the checks ran.
            ready = () if self._readiness.draining else [part for part, state in report.items() if state == OK]
            self._show(frozenset(ready))

    def _drain(self) -> None:
        with self._lock:
            self._show(frozenset())

    def _show(self, ready: frozenset[str]) -> None:
        for service, parts in self._needs.items():
            serving = parts <= ready
            # Only changes: each one is sent to every watcher.
            if self._shown.get(service) is not serving:
                self._shown[service] = serving
                state = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
                self.servicer.set(service, state)

    def _follow(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self.refresh()
            except Exception:
                log.exception("health not refreshed")
