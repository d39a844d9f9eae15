"""Applies one advice in a process of its own, which a test kills: `python -m tests.admin.index_apply JSON`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from uuid import UUID

from kronos_db import schemas
from kronos_db.admin.advice import Advice, Kind
from kronos_db.admin.change_store import ChangeStore
from tests.parts.domain import settings_of


def main() -> None:
    """Apply, and print a line for each step."""
    job = json.loads(sys.argv[1])
    settings = settings_of(Path(job["folder"]), job["dsn"])
    store = ChangeStore(schemas.open_database(settings, "admin"), {"users": job["dsn"]}, job["dsn"])
    advice = Advice(Kind(job["kind"]), "users", "users", job["index"], job["statement"], "", "")
    for progress in store.apply(UUID(job["id"]), advice, caller="test", before={}, lock_timeout=60.0):
        print(progress.phase, flush=True)


main()
