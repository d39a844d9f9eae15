"""A loaded fleet below a real Prometheus: every panel has data, nothing fires, and then a few faults that do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.parts.eventually import eventually
from tests.watch import faults
from tests.watch.conftest import Loaded
from tests.watch.faults import Fault
from tests.watch.site import LIMIT, Site
from tests.watch.test_dashboards import OWN, PAGES, targets
from tests.watch.test_rules import known_metrics

# As Grafana works it out for a scrape every three seconds: four of them.
RATE_INTERVAL = "12s"


def resolved(expression: str, page: dict[str, Any], site: Site) -> str:
    """Return an expression with its variables put in as Grafana does, of those with many values all.

    A variable without values is left in.
    """
    for variable in page["templating"]["list"]:
        if variable["type"] == "query":
            query, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr] # else it fails
            values = site.prometheus.label_values(query, label)
            if not values:
                return expression
            chosen = "(" + "|".join(re.escape(value).replace("\\", "\\\\") for value in values) + ")"
            expression = expression.replace(f"${variable['name']}", chosen)
    return expression.replace("$__rate_interval", RATE_INTERVAL)


def shows(site: Site, expression: str) -> bool:
    return any(series["value"][1] != "NaN" for series in site.prometheus.query(expression))


def test_every_panel_has_data(loaded: Loaded) -> None:
    empty: dict[str, str] = {}
    wanted = [(f"{name}: {panel}", name, text) for name, panel, text in targets()]
    assert len(wanted) > 80

    def all_shown() -> bool:
        empty.clear()
        for panel, name, text in wanted:
            expression = resolved(text, PAGES[name], loaded.site)
            # What has a variable left in waits for values of it; an error of the query raises.
            if "$" in expression or not shows(loaded.site, expression):
                empty[panel] = expression
        return not empty

    eventually(all_shown, LIMIT, lambda: empty)


def test_a_scrape_of_a_fleet_is_what_the_page_of_metrics_says(loaded: Loaded) -> None:
    def names() -> set[str]:
        return {name.partition("{")[0] for name in loaded.site.fleet.metrics()}

    assert names() <= known_metrics() | OWN, "a metric without a row"
    # Of a histogram, any series will do. What is read now and then may be to come.
    eventually(lambda: known_metrics() - names() <= NOT_YET, LIMIT, lambda: known_metrics() - names())


# Without a standby nothing is replayed or read there, without overload nothing refused.
NOT_YET = {
    "kronos_db_postgres_replication_lag_seconds",
    "kronos_db_standby_reads_total",
    "kronos_db_calls_refused_total",
}


def test_nothing_fires_while_all_is_well(loaded: Loaded) -> None:
    assert loaded.site.prometheus.value('count(up{job="kronos-db"} == 1)') == 1
    # Machines are shared: what is slow there is no fault.
    slow = {"KronosLatencyHigh", "KronosStatementSlow"}
    eventually(lambda: not loaded.site.prometheus.firing().keys() - slow, LIMIT, loaded.site.prometheus.firing)


# Short windows and times for which alerts must hold (see tests/parts/prometheus.py), otherwise the rules as they are.
# The others, and those that need longer, are in test_faults.py.
SHORT = (
    Fault(
        faults.bad_content,
        (
            "KronosDeadMessages",
            "KronosQueueOld",
            "KronosLogRecordsRefused",
            "KronosCallersRefused",
            "KronosInternalErrors",
        ),
        {"queue_seconds": 1},
    ),
    Fault(faults.no_redis, ("KronosRedisAway", "KronosQuotasUnavailable")),
    Fault(faults.a_lock, ("KronosPoolWaiting", "KronosPoolRefusing", "KronosCallsRefused")),
)


@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.inject.__name__)
def test_a_fault_fires_its_alerts(loaded: Loaded, fault: Fault) -> None:
    faults.check(loaded.site, loaded.load, fault)
