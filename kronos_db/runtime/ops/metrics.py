"""What a serving process counts: calls as go-grpc-prometheus names them, itself, and parts read at each scrape.

One registry per process. prometheus_client's multiprocess mode is not used: its files outlive their processes.
"""

from __future__ import annotations

import platform
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kronos_db import __version__
from kronos_db.runtime.errors import Code
from kronos_db.runtime.ops.tally import Tallies

GrpcType = Literal["unary", "client_stream", "server_stream", "bidi_stream"]
Message = TypeVar("Message")
# One reading of a part: its label values and the value.
Reading = tuple[Sequence[str], float]

# Seconds. Go's defaults start at 5 ms; a cached read here takes less than one.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Where a method's numbers stand in its row. Any other name of a code is counted as UNKNOWN: the label stays bounded.
_STARTED, _RECEIVED, _SENT, _UNKNOWN, _FIRST_CODE = range(5)
_CODE_CELLS = {"UNKNOWN": _UNKNOWN} | {name: _FIRST_CODE + i for i, name in enumerate(["OK", *Code.__members__])}
_FIRST_BUCKET = _FIRST_CODE + len(Code) + 1
_SECONDS = _FIRST_BUCKET + len(BUCKETS) + 1
_WIDTH = _SECONDS + 1
_BOUNDS = [*map(str, BUCKETS), "+Inf"]

_Families: TypeAlias = tuple[
    CounterMetricFamily, CounterMetricFamily, CounterMetricFamily, CounterMetricFamily, HistogramMetricFamily
]

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
    """The numbers of one method. A unary call costs about a microsecond in all."""

    __slots__ = ("_cells", "_lock", "labels")

    def __init__(self, labels: tuple[str, str, str], cells: memoryview[float]) -> None:
        self.labels = labels
        self._cells = cells
        self._lock = threading.Lock()

    def started(self, _call: object = None) -> None:
        """Count a call."""
        with self._lock:
            self._cells[_STARTED] += 1

    def received(self, message: Message, _call: object = None) -> Message:
        """Count a request message, and pass it on."""
        with self._lock:
            self._cells[_RECEIVED] += 1
        return message

    def sent(self, message: Message, _call: object = None) -> Message:
        """Count a response message, and pass it on."""
        with self._lock:
            self._cells[_SENT] += 1
        return message

    def handled(self, code_name: str, seconds: float) -> None:
        """Count a call that ended with a code, by the code's name in google.rpc.Code, after so many seconds."""
        code = _CODE_CELLS.get(code_name, _UNKNOWN)
        bucket = _FIRST_BUCKET + bisect_left(BUCKETS, seconds)
        cells = self._cells
        with self._lock:
            cells[code] += 1
            cells[bucket] += 1
            cells[_SECONDS] += seconds

    def read(self) -> list[float]:
        """Return all numbers, of one moment."""
        with self._lock:
            return list(self._cells)


class RpcMetrics(Collector):
    """The metrics of all methods. Ask for each registered method once, at start: its series then exist from zero.

    With `path` the numbers are kept in that file, for the next process that counts there.
    """

    def __init__(self, registry: CollectorRegistry, path: Path | None = None) -> None:
        self._tallies = Tallies(_WIDTH, path)
        self._methods: dict[tuple[str, str, str], MethodMetrics] = {}
        registry.register(self)
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
        labels = (grpc_type, service, method)
        found = self._methods.get(labels)
        if found is None:
            cells = self._tallies.row("/".join(labels))
            found = self._methods[labels] = MethodMetrics(labels, cells)
        return found

    def describe(self) -> Sequence[Metric]:
        """Return the families, empty."""
        return _families()

    def collect(self) -> Sequence[Metric]:
        """Return the families with every method's numbers."""
        started, handled, received, sent, seconds = families = _families()
        for method in list(self._methods.values()):
            labels, cells = method.labels, method.read()
            started.add_metric(labels, cells[_STARTED])
            received.add_metric(labels, cells[_RECEIVED])
            sent.add_metric(labels, cells[_SENT])
            for code, cell in _CODE_CELLS.items():
                # Of codes that never came there are no series, except for OK.
                if cells[cell] or code == "OK":
                    handled.add_metric((*labels, code), cells[cell])
            counts = accumulate(cells[_FIRST_BUCKET:_SECONDS])
            seconds.add_metric(labels, list(zip(_BOUNDS, counts, strict=True)), cells[_SECONDS])
        return families


def _families() -> _Families:
    labels = ("grpc_type", "grpc_service", "grpc_method")
    return (
        CounterMetricFamily("grpc_server_started", "Calls begun.", labels=labels),
        CounterMetricFamily("grpc_server_handled", "Calls ended, by status code.", labels=(*labels, "grpc_code")),
        CounterMetricFamily("grpc_server_msg_received", "Request messages received.", labels=labels),
        CounterMetricFamily("grpc_server_msg_sent", "Response messages sent.", labels=labels),
        HistogramMetricFamily("grpc_server_handling_seconds", "Time from a call's begin to its end.", labels=labels),
    )


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


def histograms(
    registry: CollectorRegistry,
    name: str,
    meaning: str,
    labels: Sequence[str],
    read: Callable[[], Iterable[tuple[Sequence[str], Sequence[int], float]]],
) -> None:
    """Register a histogram over BUCKETS, otherwise like `gauges`.

    `read` gives label values, the count of each bucket, of which the last one is open, and the sum.
    """

    def readings() -> Iterator[tuple[Sequence[str], Sequence[tuple[str, float]], float]]:
        for values, counts, total in read():
            yield values, list(zip(_BOUNDS, accumulate(counts), strict=True)), total

    registry.register(_ReadOnScrape(lambda: HistogramMetricFamily(name, meaning, labels=labels), readings))


class _ReadOnScrape(Collector):
    """A family of series whose values are read when Prometheus asks: the arguments of `add_metric`."""

    def __init__(self, family: Callable[[], Any], read: Callable[[], Iterable[Sequence[Any]]]) -> None:
        self._family = family
        self._read = read

    def describe(self) -> Iterator[Metric]:
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        try:
            for reading in self._read():
                family.add_metric(*reading)
        except Exception:
            # A part that fails must not take the other metrics with it.
            log.warning("metric not readable", metric=family.name, exc_info=True)
            family.samples.clear()
        yield family
