"""One face for all serving processes of a supervisor: their metrics added up, their readiness told together."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlencode

import prometheus_client.values
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from kronos_db.runtime.ops.http import ProblemError, Request, Response
from kronos_db.runtime.ops.readiness import OK

_TIMEOUT = 2.0
# Requests handed on at once, of the threads that the ops port has.
_MOST_FORWARDED = 8
# Seconds that one takes that only reads and says nothing else, that any takes at most, and that are waited beyond that.
_READ_TIMEOUT, _LONGEST, _MARGIN = 30.0, 3600.0, 5.0
_READING = ("GET", "HEAD")
_REQUEST_HEADERS = (
    "authorization",
    "x-request-id",
    "traceparent",
    "tracestate",
    "content-type",
    "request-timeout",
)
_ANSWER_HEADERS = ("X-Request-Id", "Retry-After", "WWW-Authenticate", "Allow")
# Metrics of the process itself: told apart by process, not added up.
_OWN = ("process_", "python_")
_GROWING = frozenset({"counter", "histogram", "summary"})
# Gauges of which the smallest is meant, or the greatest: that of all others is the sum.
_LEAST = frozenset({"kronos_db_part_ready"})
_GREATEST = frozenset({"kronos_db_build_info", "kronos_db_background_last_success_timestamp_seconds"})

# A series: its name and its labels.
_Series = tuple[str, tuple[tuple[str, str], ...]]


def keep_values_in(folder: Path, slot: int) -> None:
    """Keep the values of counters and histograms of this process in files of its slot; before any is made.

    The next process in the slot goes on from them: a kill -9 takes no count away, and there are as many files as slots.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    kind = prometheus_client.values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call] # by its authors
    prometheus_client.values.ValueClass = kind


@dataclass
class _Family:
    """What is known of one metric: its type, its meaning and the values of its series."""

    kind: str
    meaning: str
    values: dict[_Series, float] = field(default_factory=dict)


class _Grown:
    """What one series after another of a metric has come to in one slot, whichever process was in it."""

    def __init__(self) -> None:
        self._before: dict[_Series, float] = {}
        self._last: dict[_Series, float] = {}

    def add(self, values: Mapping[_Series, float]) -> None:
        """Take the values of the process that is in the slot now."""
        for series, value in values.items():
            last = self._last.get(series, 0.0)
            if value < last:
                # Another process, which counts this in its memory and begins at zero.
                self._before[series] = self._before.get(series, 0.0) + last
            self._last[series] = value

    def total(self) -> dict[_Series, float]:
        """Return what all processes of the slot have counted."""
        return {series: self._before.get(series, 0.0) + value for series, value in self._last.items()}


