"""The rules of Prometheus: valid, tested one by one, explained in the runbook, and about metrics that there are."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.parts.prometheus import DEPLOYED, ROOT, hurried, program, with_limits

RULES = sorted((DEPLOYED / "rules").glob("*.yml"))
TESTS = sorted((DEPLOYED / "tests").glob("*_test.yml"))
RUNBOOK = ROOT / "docs" / "runbook.md"
SEVERITIES = {"critical", "warning", "info"}
# What each section of the runbook tells.
PARTS = ("**Symptom.**", "**Meaning.**", "**Look at.**", "**Do.**")


def rules() -> Iterator[dict[str, Any]]:
    for path in RULES:
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


ALERTS = [rule for rule in rules() if "alert" in rule]
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
alerts = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])


def known_metrics() -> set[str]:
    """Return every series of the reference page, which is made from the code."""
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    names = set()
    for name, kind in re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.MULTILINE):
        names |= {f"{name}_{end}" for end in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


def named_in(expression: str) -> set[str]:
    """Return the names of series in an expression, without labels and their values."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expression)
    return set(re.findall(r"\b(?:kronos|grpc|process|python)[_:][\w:]+", re.sub(r"\{[^}]*\}", "", bare))) - LABELS


# Labels that begin as metrics do.
LABELS = {"grpc_service", "grpc_method", "grpc_code", "grpc_type"}


def checked(*arguments: str) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=DEPLOYED, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_configuration_and_the_rules() -> None:
    checked("check", "config", "prometheus.yml")


def test_promtool_runs_the_tests_of_the_rules() -> None:
    checked("test", "rules", *(str(path) for path in TESTS))


@alerts
def test_every_alert_says_what_it_is(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert alert["labels"]["severity"] in SEVERITIES
    assert re.fullmatch(r"\d+[smhd]", alert["for"])
    summary, description = alert["annotations"]["summary"], alert["annotations"]["description"]
    assert summary[0] != " "
    assert description.endswith(".")
    # What it says depends on what is wrong.
    assert "{{" in description or not re.search(r"\bby\b", alert["expr"])
    assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"


@alerts
def test_every_alert_has_a_section_in_the_runbook(alert: dict[str, Any]) -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    section = text.partition(f"### {alert['alert']}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
    assert section, f"there is no section {alert['alert']}"
    assert [part for part in PARTS if part not in section] == []


def test_the_runbook_has_no_section_of_an_alert_that_is_gone() -> None:
    sections = re.findall(r"^### (Kronos\w+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(sections) == sorted(alert["alert"] for alert in ALERTS)


@alerts
def test_every_alert_is_tested_both_ways(alert: dict[str, Any]) -> None:
    cases = [
        case
        for path in TESTS
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == alert["alert"]
    ]
    assert any(case["exp_alerts"] for case in cases), "no test shows that it fires"
    assert any(not case["exp_alerts"] for case in cases), "no test shows that it is silent"


@pytest.mark.parametrize("rule", list(rules()), ids=lambda rule: rule.get("alert") or rule.get("record"))
def test_every_metric_of_a_rule_exists(rule: dict[str, Any]) -> None:
    assert named_in(rule["expr"]) <= known_metrics() | RECORDED


def test_every_limit_is_compared_with() -> None:
    used = {name for alert in ALERTS for name in named_in(alert["expr"])}
    assert {name for name in RECORDED if name.startswith("kronos:limit:")} == {
        name for name in used if name.startswith("kronos:limit:")
    }


def test_what_tests_hurry_is_windows_and_holding_times_alone() -> None:
    rule = "expr: rate(calls:rate5m[5m]) > 300\nfor: 10m\nother: x offset 10m"
    assert hurried(rule) == "expr: rate(calls:rate5m[20s]) > 300\nfor: 10s\nother: x offset 40s"
    assert "vector(7)" in with_limits("record: kronos:limit:a\n   expr: vector(1)\n", {"a": 7})
