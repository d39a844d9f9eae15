"""What a backup is, what can be asked of one, and what can go wrong, apart from how it is done."""

from __future__ import annotations

import enum
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeAlias, TypeVar

from kronos_db.runtime.errors import KronosError

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_LOW = 32


class Lsn(int):
    """A position in the WAL in bytes, shown as PostgreSQL does: `Lsn.parse("1/16B3748")`, `str(lsn)`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read `XXXXXXXX/XXXXXXXX`. Raises ValueError."""
        found = _LSN.fullmatch(text)
        if not found:
            raise ValueError(f"{text!r} is no LSN such as 0/16B3748")
        return cls(int(found[1], 16) << _LOW | int(found[2], 16))

    def __str__(self) -> str:
        return f"{self >> _LOW:X}/{self & (1 << _LOW) - 1:X}"

    __repr__ = __str__


class Kind(enum.Enum):
    """How much of the database a backup holds."""

    FULL = "full"
    INCREMENTAL = "incremental"


class State(enum.Enum):
    """How far a backup has come: only COMPLETE and VERIFIED ones are restored from."""

    RUNNING = "running"
    COMPLETE = "complete"
    # A drill restored it and found the content that the database had.
    VERIFIED = "verified"
    # It ended before it was whole, or its process died. Retention removes what is left of it.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TableContent:
    """A table as it was at one moment: its rows, and the sum of their hashes (64 bits each) as text."""

    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class Content:
    """All tables as they were at `lsn`: recovery that stops right before the record there finds exactly these.

    `tables` is by database, then by `schema.table`.
    """

    lsn: Lsn
    taken_at: datetime
    tables: Mapping[str, Mapping[str, TableContent]]


@dataclass(frozen=True, slots=True)
class Drill:
    """What the last drill of a backup measured: `restore_seconds` is the time from nothing to a server that serves."""

    at: datetime
    restore_seconds: float
    tables: int
    rows: int


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup, as its record in the destination says. Times are in UTC, sizes in bytes, durations in seconds.

    `parent` is the backup that an incremental one builds upon, None of a full one. `start_lsn`, `stop_lsn`, `stop_time`
    and `next_xid` (no transaction with this id or a later one had begun at the stop) are None before it is COMPLETE.
    `size` is that of the files, `stored` what they take in the destination, `segment_size` that of a file of WAL.
    """

    id: str
    kind: Kind
    parent: str | None
    state: State
    system_identifier: int
    server_version: int
    timeline: int
    start_time: datetime
    checksums: bool
    label: str = ""
    start_lsn: Lsn | None = None
    stop_lsn: Lsn | None = None
    stop_time: datetime | None = None
    next_xid: int | None = None
    segment_size: int = 16 * 1024 * 1024
    size: int = 0
    stored: int = 0
    # Of every object of this backup, its bytes in the destination: a cut one is found before anything is read.
    objects: Mapping[str, int] | None = None
    content: Content | None = None
    drill: Drill | None = None
    failure: str = ""

    @property
    def restorable(self) -> bool:
        """Whether this member of a chain is whole."""
        return self.state in (State.COMPLETE, State.VERIFIED)

    @property
    def duration(self) -> float | None:
        """Seconds that it took, None before it is COMPLETE."""
        return None if self.stop_time is None else (self.stop_time - self.start_time).total_seconds()


class Step(enum.Enum):
    """What a long piece of work does at the moment."""

    CHECKPOINT = "checkpoint"
    COPY = "copy"
    FINGERPRINT = "fingerprint"
    VERIFY = "verify"
    VERIFY_ARCHIVE = "verify archive"
    FETCH = "fetch"
    COMBINE = "combine"
    RECOVER = "recover"
    CHECK_PAGES = "check pages"
    COMPARE = "compare"
    TABLES = "tables"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a long piece of work is. Bytes are those of this step before compression.

    `bytes_total` is None where nobody knows it, `rate` in bytes a second, `time_left` in seconds.
    """

    step: Step
    bytes_done: int = 0
    bytes_total: int | None = None
    rate: float | None = None
    time_left: float | None = None
    # The backup that is made or worked upon; a new one's id is known from its first progress on.
    backup_id: str = ""


_T = TypeVar("_T")
# Work that tells its progress, and returns what came of it. Closing it (`Generator.close`) ends it early and in order.
Work: TypeAlias = Generator[Progress, None, _T]


@dataclass(frozen=True, slots=True)
class Latest:
    """All that the archive has: the last moment that can be restored."""


@dataclass(frozen=True, slots=True)
class AtTime:
    """All that was committed at or before `time` (aware), and nothing after it."""

    time: datetime


@dataclass(frozen=True, slots=True)
class AtLsn:
    """All WAL before `lsn`; the record that begins there is not replayed."""

    lsn: Lsn


@dataclass(frozen=True, slots=True)
class AtBackup:
    """The state at the end of one backup."""

    backup_id: str


@dataclass(frozen=True, slots=True)
class BeforeTransaction:
    """All that was committed before transaction `xid` (xid8, as pg_current_xact_id() gives it) was, without it."""

    xid: int


