"""A Node.js caller with `@grpc/grpc-js`: the tests are in `node/`, this runs them against a server."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.conftest import NODE_PROJECT, ROOT, environment, ran
from tests.parts.serving import Serving


def test_users_from_node(serving: Serving, node: str, protos: Path) -> None:
    settings = {
        **environment(serving),
        "KRONOS_READER_TOKEN": serving.tokens["reader"],
        "KRONOS_PROTOS": str(protos),
        "KRONOS_DESCRIPTORS": str(ROOT / "generated" / "kronos.binpb"),
    }
    said = ran([node, "--test", "--test-reporter=tap", "users.test.mjs"], settings, NODE_PROJECT).stdout
    passed = re.search(r"^# pass (\d+)$", said, re.MULTILINE)
    written = (NODE_PROJECT / "users.test.mjs").read_text().count("\ntest(")
    assert passed
    assert int(passed[1]) == written


def test_the_lock_names_no_registry() -> None:
    assert '"resolved"' not in (NODE_PROJECT / "package-lock.json").read_text()