class FleetMetrics(Collector):
    """Asks every process for its metrics and adds them up.

    `processes()` gives slot and ops address of those that serve now. What only grows is remembered for each slot, so
    that the sum does not go back while a process is gone or before it has counted again.
    """

    def __init__(self, processes: Callable[[], Mapping[int, str]]) -> None:
        self._processes = processes
        # An older answer must not come after a newer one.
        self._lock = threading.Lock()
        self._grown: dict[tuple[int, str], tuple[_Family, _Grown]] = {}

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of the fleet."""
        with self._lock:
            sums = self._summed()
        for name, family in sorted(sums.items()):
            yield _metric(name, family)

    def _summed(self) -> dict[str, _Family]:
        sums: dict[str, _Family] = {}
        for slot, address in sorted(self._processes().items()):
            for name, answered in _ask(address).items():
                family = _labelled(answered, slot) if name.startswith(_OWN) else answered
                if family.kind in _GROWING:
                    self._grown.setdefault((slot, name), (family, _Grown()))[1].add(family.values)
                else:
                    _add(sums, name, family, min if name in _LEAST else max if name in _GREATEST else sum_of)
        for (_slot, name), (family, grown) in self._grown.items():
            _add(sums, name, _Family(family.kind, family.meaning, grown.total()), sum_of)
        return sums


class Forwarding:
    """Hands a request to one of the serving processes, in turn, and its answer back.

    `processes()` gives slot and ops address of those that serve now. A request that has not been taken by one is handed
    to the next, and one that only reads also when the process ended over it.
    """

    def __init__(self, processes: Callable[[], Mapping[int, str]]) -> None:
        self._processes = processes
        self._turn = itertools.count()
        self._room = threading.BoundedSemaphore(_MOST_FORWARDED)

    def __call__(self, request: Request) -> Response:
        """Return what a process answers; a problem 503 when none takes the request, 502 when one ends over it."""
        if not self._room.acquire(blocking=False):
            raise _unavailable("As many requests are in work as may.")
        try:
            addresses = [address for _slot, address in sorted(self._processes().items())]
            turn = next(self._turn) % max(1, len(addresses))
            for address in (*addresses[turn:], *addresses[:turn]):
                connection = http.client.HTTPConnection(address, timeout=_TIMEOUT)
                try:
                    connection.connect()
                except OSError:
                    continue
                try:
                    return _forwarded(connection, request)
                except (OSError, http.client.HTTPException):
                    if request.method not in _READING:
                        raise ProblemError(
                            HTTPStatus.BAD_GATEWAY,
                            "The process that had the request ended; whether it was done is not known.",
                        ) from None
            raise _unavailable("No process serves at the moment.")
        finally:
            self._room.release()


def _forwarded(connection: http.client.HTTPConnection, request: Request) -> Response:
    query = urlencode(request.query, doseq=True)
    headers = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
    connection.sock.settimeout(_patience(request))
    target = f"{request.path}?{query}" if query else request.path
    try:
        connection.request(request.method, target, request.body or None, headers)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    passed_on = {name: value for name in _ANSWER_HEADERS if (value := answer.getheader(name)) is not None}
    return Response(HTTPStatus(answer.status), body, answer.getheader("Content-Type", ""), passed_on)


def _patience(request: Request) -> float:
    """Return for how many seconds a process is waited for that may be frozen: longer than it takes by itself."""
    try:
        seconds = float(request.headers["request-timeout"])
    except (KeyError, ValueError):
        seconds = _READ_TIMEOUT if request.method in _READING else _LONGEST
    return min(max(0.0, seconds), _LONGEST) + _MARGIN


def _unavailable(detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "1"})


def sum_of(one: float, other: float) -> float:
    """Return the sum of two values."""
    return one + other


def shortfall_of(address: str | None) -> str | None:
    """Ask a process at its ops address whether it is ready; return why not, or None. No address: it does not serve."""
    if address is None:
        return "is being started"
    try:
        parts: dict[str, str] = json.loads(_get(address, "/readyz"))["parts"]
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return "does not answer"
    return next((f"{part}: {state}" for part, state in parts.items() if state != OK), None)


def _ask(address: str) -> dict[str, _Family]:
    """Return the metrics of one process; nothing when it does not answer."""
    try:
        text = _get(address, "/metrics").decode()
    except (OSError, http.client.HTTPException):
        return {}
    families: dict[str, _Family] = {}
    for metric in text_string_to_metric_families(text):
        values = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in metric.samples}
        families[metric.name] = _Family(metric.type, metric.documentation, values)
    return families


def _get(address: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def _add(into: dict[str, _Family], name: str, family: _Family, combine: Callable[[float, float], float]) -> None:
    found = into.setdefault(name, _Family(family.kind, family.meaning))
    for series, value in family.values.items():
        found.values[series] = combine(found.values[series], value) if series in found.values else value


def _labelled(family: _Family, slot: int) -> _Family:
    process = (("process", str(slot)),)
    values = {(name, (*labels, *process)): value for (name, labels), value in family.values.items()}
    return _Family(family.kind, family.meaning, values)


def _metric(name: str, family: _Family) -> Metric:
    metric = Metric(name, family.meaning, family.kind)
    for (sample, labels), value in _ordered(family.values.items()):
        metric.add_sample(sample, dict(labels), value)
    return metric


def _ordered(values: Iterable[tuple[_Series, float]]) -> list[tuple[_Series, float]]:
    """Return series in an order that readers of histograms expect: by labels without the bucket, buckets growing."""

    def key(item: tuple[_Series, float]) -> tuple[object, ...]:
        (name, labels), _ = item
        bound = dict(labels).get("le")
        rest = tuple(label for label in labels if label[0] != "le")
        return (rest, name, float(bound) if bound is not None else 0.0)

    return sorted(values, key=key)
