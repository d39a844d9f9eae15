"""Reads compose.yaml as Compose means it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

from tests.conftest import lacking
from tests.deploy.dockerfile import ROOT

FILE = ROOT / "deploy" / "compose.yaml"


def program() -> str:
    """Return docker-compose, or skip. The plugin of docker runs on its own, and `config` asks no engine."""
    places = [
        str(ROOT / ".cache" / "bin"),
        os.environ.get("PATH", ""),
        "/usr/libexec/docker/cli-plugins",
        "/usr/lib/docker/cli-plugins",
    ]
    found = shutil.which("docker-compose", path=os.pathsep.join(places))
    if found is None:
        lacking("There is no docker-compose on PATH or in .cache/bin, where .ci/install puts it.")
    return found


def configuration() -> dict[str, Any]:
    """Return what `docker compose config` makes of the file."""
    owner = {"KRONOS_UID": "1000", "KRONOS_GID": "1000"}
    command = [program(), "--file", str(FILE), "config", "--format", "json"]
    done = subprocess.run(command, env={**os.environ, **owner}, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
