"""Builds the engine of backups of the settings, for the server and for the command line."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kronos_db.backup.engine import Engine
from kronos_db.config import Settings, SettingsError


def open_engine(settings: Settings) -> Engine | None:
    """Return the engine, None without a destination.

    Without a DSN it does what needs no database. Raises SettingsError, and BackupError for a destination that is none.
    """
    if settings.backup_destination is None:
        return None
    # Only here: without backups nobody has a use for it.
    from kronos_db.backup.postgres import PostgresEngine, Setup  # noqa: PLC0415

    if settings.master_key_file is None:
        raise SettingsError("KRONOS_DB_MASTER_KEY_FILE is required for backups.")
    dsn = settings.backup_dsn or settings.postgres_direct_dsn or settings.postgres_dsn
    scratch = settings.backup_scratch_folder or Path(tempfile.gettempdir()) / "kronos-db-backup"
    return PostgresEngine(
        Setup(
            destination=settings.backup_destination,
            master_key_file=settings.master_key_file,
            scratch=scratch,
            dsn=dsn.get_secret_value() if dsn else None,
            programs=settings.backup_programs,
            slot=settings.backup_slot,
            synchronous=settings.backup_synchronous,
        )
    )
