"""Callers from Node.js with the shipped retry policy do not notice that serving processes are killed."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

from tests.e2e.conftest import NODE_PROJECT
from tests.parts.eventually import eventually
from tests.parts.fleet import Fleet

KILLS = 3
LIMIT = 30.0  # seconds
# Between two kills; each is a line that a caller prints.
ROUNDS = 100


def test_node_callers_do_not_notice_that_processes_are_killed(
    fleet: Fleet, node: str, protos: Path, tmp_path: Path
) -> None:
    place = {"KRONOS_ADDRESS": fleet.settings.grpc_listen, "KRONOS_TOKEN": fleet.tokens["operator"]}
    environment = {**os.environ, **place, "KRONOS_PROTOS": str(protos)}
    said = tmp_path / "said"
    with said.open("w") as out:
        command = [node, str(NODE_PROJECT / "killed.mjs")]
        callers = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    rounds = lambda: len(said.read_text().splitlines())  # noqa: E731
    try:
        for kill in range(KILLS + 1):
            enough = rounds() + ROUNDS
            eventually(lambda: rounds() >= enough or callers.poll() is not None, LIMIT)  # noqa: B023 # called at once
            assert callers.poll() is None, said.read_text()[-2000:]
            if kill < KILLS:
                fleet.await_ready()
                random.choice(fleet.children()).kill()
    finally:
        callers.kill()
        callers.wait(LIMIT)
