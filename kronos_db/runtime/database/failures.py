"""Tells what a database error means, by SQLSTATE and never by class or text."""

from __future__ import annotations

import enum

import psycopg

from kronos_db.runtime.errors import (
    ConflictError,
    KronosError,
    StatementTimeoutError,
    UnavailableError,
)


class ConstraintError(KronosError):
    """A constraint of the schema refused the write; stores translate it by `constraint`."""

    def __init__(self, constraint: str) -> None:
        super().__init__(f"constraint {constraint} refused the write")
        self.constraint = constraint


class UnconfirmedCommitError(psycopg.OperationalError):
    """COMMIT was answered, but not in a way that vouches for the transaction: as good as a lost connection."""


class Failure(enum.Enum):
    """What to do about a database error."""

    # The server refused to go on with this transaction, but a new attempt may succeed.
    COLLISION = enum.auto()
    # The connection is gone or the server is going: a new attempt needs another connection.
    LOST = enum.auto()
    # The statement is at fault; trying again gives the same.
    FINAL = enum.auto()


_COLLISIONS = frozenset({"40001", "40P01"})
# 57P01 admin_shutdown, 57P02 crash_shutdown, 57P03 cannot_connect_now, 25006 read_only_sql_transaction (a primary that
# became a standby), 08P01 comes from pgBouncer when its server connection is gone.
_LOST = frozenset({"57P01", "57P02", "57P03", "25006"})
# After these the server closes the connection, whatever the code: 25P03 for a transaction that idled, for one.
_CLOSING = frozenset({"FATAL", "PANIC"})
_UNIQUE_VIOLATION = "23505"
_CANCELLED = "57014"
_LOCK_TIMEOUT = "55P03"
_TOO_MANY_CONNECTIONS = "53300"


def classify(error: psycopg.Error) -> Failure:
    """Return what to do about `error`."""
    state = error.sqlstate
    if state in _COLLISIONS:
        return Failure.COLLISION
    if state in _LOST or (state or "").startswith("08") or error.diag.severity_nonlocalized in _CLOSING:
        return Failure.LOST
    # Without SQLSTATE it is libpq that speaks: the connection failed. Except for misuse found on the client.
    if state is None and isinstance(error, psycopg.OperationalError):
        return Failure.LOST
    return Failure.FINAL


def translate(error: psycopg.Error) -> Exception:
    """Return the exception of ours that stands for `error`; `error` itself when there is none."""
    if classify(error) is Failure.LOST or error.sqlstate == _TOO_MANY_CONNECTIONS:
        return UnavailableError(f"PostgreSQL is away: {error}", retry_after=1.0)
    if classify(error) is Failure.COLLISION or error.sqlstate == _LOCK_TIMEOUT:
        return ConflictError(f"attempts used up: {error}", retry_after=0.1)
    if error.sqlstate == _CANCELLED:
        return StatementTimeoutError(str(error))
    if error.sqlstate is not None and error.sqlstate.startswith("23") and error.diag.constraint_name:
        return ConstraintError(error.diag.constraint_name)
    return error


def violates(error: psycopg.Error, constraint: str) -> bool:
    """Tell whether `error` is the violation of the unique constraint of that name."""
    return error.sqlstate == _UNIQUE_VIOLATION and error.diag.constraint_name == constraint
