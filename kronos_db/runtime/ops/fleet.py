"""One face for all serving processes of a supervisor: their metrics added up, their readiness told together."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import prometheus_client.values
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from kronos_db.runtime.ops.readiness import OK

_TIMEOUT = 2.0
# Metrics of the process itself: told apart by process, not added up.
_OWN = ("process_", "python_")
_GROWING = frozenset({"counter", "histogram", "summary"})
# Gauges of which the smallest or any is meant.
_LEAST = frozenset({"kronos_db_part_ready"})
_SAME = frozenset({"kronos_db_build_info"})

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


class FleetMetrics(Collector):
    """Asks every process for its metrics and adds them up.

    `processes()` gives slot and ops address of those that serve now. What only grows is remembered for each slot, so
    that the sum does not go back while a process is gone or before it has counted again.
    """

    def __init__(self, processes: Callable[[], Mapping[int, str]]) -> None:
        self._processes = processes
        self._grown: dict[int, dict[str, _Family]] = {}

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of the fleet."""
        sums: dict[str, _Family] = {}
        current = {slot: _ask(address) for slot, address in self._processes().items()}
        for slot, families in current.items():
            self._remember(slot, families)
        for families in self._grown.values():
            for name, family in families.items():
                _add(sums, name, family, sum_of)
        for slot, families in sorted(current.items()):
            for name, family in families.items():
                if name.startswith(_OWN):
                    _add(sums, name, _labelled(family, slot), sum_of)
                elif family.kind not in _GROWING:
                    _add(sums, name, family, min if name in _LEAST else max if name in _SAME else sum_of)
        for name, family in sorted(sums.items()):
            yield _metric(name, family)

    def _remember(self, slot: int, families: Mapping[str, _Family]) -> None:
        known = self._grown.setdefault(slot, {})
        for name, family in families.items():
            if family.kind in _GROWING and not name.startswith(_OWN):
                _add(known, name, family, max)


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
