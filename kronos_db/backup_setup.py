"""Builds the engine of backups of the settings, for the server and for the command line."""

from __future__ import annotations

from kronos_db.backup.engine import Engine
from kronos_db.config import Settings, SettingsError
from kronos_db.runtime.crypto.master_key import MasterKeys


def open_engine(settings: Settings, masters: MasterKeys) -> Engine | None:
    """Return the engine, None without a destination."""
    if settings.backup_destination is None:
        return None
    raise SettingsError("not yet")
