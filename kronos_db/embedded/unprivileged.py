"""Runs a command as another account, for servers that refuse to run as root.

Usage: unprivileged.py UID GID PATH... -- COMMAND [ARGUMENT...]

Each PATH must be reachable for the command. What the account may not reach by itself (a checkout below /root, a data
directory below one of mode 0700) it reaches by one capability that survives exec: the weakest that is enough, and none
when none is needed (capabilities(7), "Ambient"). Runs by path in an isolated interpreter: standard library only.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

# linux/capability.h, linux/prctl.h and linux/securebits.h
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_VERSION_3 = 0x20080522
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_SECBIT_NO_SETUID_FIXUP = 1 << 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def main(arguments: list[str]) -> None:
    """Change to the account, then become the command. Exits with one sentence on standard error otherwise."""
    end = arguments.index("--")
    uid, gid, paths, command = int(arguments[0]), int(arguments[1]), arguments[2:end], arguments[end + 1 :]
    name = os.path.basename(command[0])  # noqa: PTH119 - pathlib would double the start time
    try:
        _change_account(uid, gid)
        unreachable = _reach(paths)
    except OSError as error:
        sys.exit(
            f"{name} does not run as root, and this process may not run it as uid {uid} ({error.strerror}): "
            "start kronos-db as an ordinary user."
        )
    if unreachable:
        sys.exit(
            f"{name} does not run as root, and uid {uid} may not enter {unreachable}: start kronos-db as an ordinary "
            "user, or from a directory that every user may enter."
        )
    os.execv(command[0], command)  # noqa: S606 - becoming the command is the purpose


def _change_account(uid: int, gid: int) -> None:
    # The securebit keeps the capabilities across setresuid and, what is more, for access(2), by which PostgreSQL looks
    # for its own binary. Where it cannot be set, the account gets no capability and may have to do without.
    _libc.prctl(_PR_SET_SECUREBITS, ctypes.c_ulong(_SECBIT_NO_SETUID_FIXUP), 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _reach(paths: Sequence[str]) -> str | None:
    """Keep the weakest capability with which all `paths` can be entered and read; return a path that cannot be."""
    permitted = _permitted()
    unreachable = None
    for capability in (0, 1 << _CAP_DAC_READ_SEARCH, 1 << _CAP_DAC_OVERRIDE):
        if capability & ~permitted:
            continue
        _set(effective=capability, permitted=permitted, inheritable=capability)
        unreachable = next((path for path in paths if not _reachable(path)), None)
        if unreachable is None:
            _set(effective=capability, permitted=capability, inheritable=capability)
            _raise_ambient(capability)
            return None
    return unreachable


def _reachable(path: str) -> bool:
    try:
        executable = os.stat(path).st_mode & 0o111  # noqa: PTH116 - as above
    except OSError:
        return False
    return os.access(path, os.R_OK | os.X_OK if executable else os.R_OK)


def _permitted() -> int:
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    _check(_libc.capget(ctypes.byref(header), sets))
    return int(sets[0].permitted)


def _set(effective: int, permitted: int, inheritable: int) -> None:
    # The second element, capabilities 32 and up, stays empty: the account has use for none of them.
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)(_Sets(effective, permitted, inheritable))
    _check(_libc.capset(ctypes.byref(header), sets))


def _raise_ambient(capabilities: int) -> None:
    for number in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        if capabilities & 1 << number:
            _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, ctypes.c_ulong(number), 0, 0))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main(sys.argv[1:])
