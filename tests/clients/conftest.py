"""The client packages, built and installed once where nothing else is."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.clients.places import ROOT, NodePlace, PythonPlace, ran
from tests.conftest import lacking

PYTHON = ROOT / "clients" / "python"
NODE = ROOT / "clients" / "node"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as `make clients` builds it."""
    out = tmp_path_factory.mktemp("wheel")
    ran([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], PYTHON)
    [wheel] = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def python_place(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> PythonPlace:
    """An environment with the wheel and what it requires."""
    return PythonPlace(tmp_path_factory.mktemp("place") / "env", wheel)


@pytest.fixture(scope="session")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `npm pack` makes; in a copy, since two test processes may pack at once."""
    npm = _program("npm")
    if not (NODE / "node_modules").is_dir():
        lacking("`npm ci` was not run in clients/node.")
    work = tmp_path_factory.mktemp("node")
    copy, protos = work / "package", work / "protos"
    shutil.copytree(NODE, copy, ignore=shutil.ignore_patterns("node_modules", "dist", "generated", "protos"))
    (copy / "node_modules").symlink_to(NODE / "node_modules")
    ran([sys.executable, str(ROOT / "scripts" / "contract.py"), "export", "--out", str(protos)], ROOT)
    ran([npm, "pack", "--pack-destination", str(work)], copy, KRONOS_PROTOS=str(protos))
    [tarball] = work.glob("*.tgz")
    return tarball


@pytest.fixture(scope="session")
def node_place(tarball: Path) -> NodePlace:
    """A folder with the npm package and what it requires."""
    return NodePlace(tarball.parent / "place", tarball, NODE, _program("node"), _program("npm"))


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        lacking(f"There is no {name} on PATH.")
    return found
