"""The surroundings of a server in production, and the pgBouncer that stands in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import _PREPARED_SINCE, _ROOT, lacking
from tests.parts.pgbouncer import version
from tests.parts.place import Place


@pytest.fixture(scope="session")
def pgbouncer_binary() -> Path:
    """A pgBouncer that deploy/pgbouncer.ini is for."""
    binary = Path(os.environ.get("KRONOS_TEST_PGBOUNCER_124", _ROOT / ".cache" / "bin" / "pgbouncer"))
    if not binary.exists() or version(binary) < _PREPARED_SINCE:
        lacking(f"There is no pgBouncer of 1.22 or later at {binary}, where .ci/install puts it.")
    return binary


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """PostgreSQL with deploy/postgresql.conf, and Redis."""
    made = Place(tmp_path_factory.mktemp("place"))
    made.start()
    yield made
    made.stop()
