"""A real Prometheus that scrapes what a test runs, with the rules that are shipped or a hurried copy of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.ports import free_address
from tests.conftest import lacking
from tests.parts.eventually import eventually

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOYED = ROOT / "deploy" / "prometheus"
# By how much the copy is hurried: windows of rates, which still have several scrapes in them, and how long an alert
# must hold, which is not more than so many seconds: on a loaded machine a scrape fails now and then.
WINDOW, HOLDING, MOST_HELD = 15, 60, 10
SCRAPE = "3s"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LIMIT = 60.0


def program(name: str) -> str:
    """Return the path of prometheus or promtool; skip the test where it is missing."""
    found = shutil.which(name, path=os.pathsep.join([str(ROOT / ".cache" / "bin"), os.environ.get("PATH", "")]))
    if found is None:
        lacking(f"There is no {name} on PATH or in .cache/bin, where .ci/install puts it.")
    return found


def hurried(rules: str) -> str:
    """Return rules with all windows divided by WINDOW, all `for` by HOLDING and more; nothing else is changed."""

    def divided(by: int, least: int, most: int = 86_400) -> Any:
        def shorter(found: re.Match[str]) -> str:
            seconds = int(found[1]) * _SECONDS[found[2]]
            return f"{min(most, max(seconds // by, min(least, seconds)))}s"

        return shorter

    rules = re.sub(r"(?<=\[)(\d+)([smhd])(?=\])", divided(WINDOW, 10), rules)
    rules = re.sub(r"(?<=offset )(\d+)([smhd])\b", divided(WINDOW, 10), rules)
    return re.sub(r"(?<=for: )(\d+)([smhd])$", divided(HOLDING, 0, MOST_HELD), rules, flags=re.MULTILINE)


def with_limits(text: str, limits: Mapping[str, float]) -> str:
    """Return `limits.yml` with some limits changed."""
    for name, value in limits.items():
        pattern = rf"(record: kronos:limit:{name}\n\s+expr: ).*"
        assert re.search(pattern, text), f"there is no limit {name}"
        text = re.sub(pattern, rf"\g<1>vector({value})", text)
    return text


class Prometheus:
    """Prometheus in `folder`, with `targets` as the job kronos-db, and hurried rules."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        self._folder = folder
        self._address = free_address()
        self._targets = folder / "targets" / "kronos-db.yml"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "rules").mkdir(parents=True)
        self._targets.parent.mkdir()
        config = (DEPLOYED / "prometheus.yml").read_text(encoding="utf-8")
        config = config.replace("scrape_interval: 15s", f"scrape_interval: {SCRAPE}")
        config = config.replace("scrape_timeout: 10s", f"scrape_timeout: {SCRAPE}")
        config = config.replace("evaluation_interval: 15s", "evaluation_interval: 1s")
        config = config.replace("localhost:9090", self._address)
        (folder / "prometheus.yml").write_text(config, encoding="utf-8")
        for path in (DEPLOYED / "rules").glob("*.yml"):
            (folder / "rules" / path.name).write_text(hurried(path.read_text(encoding="utf-8")), encoding="utf-8")
        self._shipped_limits = (folder / "rules" / "limits.yml").read_text(encoding="utf-8")
        self.scrape(targets)

    def start(self) -> None:
        """Start it; it answers when this returns."""
        command = [
            program("prometheus"),
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self._address}",
            "--log.level=warn",
        ]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(self._is_ready, _LIMIT, self.log)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """Return what it said."""
        return (self._folder / "log").read_text(encoding="utf-8")

    def scrape(self, targets: list[str]) -> None:
        """Scrape these ops ports from now on."""
        text = f"- targets: {json.dumps(targets)}\n" if targets else "[]\n"
        (self._folder / "new").write_text(text, encoding="utf-8")
        # In one step: it watches the folder.
        (self._folder / "new").replace(self._targets)

    def limit(self, **limits: float) -> None:
        """Compare with these limits from now on, and with those that are shipped for the rest."""
        text = with_limits(self._shipped_limits, limits)
        (self._folder / "rules" / "limits.yml").write_text(text, encoding="utf-8")
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)
        for name, value in limits.items():
            eventually(lambda n=name, v=value: self.value(f"kronos:limit:{n}") == v, _LIMIT, self.log)  # type: ignore[misc] # bound at once

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression gives now. Raises ValueError with what is wrong with it."""
        answer = self._get("query", query=expression)
        if answer["status"] != "success":
            raise ValueError(f"{expression}: {answer['error']}")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float | None:
        """Return the value of an expression with one series; None when it has none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def label_values(self, expression: str, label: str) -> list[str]:
        """Return the values of a label, as Grafana asks for those of a variable."""
        return sorted({series["metric"].get(label, "") for series in self.query(expression)} - {""})

    def firing(self) -> dict[str, list[dict[str, Any]]]:
        """Return the alerts that fire, by name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for alert in self._get("alerts")["data"]["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert)
        return found

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        address = f"http://{self._address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                body: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                body = json.load(error)
        return body
