"""The client packages, built and installed once where nothing else is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.clients.places import ROOT, PythonPlace, ran

PYTHON = ROOT / "clients" / "python"


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
