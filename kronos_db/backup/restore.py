"""Restores a chain of backups into a folder: aside first, then by one rename."""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kronos_db.backup import catalog
from kronos_db.backup.extract import extract, sync_file_system, sync_folder
from kronos_db.backup.instance import Instance, remove
from kronos_db.backup.model import (
    AtTime,
    Backup,
    BackupBusyError,
    FolderInUseError,
    Latest,
    Lsn,
    ProgramError,
    Progress,
    Restored,
    RestoreRequest,
    Step,
    TargetUnreachableError,
    Work,
)
from kronos_db.backup.pace import Pace
from kronos_db.backup.plan import Plan, plan, recovery_settings
from kronos_db.backup.programs import Programs
from kronos_db.backup.vault import Vault
from kronos_db.backup.wal import parse_history
from kronos_db.embedded.account import Account, account_for

_ENDED_BEFORE = "recovery ended before configured recovery target was reached"
_AUTO = "postgresql.auto.conf"
_SIGNAL = "recovery.signal"


@dataclass(frozen=True, slots=True)
class Reach:
    """What a recovering server needs to fetch WAL; `folder` is the destination's, when it has one."""

    destination: str
    master_key_file: Path
    folder: Path | None

    @property
    def paths(self) -> Sequence[Path]:
        """What the account of the server must be able to read."""
        folders = (self.folder, self.folder / "keys", self.folder / "wal") if self.folder else ()
        return [self.master_key_file, *(folder for folder in folders if folder.is_dir())]


@dataclass(frozen=True, slots=True)
class _Recovered:
    lsn: Lsn | None
    timeline: int | None
    reached: bool


class Restoration:
    """Restores from one destination."""

    def __init__(self, vault: Vault, programs: Programs, reach: Reach) -> None:
        self._vault = vault
        self._programs = programs
        self.reach = reach

    def restore(self, request: RestoreRequest, system_identifier: int | None) -> Work[Restored]:
        """Restore, as `Engine.restore` describes.

        All happens in a hidden folder beside the target, on the file system that the database will be on: decrypted
        members of the chain, recovery, a last sync. Only a whole data directory gets the target's name.
        """
        began = time.monotonic()
        folder = request.folder.absolute()
        _refuse_used(folder)
        planned = plan(self._vault, request, system_identifier)
        backup_id = planned.chain[-1].id
        account = account_for(folder)
        with aside(folder) as staging:
            instance = Instance(staging, self._programs, account, self.reach.paths)
            yield from self.lay_out(planned, instance, account)
            recovered = _Recovered(None, None, reached=True)
            if request.recover:
                recovered = yield from self.recover(planned, instance, {})
                instance.stop()
            _end_recovery_settings(instance.data, kept=not request.recover)
            sync_file_system(staging)
            _refuse_used(folder)
            instance.data.rename(folder)
            sync_folder(folder.parent)
        yield Progress(Step.DONE, backup_id=backup_id)
        seconds = time.monotonic() - began
        return Restored(folder, backup_id, seconds, recovered.lsn, recovered.timeline, recovered.reached)

    def lay_out(self, planned: Plan, instance: Instance, account: Account | None) -> Work[None]:
        """Leave in the instance's folder a data directory that recovers to the plan's target when it is started."""
        members = instance.data.parent / "members"
        members.mkdir(mode=0o700)
        yield from self._fetch(planned.chain, members)
        yield Progress(Step.COMBINE, backup_id=planned.chain[-1].id)
        self._combine(planned.chain, members, instance.data)
        remove(members)
        (instance.data / "backup_manifest").unlink(missing_ok=True)
        self._write_settings(planned, instance.data)
        if account:
            account.give(instance.data.parent)

    def recover(self, planned: Plan, instance: Instance, settings: Mapping[str, str]) -> Work[_Recovered]:
        """Start the instance and wait until it has recovered; it runs then. Raises ProgramError when it cannot."""
        pace = Pace(Step.RECOVER, planned.chain[-1].id)
        yield pace.at(0, None)
        try:
            instance.start(settings, lambda: None)
            return _recovered(instance.data, reached=True)
        except ProgramError as error:
            if not instance.said(_ENDED_BEFORE):
                raise
            if not isinstance(planned.target, AtTime):
                raise TargetUnreachableError("The archive ends before the target.") from error
        # All that the archive has is from before that time: no later write follows it there.
        self._write_settings(
            Plan(planned.chain, planned.timeline, Latest(), recovery_settings(Latest(), planned.timeline)),
            instance.data,
        )
        instance.start(settings, lambda: None)
        return _recovered(instance.data, reached=False)

    def _fetch(self, chain: Sequence[Backup], members: Path) -> Work[None]:
        total = sum(member.size for member in chain)
        pace = Pace(Step.FETCH, chain[-1].id)
        before = 0
        for number, member in enumerate(chain):
            written = 0
            for written in extract(self._vault.read(catalog.name(member.id, catalog.BASE)), members / str(number)):
                yield pace.at(before + written, total)
            before += written

    def _combine(self, chain: Sequence[Backup], members: Path, data: Path) -> None:
        if len(chain) == 1:
            (members / "0").rename(data)
            return
        folders = [str(members / str(number)) for number in range(len(chain))]
        # Linked: what is whole in one member is not copied. Made durable with all else, at the end.
        self._programs.run("pg_combinebackup", "--link", "--no-sync", "--no-manifest", f"--output={data}", *folders)

    def _write_settings(self, planned: Plan, data: Path) -> None:
        """Add settings for recovery to those that ALTER SYSTEM made, behind a line that marks them."""
        own = _own_settings(data)
        command = [sys.executable, "-m", "kronos_db.backup.fetch", self.reach.destination]
        command += [str(self.reach.master_key_file), str(planned.chain[-1].system_identifier)]
        command.append(str(planned.chain[-1].segment_size))
        fetch = shlex.join(command).replace("%", "%%") + ' "%f" "%p"'
        settings = {"restore_command": fetch, "synchronous_standby_names": "", **planned.settings}
        lines = [_MARK, *(f"{name} = '{_quoted(value)}'" for name, value in settings.items())]
        # As it was one user's it stays: the owner is that of the folder.
        (data / _AUTO).write_text(own + "\n".join(lines) + "\n", encoding="utf-8")
        (data / _SIGNAL).touch(mode=0o600)


