"""Every alert that `test_fleet.py` leaves out, fired by a real fault: minutes, so only `make soak` does it.

Hurried are the windows of rates (by 15) and the times for which an alert must hold (by 60, to 10 s at most), and the
limits that each fault names are lowered: a day passes in no test. Everything else is as it is shipped, and what fails
is real.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from kronos_db.runtime.ops import metrics
from kronos_db.runtime.ops.http import OpsServer, standard_routes
from kronos_db.runtime.ops.readiness import Readiness
from tests.watch import faults
from tests.watch.conftest import Loaded
from tests.watch.faults import Fault
from tests.watch.test_fleet import SHORT
from tests.watch.test_rules import ALERTS

LONG = (
    Fault(
        faults.nothing,
        ("KronosBackupTooOld", "KronosBackupDrillTooOld", "KronosMemoryHigh"),
        {
            "backup_age_seconds": 1,
            "drill_age_seconds": 1,
            "resident_bytes": 10_000_000,
        },
    ),
    Fault(
        faults.a_lock,
        ("KronosPoolSaturated", "KronosLatencyHigh", "KronosTransactionLong"),
        {
            "transaction_seconds": 5,
        },
    ),
    Fault(faults.a_slow_statement, ("KronosStatementSlow",)),
    Fault(faults.lost_connections, ("KronosPoolConnectionsLost",), {"connections_lost": 2}),
    Fault(faults.no_right_to_notify, ("KronosNotificationsFailing",)),
    Fault(faults.many_sessions, ("KronosPostgresSessionsHigh",)),
    Fault(faults.spent_transactions, ("KronosWraparoundNear",), {"wraparound_age": 4000}),
    Fault(faults.a_standby_that_lags, ("KronosReplicationLag",), {"replication_lag_seconds": 5}),
    Fault(faults.tokens_that_cannot_be_removed, ("KronosBackgroundLag",)),
    Fault(faults.a_frozen_process, ("KronosProcessesMissing",)),
    Fault(faults.killed_processes, ("KronosProcessRestarts",)),
    Fault(
        faults.no_way_for_the_archive,
        (
            "KronosArchiveNotReceiving",
            "KronosArchiveLag",
            "KronosArchiveSlotLarge",
            "KronosBackgroundFailing",
            "KronosBackupRunFailed",
        ),
        {"archive_lag_bytes": 1_000_000, "archive_slot_bytes": 1_000_000},
    ),
    Fault(faults.a_segment_is_gone, ("KronosArchiveGap",)),
    Fault(faults.no_backups, ("KronosBackupMissing",)),
    Fault(
        faults.no_postgres,
        (
            "KronosPartNotReady",
            "KronosErrorBudgetBurnFast",
            "KronosErrorBudgetBurnSlow",
            "KronosCopiesNotValid",
            "KronosBackgroundNotHeld",
            "KronosBackgroundLate",
            "KronosLogPartitionsLate",
            "KronosAuditEventsWaiting",
        ),
        {"background_late_seconds": 1, "log_partitions_late_seconds": 1},
    ),
)
# Those that need targets of their own; the last ones, since nothing serves after them.
TARGETS = {"KronosVersionsMixed", "KronosTargetDown", "KronosTargetsMissing"}
in_full = pytest.mark.skipif(os.environ.get("KRONOS_TEST_SOAK") != "1", reason="minutes: `make soak` runs it")


def test_every_alert_is_fired_by_a_fault() -> None:
    fired = {name for fault in (*SHORT, *LONG) for name in fault.alerts} | TARGETS
    assert fired == {alert["alert"] for alert in ALERTS}


@pytest.mark.soak
@pytest.mark.timeout(600)
@in_full
@pytest.mark.parametrize("fault", LONG, ids=lambda fault: fault.inject.__name__)
def test_a_fault_fires_its_alerts(loaded: Loaded, fault: Fault) -> None:
    faults.check(loaded.site, loaded.load, fault)


@pytest.mark.soak
@pytest.mark.timeout(600)
@in_full
def test_what_becomes_of_targets_fires_its_alerts(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    site, fleet = loaded.site, loaded.site.fleet.settings.ops_listen
    site.is_silent(*TARGETS)
    # Of another release there is none to be had: its page of metrics is made by our code, under another number.
    monkeypatch.setattr(metrics, "__version__", "99.0.0")
    other = _served(metrics.new_registry)
    site.prometheus.scrape([fleet, other.address])
    site.fires("KronosVersionsMixed")
    other.stop()
    site.fires("KronosTargetDown")
    site.prometheus.scrape([])
    site.fires("KronosTargetsMissing")
    site.prometheus.scrape([fleet])
    site.is_silent(*TARGETS)


def _served(registry: Callable[[], CollectorRegistry]) -> OpsServer:
    server = OpsServer("127.0.0.1:0", standard_routes(registry(), Readiness()))
    server.start()
    return server
