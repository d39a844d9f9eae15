"""What Prometheus is told of quotas and of the table."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from kronos_db.routes.limiter import Limiter
from kronos_db.routes.table import Table
from kronos_db.runtime.ops.metrics import counters


def watch_routes(registry: CollectorRegistry, limiter: Limiter, table: Table) -> None:
    """Register the metrics of routes."""
    counters(
        registry,
        "kronos_db_quota_decisions_total",
        "Decisions on quotas: allowed, denied, or unavailable when a quota refused because Redis is away.",
        ["outcome"],
        lambda: [
            (("allowed",), limiter.allowed),
            (("denied",), limiter.denied),
            (("unavailable",), limiter.unavailable),
        ],
    )
    counters(
        registry,
        "kronos_db_quota_shadow_denials_total",
        "Times that a quota in shadow mode would have denied.",
        [],
        lambda: [((), limiter.shadow_denials)],
    )
    counters(
        registry,
        "kronos_db_routes_table_waits_total",
        "Calls that had to wait for the table to be read, because a change was newer.",
        [],
        lambda: [((), table.waits)],
    )
