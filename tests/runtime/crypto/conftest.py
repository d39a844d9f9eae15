"""Keys without a database: what the tests of sealing stand on."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import settings

from kronos_db.runtime.crypto.keyring import DataKeyRow, KeyRing
from kronos_db.runtime.crypto.master_key import FileMasterKeys
from kronos_db.runtime.crypto.sealing import Sealer

# The machine may be busy: an example that takes long is no fault.
settings.register_profile("crypto", deadline=None)
settings.load_profile("crypto")


class MemoryRows:
    """Rows of one domain's data keys in memory; counts what was asked."""

    def __init__(self) -> None:
        self.rows: list[DataKeyRow] = []
        self.finds = 0
        self.lock = threading.Lock()

    def load(self) -> Sequence[DataKeyRow]:
        return [row for row in self.rows if row.person is None]

    def add_first(self, row: DataKeyRow) -> DataKeyRow:
        with self.lock:
            for known in self.load():
                if known.purpose == row.purpose:
                    return known
            self.rows.append(row)
            return row

    def find(self, key_id: UUID) -> DataKeyRow | None:
        self.finds += 1
        return next((row for row in self.rows if row.id == key_id), None)


def write_key_file(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="session")
def masters(tmp_path_factory: pytest.TempPathFactory) -> FileMasterKeys:
    key = base64.b64encode(bytes(range(32))).decode()
    return FileMasterKeys(write_key_file(tmp_path_factory.mktemp("keys") / "master.key", f"mk-test {key}"))


@pytest.fixture
def rows() -> MemoryRows:
    return MemoryRows()


@pytest.fixture(scope="session")
def new_sealer(masters: FileMasterKeys) -> Callable[[str], Sealer]:
    """Make a sealer of a domain that has keys of its own."""
    return lambda domain: Sealer(KeyRing(domain, masters, MemoryRows()))


@pytest.fixture(scope="session")
def sealer(new_sealer: Callable[[str], Sealer]) -> Sealer:
    return new_sealer("users")
