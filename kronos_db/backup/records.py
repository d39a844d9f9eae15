"""The record of a backup as JSON, as it lies sealed in the destination."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from kronos_db.backup.model import Backup, BackupDamagedError, Content, Drill, Kind, Lsn, State, TableContent

_FORMAT = 1


def encode(backup: Backup) -> bytes:
    """Return the record of `backup`."""
    record = {"format": _FORMAT, **asdict(backup)}
    return json.dumps(record, default=_plain).encode()


def decode(data: bytes) -> Backup:
    """Return the backup of a record. Raises BackupDamagedError when it is none, or of a later release."""
    try:
        record: dict[str, Any] = json.loads(data)
        if record.pop("format") != _FORMAT:
            raise BackupDamagedError("The record of the backup is of a later release.")
        known = {field.name for field in fields(Backup)}
        values = {
            name: _READERS[name](value) if name in _READERS and value is not None else value
            for name, value in record.items()
            if name in known
        }
        return Backup(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise BackupDamagedError("The record of the backup cannot be read.") from error


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Kind | State):
        return str(value.value)
    raise TypeError(type(value).__name__)


def _content(value: Mapping[str, Any]) -> Content:
    tables = {
        database: {table: TableContent(**content) for table, content in found.items()}
        for database, found in value["tables"].items()
    }
    return Content(Lsn(value["lsn"]), datetime.fromisoformat(value["taken_at"]), tables)


def _drill(value: Mapping[str, Any]) -> Drill:
    return Drill(**{**value, "at": datetime.fromisoformat(value["at"])})


_READERS: Mapping[str, Any] = {
    "kind": Kind,
    "state": State,
    "start_time": datetime.fromisoformat,
    "stop_time": datetime.fromisoformat,
    "start_lsn": Lsn,
    "stop_lsn": Lsn,
    "content": _content,
    "drill": _drill,
}
