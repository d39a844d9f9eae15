"""The documents' commands of Docker and Kubernetes, without an engine: what they lack is the engine alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy import compose
from tests.deploy.commands import Command, commands, pages
from tests.deploy.dockerfile import ROOT
from tests.parts.place import clean_environment

LIMIT = 120.0
# Nobody listens there.
NO_CLUSTER = """
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
users: [{name: none, user: {}}]
current-context: none
"""


def without_engine(command: Command, folder: Path) -> str:
    """Type a command of Docker or Kubernetes where neither is there to answer; return what it complains of."""
    (folder / "config").write_text(NO_CLUSTER, encoding="utf-8")
    environment = {
        **clean_environment(),
        "DOCKER_HOST": f"unix://{folder}/none.sock",
        "KUBECONFIG": str(folder / "config"),
        "KRONOS_UID": "1000",
        "KRONOS_GID": "1000",
    }
    text = command.text.replace("docker compose ", f"{compose.program()} ")
    for name in re.findall(r"--from-file=(\S+)", text):
        (folder / name).touch()
        text = text.replace(f"--from-file={name}", f"--from-file={folder / name}")
    done = subprocess.run(
        ["bash", "-c", text], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert done.returncode != 0, f"{command.name} found an engine"
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [c for page in pages() for c in commands(page) if re.match(r"(docker|kubectl) ", c.name)],
    ids=lambda command: command.name[:60],
)
def test_what_wants_an_engine_is_well_formed(command: Command, tmp_path: Path) -> None:
    """Its options are ones and its files are there: what it lacks is the engine alone."""
    program = command.name.split()[0]
    if shutil.which(program) is None and not command.name.startswith("docker compose "):
        pytest.skip(f"There is no {program}.")
    said = without_engine(command, tmp_path)
    assert re.search(r"Cannot connect to the Docker daemon|connection to the server .* was refused|refused", said), said
