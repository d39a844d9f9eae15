"""Places for Unix sockets, whose paths may not be longer than the system takes."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from pathlib import Path

from kronos_db.embedded.account import Account
from kronos_db.embedded.errors import EmbeddedError

# sockaddr_un.sun_path has 108 bytes, the last of them NUL (unix(7)).
_LONGEST = 107


class SocketDirectory:
    """A private directory for sockets at `place`, or below the system's temporary directory when `place` is too deep.

    In that case `place` is a symbolic link to it: the next `open` finds there what a killed process left behind.
    `name` is the longest file name of a socket that will be made.
    """

    def __init__(self, place: Path, name: str) -> None:
        self._place = place
        self._name = name

    def open(self, account: Account | None = None) -> Path:
        """Return the directory, new and empty, mode 0700, owned by `account` or this process's user."""
        self.close()
        if self._fits(self._place):
            path = self._place
            path.mkdir(mode=0o700)
        else:
            path = self._temporary()
            self._place.symlink_to(path)
        if account:
            account.give(path)
        return path

    def path(self) -> Path | None:
        """Return the directory that was opened last, by whichever process; None after `close`."""
        return self._place.resolve() if self._place.is_dir() else None

    def close(self) -> None:
        """Remove the directory with the sockets and lock files in it."""
        path = self.path()
        if path:
            for entry in path.iterdir():
                entry.unlink(missing_ok=True)
            path.rmdir()
        if self._place.is_symlink():
            self._place.unlink()

    def _fits(self, path: Path) -> bool:
        return len(os.fsencode(path / self._name)) <= _LONGEST

    def _temporary(self) -> Path:
        for root in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes a private directory in it
            path = Path(tempfile.mkdtemp(prefix="kronos-", dir=root)).resolve()
            if self._fits(path):
                return path
            path.rmdir()
        raise EmbeddedError(f"No directory for the socket {self._name} is short enough: set TMPDIR to a shorter path.")


def listener(path: Path) -> int | None:
    """Return the pid of the process that listens on the Unix socket at `path`, None when there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])
