"""Runs: long work on backups as it is written down, what may be under way together, and what can go wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from kronos_db.backup import model
from kronos_db.backup.as_json import Json
from kronos_db.runtime.errors import Answer, BadRequestError, Code, KronosError

Kind: TypeAlias = Literal["create", "verify", "restore", "delete", "retain"]
# WAITING: for the holder of the lease to take it up.
State: TypeAlias = Literal["waiting", "running", "done", "failed"]

# What removes something keeps everything else out; beside that there is one run of each kind at a time.
REMOVING: frozenset[Kind] = frozenset({"delete", "retain"})
# How often a run is begun whose process died or whose engine was busy, before that is taken for its fault.
MOST_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be written down; `task` is what it does by itself, since `due`, "" when somebody asked for it."""

    id: str
    kind: Kind
    request: Json = field(default_factory=dict)
    task: str = ""
    due: datetime | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run. `attempt` counts how often it was begun; `failure` names the exception, `detail` is its text."""

    id: str
    kind: Kind
    state: State
    request: Json
    attempt: int
    progress: Json | None
    result: Json | None
    failure: str
    detail: str

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("done", "failed")


def excludes(kind: Kind, other: Kind) -> bool:
    """Tell whether a run of one kind must wait for the end of one of the other."""
    return kind == other or kind in REMOVING or other in REMOVING


def refuses(kind: Kind, other: Kind) -> bool:
    """Tell whether a run of one kind is not even written down while one of the other is under way.

    Retention begins by itself behind each backup and is over soon: what it excludes waits for it.
    """
    return excludes(kind, other) and (kind == other or other != "retain")


class BackupsOffError(KronosError):
    """The server has no destination for backups."""


class RunActiveError(KronosError):
    """Another run is under way that must end first."""


class RunInterruptedError(KronosError):
    """The process that did a run ended, and what was done by then must not be done twice."""


class RunBrokenError(KronosError):
    """A run failed for a reason that nobody foresaw."""


class RunsEndingError(KronosError):
    """The process that a run is followed at is about to end; the run goes on."""


class RestoreFolderError(KronosError):
    """The server has no folder for new instances."""


class PolicyEtagMismatchError(KronosError):
    """The policy of backups changed since it was read."""


class DomainNotRestorableError(BadRequestError):
    """The tables of a domain cannot be brought back: there is no such domain, or it is the one that keeps the runs."""


ERRORS: Mapping[type[KronosError], Answer] = {
    BackupsOffError: Answer(
        Code.FAILED_PRECONDITION, "BACKUPS_OFF", "There are no backups here: KRONOS_DB_BACKUP_DESTINATION is not set."
    ),
    RunActiveError: Answer(
        Code.FAILED_PRECONDITION, "BACKUP_RUN_ACTIVE", "A run of kind {kind} is under way and must end first: {run_id}."
    ),
    RunInterruptedError: Answer(
        Code.ABORTED,
        "BACKUP_RUN_INTERRUPTED",
        "The process that did this ended before it was over; it is not begun anew by itself: look, and ask again.",
    ),
    RunBrokenError: Answer(Code.INTERNAL, "BACKUP_RUN_BROKEN", "The run failed; the log has the detail of {run_id}."),
    RunsEndingError: Answer(
        Code.UNAVAILABLE,
        "BACKUP_STREAM_ENDING",
        "The process is about to end, the run goes on: call again with the request_id.",
    ),
    RestoreFolderError: Answer(
        Code.FAILED_PRECONDITION,
        "RESTORE_FOLDER_UNSET",
        "This server restores no new instances: KRONOS_DB_BACKUP_RESTORE_FOLDER is not set.",
    ),
    PolicyEtagMismatchError: Answer(
        Code.ABORTED, "BACKUP_POLICY_ETAG_MISMATCH", "The policy changed since it was read; read it again."
    ),
    DomainNotRestorableError: Answer(
        Code.INVALID_ARGUMENT, "DOMAIN_NOT_RESTORABLE", "The tables of this domain cannot be brought back."
    ),
    model.BackupError: Answer(Code.INTERNAL, "BACKUP_FAILED", "It failed: {detail}."),
    model.BackupNotFoundError: Answer(Code.NOT_FOUND, "BACKUP_NOT_FOUND", "There is no such backup."),
    model.BackupBusyError: Answer(
        Code.FAILED_PRECONDITION, "BACKUP_BUSY", "Something else is at work on database or destination: {detail}."
    ),
    model.BackupUnusableError: Answer(
        Code.FAILED_PRECONDITION, "BACKUP_UNUSABLE", "The backup, or one that it builds on, is not complete."
    ),
    model.BackupNeededError: Answer(
        Code.FAILED_PRECONDITION, "BACKUP_NEEDED", "Another backup builds on this one; `force` removes both."
    ),
    model.BackupDamagedError: Answer(
        Code.DATA_LOSS, "BACKUP_DAMAGED", "The backup or the archive is damaged: {detail}."
    ),
    model.BackupKeyError: Answer(
        Code.FAILED_PRECONDITION, "BACKUP_KEY_WRONG", "The master key of the backup is not among those of this server."
    ),
    model.ForeignBackupError: Answer(
        Code.FAILED_PRECONDITION, "BACKUP_FOREIGN", "The backup is of another database cluster: {detail}."
    ),
    model.ArchiveGapError: Answer(Code.DATA_LOSS, "ARCHIVE_GAP", "The archive lacks WAL that this needs: {detail}."),
    model.TargetUnreachableError: Answer(
        Code.OUT_OF_RANGE, "RESTORE_TARGET_UNREACHABLE", "No backup and archive lead to this target: {detail}."
    ),
    model.FolderInUseError: Answer(
        Code.FAILED_PRECONDITION, "RESTORE_FOLDER_IN_USE", "The folder to restore into is there already: {detail}."
    ),
    model.DatabaseUnsuitableError: Answer(
        Code.FAILED_PRECONDITION, "DATABASE_UNSUITABLE", "The database cannot be backed up as it is set up: {detail}."
    ),
    model.ProgramError: Answer(Code.INTERNAL, "BACKUP_PROGRAM_FAILED", "A program of PostgreSQL failed: {detail}."),
    model.DestinationError: Answer(
        Code.UNAVAILABLE, "BACKUP_DESTINATION_AWAY", "The destination of backups does not answer: {detail}."
    ),
    model.TablesMismatchError: Answer(
        Code.FAILED_PRECONDITION, "TABLES_MISMATCH", "The tables in the backup are not those of now: {detail}."
    ),
}
_BY_NAME = {kind.__name__: kind for kind in ERRORS}


def failure_of(run: Run) -> KronosError:
    """Return the error that a failed run ends its streams with, in whatever process."""
    kind = _BY_NAME.get(run.failure, RunBrokenError)
    return kind(run.detail, metadata={"run_id": run.id})
