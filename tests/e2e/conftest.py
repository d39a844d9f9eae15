"""What foreign clients need: the exported contract, and programs that a machine may lack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import lacking
from tests.parts.serving import Serving

ROOT = Path(__file__).parent.parent.parent
NODE_PROJECT = Path(__file__).parent / "node"
LIMIT = 60.0  # seconds


@pytest.fixture(scope="session")
def protos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that `make protos` gives."""
    out = tmp_path_factory.mktemp("protos")
    ran([sys.executable, str(ROOT / "scripts" / "contract.py"), "export", "--out", str(out)], {})
    return out


@pytest.fixture(scope="session")
def node() -> str:
    """The program node, with the packages of the project beside the tests."""
    program = shutil.which("node")
    if program is None:
        lacking("There is no node on PATH.")
    if not (NODE_PROJECT / "node_modules").is_dir():
        lacking(f"`npm ci` was not run in {NODE_PROJECT.relative_to(ROOT)}.")
    return program


@pytest.fixture(scope="session")
def grpcurl() -> str:
    """The program grpcurl."""
    program = shutil.which("grpcurl", path=os.pathsep.join([str(ROOT / ".cache" / "bin"), os.environ.get("PATH", "")]))
    if program is None:
        lacking("There is no grpcurl on PATH or in .cache/bin, where .ci/install puts it.")
    return program


@pytest.fixture(scope="session")
def buf() -> str:
    """The program buf, a wheel that the lock names."""
    return str(Path(sys.executable).with_name("buf"))


def environment(serving: Serving, caller: str = "operator") -> dict[str, str]:
    """What the examples read: where the server is, and a credential."""
    return {"KRONOS_ADDRESS": serving.server.grpc_address, "KRONOS_TOKEN": serving.tokens[caller]}


def ran(command: Sequence[str], settings: Mapping[str, str], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program that must succeed."""
    done = run(command, settings, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def run(command: Sequence[str], settings: Mapping[str, str], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program and capture what it says."""
    environ = {**os.environ, **settings}
    return subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, check=False, timeout=LIMIT)