RestoreTarget: TypeAlias = Latest | AtTime | AtLsn | AtBackup | BeforeTransaction


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What to restore, and where to.

    `folder` becomes the data directory: it must not exist or be empty. With `recover` the server is run until it has
    replayed all that the target wants, and stopped: what lies in `folder` then needs neither destination nor key.
    Without, the folder is laid out for a start that recovers by itself and needs both. `timeline` None is the latest;
    `backup_id` None chooses the youngest backup before the target; `system_identifier` None means that of the database
    served, or the only one in the destination.
    """

    folder: Path
    target: RestoreTarget = Latest()
    recover: bool = True
    timeline: int | None = None
    backup_id: str | None = None
    system_identifier: int | None = None


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of a restore. Position and timeline are where it ended, None when it was not recovered yet.

    `target_reached` is False when the archive ended before the target time came: all that it has is there, and
    whether more was written until then, nobody knows.
    """

    folder: Path
    backup_id: str
    seconds: float
    lsn: Lsn | None
    timeline: int | None
    target_reached: bool


@dataclass(frozen=True, slots=True)
class RestoredTables:
    """What came of restoring one schema into the live database: rows by table."""

    backup_id: str
    rows: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Gap:
    """WAL that the archive lacks, `[start, end)` of a timeline: nothing can be restored across it."""

    timeline: int
    start: Lsn
    end: Lsn


@dataclass(frozen=True, slots=True)
class ArchiveState:
    """The archive of WAL. `gaps` are those behind the oldest backup that is kept.

    `first`, `last`: what of the current timeline is durable in the destination, None without any; `last_time` is when
    the last of it was made durable. What follows is None without a database: `lag` is the WAL in bytes that the
    database has and the archive has not, `slot_lag` what the slot makes it keep, `slot_lost` whether it gave up keeping
    it, `receiving` whether a receiver is connected, `synchronous` whether commits wait for it.
    """

    timeline: int | None
    first: Lsn | None
    last: Lsn | None
    last_time: datetime | None
    gaps: tuple[Gap, ...]
    stored: int
    lag: int | None = None
    slot_lag: int | None = None
    slot_lost: bool | None = None
    receiving: bool | None = None
    synchronous: bool | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """When backups are made, how long they are kept, and when drills are done. Schedules are cron expressions, UTC.

    A full backup with all that build upon it is kept when its chain is among the last `keep_count` chains, or any
    of it is younger than `keep_age`; None: this rule keeps nothing. An empty schedule means never.
    """

    full_schedule: str = "0 2 * * 0"
    incremental_schedule: str = "0 2 * * 1-6"
    drill_schedule: str = "0 4 * * 0"
    keep_count: int | None = 2
    keep_age: timedelta | None = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class Retention:
    """What applying a policy removed: ids of backups, and bytes and objects of WAL that no kept backup needs."""

    backups: tuple[str, ...]
    wal_objects: int
    wal_bytes: int


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: which object, or which part of the archive, and what about it in one sentence."""

    where: str
    what: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found: sound when there are no faults. `restorable_until` is the end of the WAL checked."""

    backup_id: str
    chain: tuple[str, ...]
    objects: int
    bytes: int
    faults: tuple[Fault, ...]
    restorable_until: Lsn | None
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether the backup, all that it builds upon, and the archive from it to now are as they were written."""
        return not self.faults


@dataclass(frozen=True, slots=True)
class DrillReport:
    """What a drill found. The backup is VERIFIED when there are no faults."""

    backup_id: str
    faults: tuple[Fault, ...]
    tables: int
    rows: int
    restore_seconds: float

    @property
    def sound(self) -> bool:
        """Whether the backup was restored and held what the database had held."""
        return not self.faults


class BackupError(KronosError):
    """A backup, or something done with one, failed.

    Its text is shown: operators need the last words of a program.
    """

    def __init__(self, detail: str = "", *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(detail, metadata={"detail": (detail or type(self).__name__).rstrip("."), **(metadata or {})})


class BackupNotFoundError(BackupError):
    """There is no backup of this id in the destination."""


class BackupBusyError(BackupError):
    """Another backup, deletion or application of retention is at work in this database or destination."""


class BackupUnusableError(BackupError):
    """The backup, or one that it builds upon, is not complete."""


class BackupNeededError(BackupError):
    """Another backup that is kept builds upon this one."""


class BackupDamagedError(BackupError):
    """An object of the backup or the archive was altered, cut, moved, or is missing."""


class BackupKeyError(BackupError):
    """The master key here is not the one that the backup was made under."""


class ForeignBackupError(BackupError):
    """The backup is of another database cluster."""


class ArchiveGapError(BackupError):
    """WAL that the target needs is not in the archive."""


class TargetUnreachableError(BackupError):
    """No backup in the destination lies before the target, or the target lies in the future."""


class FolderInUseError(BackupError):
    """The folder to restore into is not empty, or a server runs on it."""


class DatabaseUnsuitableError(BackupError):
    """The database cannot be backed up as it is set up: the text says what to change."""


class ProgramError(BackupError):
    """A program of PostgreSQL is missing or failed; the text has its last words."""


class DestinationError(BackupError):
    """The destination does not answer or refuses."""


class TablesMismatchError(BackupError):
    """The schema in the backup and in the live database have different tables or columns."""
