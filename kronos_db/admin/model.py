"""What can be wrong with a call of AdminService; each group adds the rows of its own module."""

from __future__ import annotations

from collections.abc import Mapping

from kronos_db.admin.backup_runs import ERRORS as BACKUP_ERRORS
from kronos_db.admin.changes import (
    AdviceGoneError,
    ChangeFailedError,
    ChangeRunningError,
    NotOwnerError,
    ScratchMissingError,
    ScratchTakenError,
)
from kronos_db.admin.query_model import QUERY_ERRORS
from kronos_db.admin.statements import ActiveQueryGoneError, UnknownDomainError
from kronos_db.runtime.errors import Answer, Code, KronosError

ERRORS: Mapping[type[KronosError], Answer] = {
    **QUERY_ERRORS,
    UnknownDomainError: Answer(Code.INVALID_ARGUMENT, "DOMAIN_UNKNOWN", "There is no domain {domain}."),
    ActiveQueryGoneError: Answer(
        Code.NOT_FOUND, "ACTIVE_QUERY_NOT_FOUND", "Process {pid} is not that session, or does something else by now."
    ),
    AdviceGoneError: Answer(
        Code.FAILED_PRECONDITION, "ADVICE_OUTDATED", "This is not advised, or not any more; ask for advice again."
    ),
    ChangeRunningError: Answer(
        Code.ABORTED, "INDEX_CHANGE_RUNNING", "An index is being changed already; try again when that is done."
    ),
    NotOwnerError: Answer(
        Code.FAILED_PRECONDITION,
        "TABLE_NOT_OWNED",
        "The role of KRONOS_DB_POSTGRES_DIRECT_DSN is not that of the owner of {table}.",
    ),
    ChangeFailedError: Answer(
        Code.FAILED_PRECONDITION, "INDEX_CHANGE_FAILED", "The index was not changed, and nothing is left of it: {why}."
    ),
    ScratchMissingError: Answer(
        Code.FAILED_PRECONDITION, "SCRATCH_MISSING", "KRONOS_DB_SCRATCH_DSN names no database to try indexes out in."
    ),
    ScratchTakenError: Answer(
        Code.FAILED_PRECONDITION,
        "SCRATCH_TAKEN",
        "The scratch database is in use, or holds a schema that was not made for this.",
    ),
    **BACKUP_ERRORS,
}
