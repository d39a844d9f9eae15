"""The dashboards: made by program, and every query answered by a Prometheus that scraped a loaded fleet."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.parts.eventually import eventually
from tests.parts.prometheus import ROOT
from tests.watch.load import Load
from tests.watch.site import LIMIT, Site
from tests.watch.test_rules import RECORDED, known_metrics, named_in

GRAFANA = ROOT / "deploy" / "grafana"
PAGES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (GRAFANA / "dashboards").glob("*.json")}
# What Prometheus has of itself.
OWN = {"up", "ALERTS"}
# As Grafana works it out for a scrape every three seconds: four of them.
RATE_INTERVAL = "12s"


def targets() -> Iterator[tuple[str, str, str]]:
    """Yield page, panel and expression of every query."""
    for name, page in sorted(PAGES.items()):
        for panel in page["panels"]:
            for target in panel["targets"]:
                yield name, panel["title"], target["expr"]


@pytest.fixture(scope="module")
def dashboards() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        spec = importlib.util.spec_from_file_location("dashboards", ROOT / "scripts" / "dashboards.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def test_what_is_committed_is_what_the_program_gives(dashboards: ModuleType) -> None:
    assert dashboards.drifted() == []


def test_pages_cover_what_they_should() -> None:
    assert set(PAGES) == {
        f"kronos-{name}" for name in ("overview", "domain", "postgres", "cache", "queues", "backups", "statements")
    }
    for name, page in PAGES.items():
        assert page["uid"] == name
        titles = [panel["title"] for panel in page["panels"]]
        assert len(titles) == len(set(titles)), name


def test_panels_do_not_overlap() -> None:
    for page in PAGES.values():
        taken: set[tuple[int, int]] = set()
        for panel in page["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken
            assert max(x for x, _ in cells) < 24
            taken |= cells


def test_every_metric_of_a_panel_exists() -> None:
    for page, panel, expression in targets():
        assert named_in(expression) <= known_metrics() | RECORDED | OWN, f"{page}: {panel}"


def test_provisioning_names_what_is_there() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text("utf-8"))
    assert [source["type"] for source in sources["datasources"]] == ["prometheus"]
    providers = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "kronos-db.yml").read_text("utf-8"))
    assert [provider["options"]["path"] for provider in providers["providers"]] == ["/var/lib/grafana/dashboards"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that every service of was called, scraped often enough for rates, with a backup that was tried out."""
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        site.start()
        load = Load(site)
        load.drill()
        seen = "count(kronos:namespace:hit_ratio_rate5m) + count(kronos_db_queue_messages)"

        def shown() -> bool:
            load.round()
            return site.prometheus.value(seen) is not None

        eventually(shown, LIMIT, site.prometheus.log)
        yield site
    finally:
        site.stop()


def resolved(expression: str, page: dict[str, Any], site: Site) -> str:
    """Return an expression with its variables put in as Grafana does, of those with many values all."""
    for variable in page["templating"]["list"]:
        if variable["type"] == "query":
            query, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr] # else it fails
            values = site.prometheus.label_values(query, label)
            assert values, f"{variable['name']} has no values"
            chosen = "(" + "|".join(re.escape(value).replace("\\", "\\\\") for value in values) + ")"
            expression = expression.replace(f"${variable['name']}", chosen)
    expression = expression.replace("$__rate_interval", RATE_INTERVAL)
    assert "$" not in expression
    return expression


def shows(site: Site, expression: str) -> bool:
    return any(series["value"][1] != "NaN" for series in site.prometheus.query(expression))


def test_every_panel_has_data(loaded: Site) -> None:
    empty: dict[str, str] = {}
    wanted = [(f"{name}: {panel}", resolved(text, PAGES[name], loaded)) for name, panel, text in targets()]
    assert len(wanted) > 80

    def all_shown() -> bool:
        empty.clear()
        # An error of the query raises.
        empty.update((panel, expression) for panel, expression in wanted if not shows(loaded, expression))
        return not empty

    eventually(all_shown, LIMIT, lambda: empty)


def test_a_scrape_of_a_fleet_is_what_the_page_of_metrics_says(loaded: Site) -> None:
    names = {name.partition("{")[0] for name in loaded.fleet.metrics()}
    assert names <= known_metrics() | OWN, "a metric without a row"
    # Of a histogram, any series will do; of what nothing has come yet, there is none.
    there = {name for name in known_metrics() if name not in names}
    assert there <= NOT_YET


# Without a standby nothing is replayed, without overload nothing refused.
NOT_YET = {"kronos_db_postgres_replication_lag_seconds", "kronos_db_calls_refused_total"}


def test_nothing_fires_while_all_is_well(loaded: Site) -> None:
    assert loaded.prometheus.value('count(up{job="kronos-db"} == 1)') == 1
    # Machines are shared: what is slow there is no fault.
    slow = {"KronosLatencyHigh", "KronosStatementSlow"}
    eventually(lambda: not loaded.prometheus.firing().keys() - slow, LIMIT, loaded.prometheus.firing)


def test_the_folder_has_no_other_files() -> None:
    assert {path.suffix for path in Path(GRAFANA / "dashboards").iterdir()} == {".json"}
