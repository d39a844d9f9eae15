"""The launcher for servers that refuse to run as root: who they are then, and what they may still reach."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kronos_db.embedded.account import Account, account_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="Only root can become another account.")

NOBODY = Account(65534, 65534)
CAT = shutil.which("cat") or "/bin/cat"


def status(command: list[str], reach: list[Path]) -> dict[str, str]:
    """Return /proc/PID/status of `command FILE` run as nobody."""
    done = subprocess.run(
        NOBODY.command([*command, "/proc/self/status"], reach), capture_output=True, text=True, check=True, timeout=30
    )
    return {name: value.strip() for name, _, value in (line.partition(":") for line in done.stdout.splitlines())}


def test_without_need_it_has_no_capability() -> None:
    seen = status([CAT], [Path(CAT)])
    assert seen["Uid"].split() == ["65534"] * 4
    assert seen["Gid"].split() == ["65534"] * 4
    assert {int(seen[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}


def test_below_a_closed_directory_it_has_one_capability_to_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    program = shutil.copy(CAT, closed / "cat")
    seen = status([str(program)], [closed, Path(program)])
    assert seen["Uid"].split() == ["65534"] * 4
    # CAP_DAC_READ_SEARCH, or CAP_DAC_OVERRIDE where a container takes the former away.
    assert int(seen["CapEff"], 16) in {1 << 2, 1 << 1}
    assert seen["CapPrm"] == seen["CapEff"] == seen["CapAmb"]


def test_what_cannot_be_reached_is_told(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = subprocess.run(
        NOBODY.command([CAT], [missing]),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"cat does not run as root, and uid 65534 may not enter {missing}: start kronos-db as an ordinary user, "
        "or from a directory that every user may enter.\n"
    )


def test_the_owner_of_the_data_runs_the_server(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert account_for(data) == NOBODY
    data.mkdir()
    assert account_for(data) == NOBODY
    os.chown(data, 12345, 12346)
    assert account_for(data) == Account(12345, 12346)
    assert account_for(data / "unmade") == NOBODY, "initdb refuses a user that is not known"
    os.chown(data, 1, 1)
    assert account_for(data / "unmade") == Account(1, 1)
