"""gRPC health (grpc.health.v1): the status of each service follows the readiness of the parts that it needs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import grpc
import structlog
from grpc_health.v1.health import OVERALL_HEALTH, HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from kronos_db.runtime.interceptors.outlet import tell_taken
from kronos_db.runtime.ops.readiness import OK, SERVER, Readiness
from kronos_db.runtime.pusher import Pusher
from kronos_db.runtime.reception import SentWithoutWaiting

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
        self._pusher = Pusher()
        self.servicer = _Servicer(self._pusher)
        self._readiness = readiness
        self._needs = {OVERALL_HEALTH: readiness.parts} | {
            service: frozenset({SERVER, *parts}) for service, parts in services.items()
        }
        self._interval = interval
        self._lock = threading.Lock()
        self._shown: dict[str, bool] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="health", daemon=True)
        self._pusher.start()
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
        self._pusher.stop()

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


class _Servicer(HealthServicer):  # type: ignore[misc]  # grpcio-health-checking has no types
    """The standard servicer, which calls its watchers back under its lock: here none of these calls waits.

    A send waits until gRPC's thread says that the message is out, and that thread takes the lock when a watcher leaves.
    """

    def __init__(self, pusher: Pusher) -> None:
        super().__init__()
        self._pusher = pusher

    def Watch(
        self, request: HealthCheckRequest, context: grpc.ServicerContext, send_response_callback: Callable[[Any], None]
    ) -> None:
        """Tell the status of a service, and each change of it."""
        watcher = _Watcher(send_response_callback, self._pusher)
        watcher.follow(getattr(context, "context", context))
        super().Watch(request, context, watcher.show)


class _Watcher:
    """A caller that watches. One that is slow to read is told the newest status alone; nobody waits for it."""

    def __init__(self, send: Callable[[Any], None], pusher: Pusher) -> None:
        self._send = send
        self._pusher = pusher
        self._newest: deque[HealthCheckResponse] = deque(maxlen=1)
        self._in_flight = False
        self._tells = False

    def follow(self, context: grpc.ServicerContext) -> None:
        self._tells = tell_taken(context, self._taken)

    def show(self, response: HealthCheckResponse | None) -> None:
        """Tell a status soon; None when the call is over."""
        if response is None:
            self._send(None)
            return
        self._newest.append(response)
        self._pusher.wake(self)

    def push(self) -> None:
        if self._in_flight or not self._newest:
            return
        self._in_flight = self._tells
        with suppress(SentWithoutWaiting):
            self._send(self._newest.popleft())

    def end(self, error: Exception) -> None:
        self._send(error)

    def _taken(self) -> None:
        # On gRPC's thread, under the lock of the call.
        self._in_flight = False
        self._pusher.wake(self)
