"""A folder as destination: files that are whole and durable, or not there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from kronos_db.backup.destination import Stored
from kronos_db.backup.model import BackupBusyError, DestinationError

_DRAFT = ".draft-"
# Seconds after which an unfinished file is taken for one of a killed process.
_ABANDONED = 86_400.0
# Written back as it comes, so that the fsync at the end does not wait for gigabytes.
_WRITE_BACK = 64 * 1024 * 1024


class Directory:
    """The destination `root`, a folder that is made when it is not there; for its owner alone."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self._root)

    def put(self, name: str, pieces: Iterable[bytes]) -> int:
        """Write aside, fsync, rename, fsync the folder."""
        path = self._root / name
        draft = path.with_name(f"{_DRAFT}{secrets.token_hex(8)}")
        try:
            self._make(path.parent)
            size = _write(draft, pieces)
            draft.replace(path)
            _sync(path.parent)
        except OSError as error:
            raise _failure(name, error) from error
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
        return size

    def open(self, name: str) -> BinaryIO:
        """Open a file."""
        try:
            return (self._root / name).open("rb", buffering=0)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _failure(name, error) from error

    def list(self, prefix: str) -> Iterator[Stored]:
        """Walk the folder of `prefix`."""
        try:
            for folder, folders, files in os.walk(self._root / prefix):
                # Ours: locks and drafts.
                folders[:] = [name for name in folders if not name.startswith(".")]
                for file in files:
                    if not file.startswith("."):
                        yield from self._stored(Path(folder) / file)
        except OSError as error:
            raise _failure(prefix, error) from error

    def delete(self, name: str) -> None:
        """Remove a file, and its folder when that was its last."""
        path = self._root / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _failure(name, error) from error
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold an flock, which ends with the process."""
        folder = self._root / ".locks"
        try:
            self._make(folder)
            descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _failure(name, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise BackupBusyError(f"Another process holds the lock {name} of this destination.") from None
        try:
            yield
        finally:
            os.close(descriptor)

    def clean(self) -> None:
        """Remove drafts, and empty folders, that nobody has written to for a day."""
        for draft in self._root.rglob(f"{_DRAFT}*"):
            if _abandoned(draft):
                draft.unlink(missing_ok=True)
        for folder, _, _ in os.walk(self._root, topdown=False):
            if folder != str(self._root) and _abandoned(Path(folder)):
                # Not when something is in it.
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()

    def _stored(self, path: Path) -> Iterator[Stored]:
        # Gone since it was listed: merged or removed.
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            name = str(path.relative_to(self._root))
            yield Stored(name, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, durably."""
        if folder.is_dir():
            return
        if folder != self._root:
            self._make(folder.parent)
        folder.mkdir(mode=0o700, parents=folder == self._root, exist_ok=True)
        _sync(folder.parent)


def _abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED
    except FileNotFoundError:
        return False


def _write(path: Path, pieces: Iterable[bytes]) -> int:
    size = started = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]
            size += len(piece)
            if size - started >= _WRITE_BACK:
                # Begins to write back what is dirty, without waiting for it.
                os.posix_fadvise(descriptor, started, size - started, os.POSIX_FADV_DONTNEED)
                started = size
        os.fsync(descriptor)
    return size


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failure(name: str, error: OSError) -> DestinationError:
    return DestinationError(f"{name} in the folder of backups: {error.strerror or error}.")
