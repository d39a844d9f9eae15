"""Makes a backup: pg_basebackup's stream, compressed and sealed on its way to the destination."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from kronos_db.backup import catalog, manifest
from kronos_db.backup.catalog import Catalog
from kronos_db.backup.database import Facts, Source
from kronos_db.backup.model import (
    Backup,
    BackupDamagedError,
    BackupError,
    DatabaseUnsuitableError,
    Kind,
    Progress,
    State,
    Step,
    Work,
)
from kronos_db.backup.pace import Pace
from kronos_db.backup.priority import step_back
from kronos_db.backup.programs import Programs, connection, failed, major_version
from kronos_db.backup.sealed import CHUNK, blocks
from kronos_db.backup.tar import Member, TarReader
from kronos_db.backup.vault import Vault
from kronos_db.embedded import processes
from kronos_db.runtime.identifiers import uuid7_text

# pg_basebackup --progress: "  12345/67890 kB (18%), 0/1 tablespace".
_TOTAL = re.compile(rb"(\d+)/(\d+) kB")
_KIB = 1024
# Linux: the length of a pipe; the default of 64 KiB costs a switch of processes for each.
_PIPE = 1024 * 1024
# Seconds between two reports of progress.
_TELL = 0.2


class Creation:
    """Makes backups of one database into one destination."""

    def __init__(self, source: Source, vault: Vault, programs: Programs) -> None:
        self._source = source
        self._vault = vault
        self._catalog = Catalog(vault)
        self._programs = programs

    def create(self, kind: Kind | None, label: str) -> Work[Backup]:
        """Make a backup, as `Engine.create` describes."""
        with self._source.lock(), self._catalog.lock():
            facts = self._source.facts()
            parent = self._parent(kind, facts)
            backup = Backup(
                id=uuid7_text(),
                kind=Kind.FULL if parent is None else Kind.INCREMENTAL,
                parent=None if parent is None else parent.id,
                state=State.RUNNING,
                system_identifier=facts.system_identifier,
                server_version=facts.server_version,
                timeline=facts.timeline,
                start_time=datetime.now(UTC),
                checksums=facts.checksums,
                label=label,
                segment_size=facts.segment_size,
            )
            self._vault.new_key(backup.id)
            self._catalog.put(backup)
            try:
                backup = yield from self._copy(backup)
            except BaseException as error:
                self._fail(backup, error)
                raise
            # COMPLETE from here on: what follows only adds to what is known of it.
            yield Progress(Step.FINGERPRINT, backup_id=backup.id)
            backup = replace(backup, content=self._source.content())
            self._catalog.put(backup)
            yield Progress(Step.DONE, backup.size, backup.size, backup_id=backup.id)
            return backup

    def _parent(self, kind: Kind | None, facts: Facts) -> Backup | None:
        """Return the backup that an incremental one can build upon: the youngest, if nothing changed since."""
        if kind is Kind.FULL:
            return None
        if not facts.summarizes:
            if kind is Kind.INCREMENTAL:
                raise DatabaseUnsuitableError("Incremental backups need the setting summarize_wal = on.")
            return None
        mine = [
            backup
            for backup in self._catalog.all()
            if backup.restorable and backup.system_identifier == facts.system_identifier
        ]
        same = (
            mine
            and mine[-1].timeline == facts.timeline
            and mine[-1].checksums == facts.checksums
            and major_version(mine[-1].server_version) == major_version(facts.server_version)
        )
        if not same:
            return None
        try:
            self._catalog.check_sizes(self._catalog.chain(mine[-1].id))
        except BackupError:
            return None
        return mine[-1]

    def _copy(self, backup: Backup) -> Work[Backup]:
        """Stream the base backup into the destination; return the record, COMPLETE and durable."""
        yield Progress(Step.CHECKPOINT, backup_id=backup.id)
        base = catalog.name(backup.id, catalog.BASE)
        with contextlib.ExitStack() as stack:
            stream = _Stream(self._programs, self._source.dsn, self._parent_manifest(backup))
            stack.callback(stream.close)
            watch = _ManifestWatch()
            writer = _Writer(self._vault, base, backup.id, stream.blocks(watch))
            stack.callback(writer.close)
            # The first of the three, when the work ends early: the writer ends with the stream.
            stack.callback(stream.kill)
            pace = Pace(Step.COPY, backup.id)
            while not writer.wait(_TELL):
                if stream.passed:
                    yield pace.at(stream.passed, stream.total)
            stored = writer.result()
        return self._completed(backup, watch, stream.passed, {base: stored})

    def _completed(self, backup: Backup, watch: _ManifestWatch, size: int, objects: dict[str, int]) -> Backup:
        found = manifest.parse(bytes(watch.content))
        if found.system_identifier != backup.system_identifier:
            raise BackupDamagedError("The base backup came from another database than was asked.")
        name = catalog.name(backup.id, catalog.MANIFEST)
        objects[name] = self._vault.write(name, backup.id, _cut(watch.content))
        complete = replace(
            backup,
            state=State.COMPLETE,
            timeline=found.timeline,
            start_lsn=found.start_lsn,
            stop_lsn=found.stop_lsn,
            next_xid=self._source.next_transaction(),
            stop_time=datetime.now(UTC),
            size=size,
            stored=sum(objects.values()),
            objects=objects,
        )
        self._catalog.put(complete)
        return complete

    def _parent_manifest(self, backup: Backup) -> bytes | None:
        if backup.parent is None:
            return None
        return b"".join(self._vault.read(catalog.name(backup.parent, catalog.MANIFEST)))

    def _fail(self, backup: Backup, error: BaseException) -> None:
        """Write down why, if that is possible; the data goes now, the record with the next retention."""
        text = str(error) or type(error).__name__
        with contextlib.suppress(BackupError):
            self._catalog.put(replace(backup, state=State.FAILED, failure=text[:2000]))
            self._vault.destination.delete(catalog.name(backup.id, catalog.BASE))
            self._vault.destination.delete(catalog.name(backup.id, catalog.MANIFEST))


class _ManifestWatch:
    """Keeps the manifest as the tar archive passes."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._here = False

    def begin(self, member: Member) -> None:
        self._here = member.path == manifest.NAME

    def data(self, piece: memoryview) -> None:
        if self._here:
            self.content += piece

    def end(self) -> None:
        self._here = False


