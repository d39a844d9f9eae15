"""Metrics of log records: how many came in, and how many were refused."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from kronos_db.logs.intake import Intake
from kronos_db.runtime.ops.metrics import counters


def watch_records(registry: CollectorRegistry, intake: Intake) -> None:
    """Register the metrics of one process's intake."""
    counters(
        registry,
        "kronos_db_log_records_total",
        "Log records of calls that were answered: stored, or refused for breaking a rule.",
        ["outcome"],
        lambda: [(("stored",), intake.stored), (("refused",), intake.refused)],
    )
