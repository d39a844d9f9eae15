"""Keeps the wrapped data keys of one domain in its schema."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from uuid import UUID

from kronos_db.runtime.crypto.keyring import DataKeyRow, Purpose
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.errors import KeyUnavailableError


class DataKeys:
    """The table `data_key`, as the key ring wants it (`DataKeyRows`)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries(Path(__file__).with_name("data_keys.sql"), database.domain)

    def load(self) -> Sequence[DataKeyRow]:
        """Return the keys of the domain itself, current ones first."""
        return self._database.fetch_all(self._queries["load"], {}, _row)

    def find(self, key_id: UUID) -> DataKeyRow | None:
        """Return one key, or None."""
        return self._database.fetch_one(self._queries["find"], {"id": key_id}, _row)

    def add_first(self, row: DataKeyRow) -> DataKeyRow:
        """Add `row` unless its purpose has a current key, and return the current one."""
        params = {
            "id": row.id,
            "purpose": str(row.purpose),
            "person": row.person,
            "master_key_id": row.master_key_id,
            "wrapped": row.wrapped,
            "create_time": row.create_time,
        }
        self._database.execute(self._queries["add"], params)
        current = self._database.fetch_one(self._queries["current"], params, _row)
        if current is None:
            raise KeyUnavailableError(f"no current key for {row.purpose}")
        return current


def _row(  # noqa: PLR0917  # one for each column
    key_id: UUID, purpose: str, person: UUID | None, master_key_id: str, wrapped: bytes, create_time: datetime
) -> DataKeyRow:
    return DataKeyRow(key_id, Purpose(purpose), person, master_key_id, wrapped, create_time)