class _Stream:
    """pg_basebackup at work. `passed` and `total` are bytes so far and in all, the latter None as long as unknown."""

    def __init__(self, programs: Programs, dsn: str, parent_manifest: bytes | None) -> None:
        info, environment = connection(dsn)
        command = [programs.path("pg_basebackup"), f"--dbname={info}", "--pgdata=-", "--format=tar"]
        # WAL from start to stop is in the archive itself, so that it can be restored without any other.
        command += ["--wal-method=fetch", "--checkpoint=fast", "--progress"]
        # Against accident: our seal is against intent, and PostgreSQL's SHA-256 would take most of a backup's time.
        command += [f"--manifest-checksums={manifest.ALGORITHM}"]
        inherited: list[int] = []
        if parent_manifest is not None:
            # In memory: file names and times of the database are for no disk.
            inherited.append(_in_memory(parent_manifest))
            command.append(f"--incremental=/proc/self/fd/{inherited[0]}")
        try:
            self._process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={**processes.environment(), **environment},
                pass_fds=inherited,
            )
        finally:
            for descriptor in inherited:
                os.close(descriptor)
        step_back(self._process.pid)
        self.passed = 0
        self.total: int | None = None
        self._said = b""
        self._listener = threading.Thread(target=self._listen, name="pg_basebackup", daemon=True)
        self._listener.start()

    def blocks(self, watch: _ManifestWatch) -> Iterator[bytes]:
        """Return the stream in pieces. Raises ProgramError, instead of an end, when the program failed."""
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - it is a pipe
        with contextlib.suppress(OSError):
            fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, _PIPE)
        reader = TarReader(watch)
        for block in blocks(stdout.readinto):  # type: ignore[attr-defined] # unbuffered, it is a FileIO
            reader.feed(block)
            self.passed += len(block)
            yield block
        code = self._process.wait()
        self._listener.join()
        if code != 0:
            raise failed("pg_basebackup", self._said)
        reader.finish()

    def kill(self) -> None:
        """End the program if it still runs."""
        if self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        """Wait for its end and let go of it."""
        self.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()

    def _listen(self) -> None:
        stderr = self._process.stderr
        while stderr and (data := stderr.read(1 << 16)):
            numbers = _TOTAL.findall(data)
            if numbers:
                self.total = int(numbers[-1][1]) * _KIB
            else:
                self._said = (self._said + data)[-4000:]


class _Writer:
    """A thread that stores an object; who made it tells meanwhile how far it is."""

    def __init__(self, vault: Vault, name: str, key_id: str, pieces: Iterator[bytes]) -> None:
        self._stored = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(vault, name, key_id, pieces), name="backup", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Return whether it has ended, after waiting for that at most `seconds`."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> int:
        """Return the bytes stored. Raises what went wrong."""
        if self._error is not None:
            raise self._error
        return self._stored

    def close(self) -> None:
        """Wait for the end; whoever wants it sooner ends the stream first."""
        self._thread.join()

    def _run(self, vault: Vault, name: str, key_id: str, pieces: Iterator[bytes]) -> None:
        # With the threads that seal, which it starts.
        step_back(threading.get_native_id())
        try:
            self._stored = vault.write(name, key_id, pieces)
        except BaseException as error:  # noqa: BLE001 - raised by `result`, in the thread that asks
            self._error = error


def _cut(data: bytearray) -> Iterator[bytes]:
    return (bytes(data[place : place + CHUNK]) for place in range(0, len(data), CHUNK))


def _in_memory(data: bytes) -> int:
    """Return the descriptor of a file with `data` that is on no disk."""
    descriptor = os.memfd_create("backup_manifest", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
