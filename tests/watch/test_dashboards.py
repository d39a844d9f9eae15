"""The dashboards: made by program, whole, and about metrics that there are; `test_fleet.py` runs their queries."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.parts.prometheus import ROOT
from tests.watch.test_rules import RECORDED, known_metrics, named_in

GRAFANA = ROOT / "deploy" / "grafana"
PAGES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (GRAFANA / "dashboards").glob("*.json")}
# What Prometheus has of itself.
OWN = {"up", "ALERTS"}


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


def test_the_folder_has_no_other_files() -> None:
    assert {path.suffix for path in Path(GRAFANA / "dashboards").iterdir()} == {".json"}
