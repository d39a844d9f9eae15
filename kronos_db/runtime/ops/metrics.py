"""What a serving process counts: calls as go-grpc-prometheus names them, itself, and parts read at each scrape.

One registry per process. prometheus_client's multiprocess mode is not used: its files outlive their processes.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kronos_db import __version__
from kronos_db.runtime.errors import Code

GrpcType = Literal["unary", "client_stream", "server_stream", "bidi_stream"]
# One reading of a part: its label values and the value.
Reading = tuple[Sequence[str], float]

# Any other name is counted as UNKNOWN, so that the label stays bounded.
CODES = frozenset({"OK", "UNKNOWN", *(code.name for code in Code)})

# Seconds. Go's defaults start at 5 ms; a cached read here takes less than one.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

log = structlog.get_logger(__name__)


def new_registry() -> CollectorRegistry:
    """Return a registry with the metrics of this process, of the interpreter and of the build."""
    # A `_created` series beside every counter would double the scrape and nothing reads it.
    disable_created_metrics()  # type: ignore[no-untyped-call] # left untyped by its authors
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    build = Gauge("kronos_db_build_info", "What is running; always 1.", ("version", "python"), registry=registry)
    build.labels(__version__, platform.python_version()).set(1)
    return registry


class MethodMetrics:
    """The metrics of one method, its labels resolved. A unary call costs about 2 microseconds in all.

    `started()`, `received()` and `sent()` count a call, a request message and a response message.
    """

    __slots__ = ("_codes", "_labels", "_metrics", "_observe", "received", "sent", "started")

    def __init__(self, metrics: RpcMetrics, labels: tuple[str, str, str]) -> None:
        self._metrics = metrics
        self._labels = labels
        self._codes: dict[str, Counter] = {}
        self._observe = metrics.handling_seconds.labels(*labels).observe
        # Bound methods, not methods of this class: one Python call less for each count.
        self.started: Callable[[], None] = metrics.started.labels(*labels).inc
        self.received: Callable[[], None] = metrics.received.labels(*labels).inc
        self.sent: Callable[[], None] = metrics.sent.labels(*labels).inc
        self._counter("OK")

    def handled(self, code_name: str, seconds: float) -> None:
        """Count a call that ended with a code, by the code's name in google.rpc.Code, after so many seconds."""
        counter = self._codes.get(code_name) or self._counter(code_name)
        counter.inc()
        self._observe(seconds)

    def _counter(self, code_name: str) -> Counter:
        code = code_name if code_name in CODES else "UNKNOWN"
        counter = self._codes[code] = self._metrics.handled.labels(*self._labels, code)
        return counter


class RpcMetrics:
    """The metrics of all methods. Ask for each registered method once, at start: its series then exist from zero."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("grpc_type", "grpc_service", "grpc_method")
        self.started = Counter("grpc_server_started_total", "Calls begun.", labels, registry=registry)
        self.handled = Counter(
            "grpc_server_handled_total", "Calls ended, by status code.", (*labels, "grpc_code"), registry=registry
        )
        self.received = Counter(
            "grpc_server_msg_received_total", "Request messages received.", labels, registry=registry
        )
        self.sent = Counter("grpc_server_msg_sent_total", "Response messages sent.", labels, registry=registry)
        self.handling_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from a call's begin to its end.",
            labels,
            buckets=BUCKETS,
            registry=registry,
        )
        self._refused = Counter(
            "kronos_db_calls_refused_total",
            "Calls refused before any work, by reason: their domain's `limit`, a `deadline` too short to be met, or "
            "`expired` while they waited.",
            ("domain", "reason"),
            registry=registry,
        )

    def refused(self, domain: str, reason: str) -> None:
        """Count a call that was refused so that others are served."""
        self._refused.labels(domain, reason).inc()

    def for_method(self, grpc_type: GrpcType, service: str, method: str) -> MethodMetrics:
        """Return the metrics of one method; `service` with its package, `method` without."""
        return MethodMetrics(self, (grpc_type, service, method))


def gauges(
    registry: CollectorRegistry, name: str, meaning: str, labels: Sequence[str], read: Callable[[], Iterable[Reading]]
) -> None:
    """Register a gauge whose values `read` gives at each scrape.

    `read` must answer at once and be safe to call from any thread. When it raises, the scrape goes on without this
    gauge and the log says so.
    """
    registry.register(_ReadOnScrape(lambda: GaugeMetricFamily(name, meaning, labels=labels), read))


def counters(
    registry: CollectorRegistry, name: str, meaning: str, labels: Sequence[str], read: Callable[[], Iterable[Reading]]
) -> None:
    """Register a counter, its name ending in `_total`, whose values `read` gives; otherwise like `gauges`."""
    registry.register(_ReadOnScrape(lambda: CounterMetricFamily(name, meaning, labels=labels), read))


class _ReadOnScrape(Collector):
    """A family of series whose values are read when Prometheus asks."""

    def __init__(
        self, family: Callable[[], GaugeMetricFamily | CounterMetricFamily], read: Callable[[], Iterable[Reading]]
    ) -> None:
        self._family = family
        self._read = read

    def describe(self) -> Iterator[Metric]:
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        try:
            for labels, value in self._read():
                family.add_metric(labels, value)
        except Exception:
            # A part that fails must not take the other metrics with it.
            log.warning("metric not readable", metric=family.name, exc_info=True)
            family.samples.clear()
        yield family
