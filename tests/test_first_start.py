"""What an operator runs before and after a first start: `kronos-db secrets` and `kronos-db ready`."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

from benchmarks.ports import free_address
from kronos_db.runtime.interceptors.policy import load_policy
from tests.parts.dev import PROGRAM
from tests.parts.serving import Serving

LIMIT = 60.0


def run(*arguments: str, ops: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"KRONOS_DB_OPS_LISTEN": ops} if ops else {}
    command = [sys.executable, PROGRAM, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT)


def test_secrets_are_made_once_and_are_private(tmp_path: Path, serving: Serving) -> None:
    folder = tmp_path / "etc" / "kronos"
    names = ["master.key", "role.secret", "token", "access.toml"]
    assert run("secrets", str(folder)).stdout == "".join(f"{folder / name} made.\n" for name in names)
    made = {name: (folder / name).read_bytes() for name in names}
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in names} == {0o600}
    policy = load_policy(folder / "access.toml", serving.server._paths)
    assert policy.allowed["operator"] == serving.server._paths
    # A token that was given away is not replaced by one that the access file does not know.
    (folder / "token").unlink()
    (folder / "role.secret").unlink()
    assert run("secrets", str(folder)).stdout == f"{folder / 'role.secret'} made.\n"
    kept = {name: (folder / name).read_bytes() for name in ("master.key", "access.toml")}
    assert kept == {name: made[name] for name in kept}
    assert not (folder / "token").exists()


def test_secrets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("secrets", str(tmp_path / "file"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "File exists" in done.stderr


def test_ready_tells_what_is_missing(serving: Serving) -> None:
    ops = serving.server.ops_address
    done = run("ready", ops=ops)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"grpc": "ok"' in done.stdout
    serving.server.readiness.add("a part", lambda: "is away")
    try:
        done = run("ready", ops=ops)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "Not ready: a part: is away.\n")
        assert run("ready", "--live", ops=ops).returncode == 0
    finally:
        del serving.server.readiness._probes["a part"]


def test_ready_where_nothing_listens() -> None:
    done = run("ready", ops=free_address())
    assert done.returncode == 1
    assert "does not answer: [Errno 111] Connection refused." in done.stderr
