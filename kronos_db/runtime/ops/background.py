"""Metrics of background work: who holds its lease, how its runs end, when it was last done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter

from kronos_db.runtime.ops.metrics import gauges


class Work(Protocol):
    """Background work that tells how it is."""

    domain: str
    name: str
    # Seconds between two runs.
    interval: float
    # Unix time; None while it is not known.
    success_time: float | None

    @property
    def holds(self) -> bool:
        """Whether this process is the one that does it."""

    def on_end(self, listener: Callable[[str], None]) -> None:
        """Have `listener` called with the outcome of each run."""


def watch_background(registry: CollectorRegistry, works: Sequence[Work], outcomes: Sequence[str]) -> None:
    """Register the metrics of all background work; `outcomes` are those that a run may have."""
    labels = ["domain", "work"]
    runs = Counter(
        "kronos_db_background_runs_total",
        "Runs of background work in this process, by outcome.",
        [*labels, "outcome"],
        registry=registry,
    )
    for work in works:
        counted = {outcome: runs.labels(work.domain, work.name, outcome) for outcome in outcomes}
        work.on_end(_counting(counted))
    gauges(
        registry,
        "kronos_db_background_holder",
        "Whether this process holds the lease of the work (1) or not (0): 1 in the whole fleet.",
        labels,
        lambda: [((work.domain, work.name), float(work.holds)) for work in works],
    )
    gauges(
        registry,
        "kronos_db_background_interval_seconds",
        "Seconds from one run of the work to the next.",
        labels,
        lambda: [((work.domain, work.name), work.interval) for work in works],
    )
    gauges(
        registry,
        "kronos_db_background_last_success_timestamp_seconds",
        "When the work was last done by any process of the fleet, as Unix time.",
        labels,
        lambda: [((work.domain, work.name), work.success_time) for work in works if work.success_time is not None],
    )


def watch_lag(registry: CollectorRegistry, lags: Mapping[tuple[str, str], Callable[[], float | None]]) -> None:
    """Register how far background work is behind: by its domain and name, what tells the seconds.

    None is told by a process that does not do it.
    """
    gauges(
        registry,
        "kronos_db_background_lag_seconds",
        "For how long the oldest of what the work is to do has waited; told by the process that does it.",
        ["domain", "work"],
        lambda: [(labels, lag) for labels, read in lags.items() if (lag := read()) is not None],
    )


def _counting(runs: Mapping[str, Counter]) -> Callable[[str], None]:
    return lambda outcome: runs[outcome].inc()
