"""Writes the Grafana dashboards below `deploy/grafana/dashboards/`, or checks that they are what this gives."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from panels import DASHBOARDS, Dashboard, Panel

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy" / "grafana" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_HEIGHT, _STAT_HEIGHT, _COLUMNS = 7, 4, 24


def as_json(dashboard: Dashboard) -> dict[str, Any]:
    """Return a dashboard in Grafana's model."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.about,
        "tags": ["kronos-db"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["kronos-db"], "title": "kronos-db", "asDropdown": True}],
        "templating": {"list": [_source_variable(), *(_variable(*each) for each in dashboard.variables)]},
        "panels": list(_placed(dashboard.panels)),
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _placed(panels: Iterable[Panel]) -> Iterable[dict[str, Any]]:
    """Yield the panels of Grafana's model, from left to right and down."""
    x = y = height = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > _COLUMNS:
            x, y, height = 0, y + height, 0
        tall = _STAT_HEIGHT if panel.kind == "stat" else _HEIGHT
        yield {
            "id": number,
            "type": panel.kind,
            "title": panel.title,
            "description": panel.about,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": panel.width, "h": tall},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "options": _options(panel.kind),
            "targets": [_target(panel, index) for index in range(len(panel.queries))],
        }
        x, height = x + panel.width, max(height, tall)


def _target(panel: Panel, index: int) -> dict[str, Any]:
    expression, legend = panel.queries[index]
    over_time = panel.kind == "timeseries"
    kind = {"range": over_time, "instant": not over_time}
    return {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend, **kind}


def _options(kind: str) -> dict[str, Any]:
    if kind == "timeseries":
        return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    reduced = {"reduceOptions": {"calcs": ["lastNotNull"]}}
    return {**reduced, "orientation": "horizontal", "displayMode": "basic"} if kind == "bargauge" else reduced


def pages() -> dict[Path, str]:
    """Return the text of every file."""
    return {
        FOLDER / f"{dashboard.uid}.json": json.dumps(as_json(dashboard), indent=1) + "\n" for dashboard in DASHBOARDS
    }


def drifted() -> list[str]:
    """Return the names of files that are not what this gives, and of those that it does not give."""
    made = pages()
    there = set(FOLDER.glob("*.json"))
    return sorted(
        path.name
        for path in there | made.keys()
        if path not in made or not path.exists() or path.read_text(encoding="utf-8") != made[path]
    )


def write() -> None:
    """Write all files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


def check() -> None:
    """End with a sentence when a file is not what this gives."""
    if names := drifted():
        raise SystemExit(f"Not what scripts/dashboards.py gives: {', '.join(names)}. Run it with `write`.")


if __name__ == "__main__":
    commands: dict[str, Callable[[], None]] = {"write": write, "check": check}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=commands)
    commands[parser.parse_args().command]()
