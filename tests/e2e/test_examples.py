"""The examples for the shell do what they say; those that use the client packages are run in tests/clients."""

from __future__ import annotations

import json
import re

from tests.e2e.conftest import ROOT, environment, ran
from tests.parts.serving import Serving

EXAMPLES = ROOT / "examples"


def check_answers(text: str) -> None:
    """Check what the examples for the shell print: JSON with words between."""
    blocks = re.findall(r"^\{$.*?^\}$", text, re.MULTILINE | re.DOTALL)
    created, found, listed = map(json.loads, blocks)
    assert created == found
    assert listed["users"] == [created["user"]]
    assert "repeated: the same user\n" in text
    assert text.endswith("refused, as meant\n")


def test_grpcurl(serving: Serving, grpcurl: str) -> None:
    done = ran([str(EXAMPLES / "shell" / "grpcurl.sh")], {**environment(serving), "GRPCURL": grpcurl})
    check_answers(done.stdout)
    assert "USERNAME_TAKEN" in done.stderr


def test_buf(serving: Serving, buf: str) -> None:
    done = ran([str(EXAMPLES / "shell" / "buf.sh")], {**environment(serving), "BUF": buf})
    check_answers(done.stdout)
    assert "already_exists" in done.stderr