_MARK = "# What follows was added by a restore of kronos-db."


def _own_settings(data: Path) -> str:
    return (data / _AUTO).read_text(encoding="utf-8").partition(_MARK)[0]


def _end_recovery_settings(data: Path, *, kept: bool) -> None:
    """Remove the settings for recovery once it is over; commits do not wait for a receiver that is not there."""
    if not kept:
        text = _own_settings(data) + "synchronous_standby_names = ''\n"
        (data / _AUTO).write_text(text, encoding="utf-8")


def _recovered(data: Path, *, reached: bool) -> _Recovered:
    """Return where recovery ended: the history file of the new timeline says it in its last line."""
    histories = sorted((data / "pg_wal").glob("????????.history"))
    if not histories:
        return _Recovered(None, None, reached)
    last = parse_history(histories[-1].read_bytes())[-1]
    return _Recovered(last.end, int(histories[-1].stem, 16), reached)


def _refuse_used(folder: Path) -> None:
    try:
        used = any(folder.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        used = True
    if used:
        running = " and a server may be running on it" if (folder / "postmaster.pid").exists() else ""
        raise FolderInUseError(f"{folder} is not empty{running}.", metadata={"folder": str(folder)})


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """Hold a folder beside `folder`, empty, for one restore at a time; what a killed one left there is removed."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.restoring")
    staging.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BackupBusyError(f"Another restore into {folder} is at work.") from None
        yield from _emptied(staging)
    finally:
        os.close(descriptor)


def _emptied(staging: Path) -> Iterator[Path]:
    instance = Instance(staging, Programs(), None)
    instance.end_leftovers()
    for entry in staging.iterdir():
        remove(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    try:
        yield staging
    finally:
        instance.end_leftovers()
        remove(staging)


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
