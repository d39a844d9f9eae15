"""What can be wrong with a call of AdminService; each group adds the rows of its own module."""

from __future__ import annotations

from collections.abc import Mapping

from kronos_db.admin.query_model import QUERY_ERRORS
from kronos_db.runtime.errors import Answer, KronosError

ERRORS: Mapping[type[KronosError], Answer] = {
    **QUERY_ERRORS,
    # Statements.
    # Indexes.
    # Backups.
}
