"""The examples do what they say, as they are."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from tests.e2e.conftest import NODE_PROJECT, ROOT, environment, ran
from tests.parts.serving import Serving

EXAMPLES = ROOT / "examples"
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def check_story(text: str) -> None:
    """Check what the examples in programming languages print."""
    pattern = rf"""created  ({UUID}) (ann-\w+)
repeated \1 the same user
found    \1 \2@example\.org
listed   [1-9]\d*
refused  ALREADY_EXISTS \| USERNAME_TAKEN \| user\.username: is taken by another user
refused  INVALID_ARGUMENT \| BAD_REQUEST \| user\.username: .+ \| user\.email: .+
"""
    assert re.fullmatch(pattern, text), text


def check_answers(text: str) -> None:
    """Check what the examples for the shell print: JSON with words between."""
    blocks = re.findall(r"^\{$.*?^\}$", text, re.MULTILINE | re.DOTALL)
    created, found, listed = map(json.loads, blocks)
    assert created == found
    assert listed["users"] == [created["user"]]
    assert "repeated: the same user\n" in text
    assert text.endswith("refused, as meant\n")


def test_python(serving: Serving) -> None:
    check_story(ran([sys.executable, str(EXAMPLES / "python" / "users.py")], environment(serving)).stdout)


def test_node(serving: Serving, node: str, protos: Path, tmp_path: Path) -> None:
    # Node looks for packages beside the program: those of the tests are the same ones.
    (tmp_path / "node_modules").symlink_to(NODE_PROJECT / "node_modules")
    shutil.copy(EXAMPLES / "node" / "users.mjs", tmp_path)
    check_story(ran([node, str(tmp_path / "users.mjs"), str(protos)], environment(serving)).stdout)


def test_the_node_example_and_tests_use_the_same_packages() -> None:
    ours, theirs = (json.loads((folder / "package.json").read_text()) for folder in (EXAMPLES / "node", NODE_PROJECT))
    assert ours["dependencies"] == theirs["dependencies"]


def test_grpcurl(serving: Serving, grpcurl: str) -> None:
    done = ran([str(EXAMPLES / "shell" / "grpcurl.sh")], {**environment(serving), "GRPCURL": grpcurl})
    check_answers(done.stdout)
    assert "USERNAME_TAKEN" in done.stderr


def test_buf(serving: Serving, buf: str) -> None:
    done = ran([str(EXAMPLES / "shell" / "buf.sh")], {**environment(serving), "BUF": buf})
    check_answers(done.stdout)
    assert "already_exists" in done.stderr
