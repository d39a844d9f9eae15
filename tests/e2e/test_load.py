"""A load with `kronos-db call --repeat-from`, in small; `make load` does it with 100,000 users."""

from __future__ import annotations

import uuid
from pathlib import Path

from tests.e2e.load import count, load, write_batches
from tests.parts.serving import Serving

USERS = 5_000


def test_a_load_arrives_whole_and_can_be_repeated(serving: Serving, tmp_path: Path) -> None:
    prefix = f"load-{uuid.uuid4().hex[:8]}"
    file = tmp_path / "batches.ndjson"
    write_batches(file, prefix, USERS)
    target = serving.server.grpc_address, serving.tokens["operator"]
    for _ in range(2):
        done = load(file, *target)
        assert (done.returncode, done.stdout.partition(" in ")[0]) == (0, "5 OK, 0 failed")
        assert count(prefix, *target) == USERS


def test_the_batches_that_fail_are_told(serving: Serving, tmp_path: Path) -> None:
    prefix = f"load-{uuid.uuid4().hex[:8]}"
    file = tmp_path / "batches.ndjson"
    write_batches(file, prefix, 2_000)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[1].replace("@example.org", "", 1))
    target = serving.server.grpc_address, serving.tokens["operator"]
    done = load(file, *target)
    assert (done.returncode, done.stdout.partition(" in ")[0]) == (1, "1 OK, 1 failed")
    assert count(prefix, *target) == 1_000
