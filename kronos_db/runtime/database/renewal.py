"""What must follow when the tables of a domain were replaced below serving processes, as by a restore from a backup.

Nobody wrote these changes: no log tells of them, so whoever keeps copies or watches would go on with what was before.
"""

from __future__ import annotations

import time
from pathlib import Path

from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import load_queries

# Seconds for which a holder of copies may answer from them after its last sign of life, and a little more: see
# `runtime/cache/coherence.py`.
SILENCE = 3.6


def renew(database: Database) -> None:
    """Return when no process answers from a copy of before, and no watcher can go on from a position of before.

    Watchers are told RESUME_TOKEN_EXPIRED and read everything anew. It may be repeated without harm.
    """
    queries = load_queries(Path(__file__).with_name("renewal.sql"), database.domain)
    database.execute(queries["lose_positions"], {})
    # They notice by their next sign of life, and enter anew without copies.
    database.execute(queries["expel_all"], {})
    time.sleep(SILENCE)
