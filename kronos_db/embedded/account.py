"""The account that a server runs as when this process is root and the server refuses to be."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kronos_db.embedded import unprivileged

_NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged user, by number."""

    uid: int
    gid: int

    def give(self, path: Path) -> None:
        """Make the account the owner of `path` and all below it."""
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                os.chown(Path(folder) / name, self.uid, self.gid, follow_symlinks=False)

    def command(self, command: Sequence[str], reach: Sequence[Path]) -> list[str]:
        """Return what runs `command` as the account, able to enter and read the paths in `reach`."""
        launcher = [sys.executable, "-I", "-S", unprivileged.__file__, str(self.uid), str(self.gid)]
        return [*launcher, *map(str, reach), "--", *command]


def account_for(data: Path) -> Account | None:
    """Return the account for a server whose files are at `data`; None when it may run as this process does.

    As root: the owner of `data`. Before it exists, the owner of the nearest directory above, if that is a known user,
    else nobody: initdb looks itself up in the password file.
    """
    if os.geteuid() != 0:
        return None
    place = next(place for place in (data, *data.parents) if place.exists())
    status = place.stat()
    if status.st_uid != 0 and (place == data or _known(status.st_uid)):
        return Account(status.st_uid, status.st_gid)
    return _nobody()


def _known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _nobody() -> Account:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return Account(_NOBODY, _NOBODY)
    return Account(entry.pw_uid, entry.pw_gid)
