"""Releases side by side: the one before, taken out of the history, and this one, each serving from its own folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from tests.parts.eventually import eventually

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT = 60.0  # seconds
_MIGRATIONS = ":(glob)kronos_db/**/migrations/*.sql"
_PARTS = ("kronos_db", "generated")


def git(*arguments: str) -> str | None:
    """Return what a git command says of this repository; None when it fails."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def release_before() -> str | None:
    """Return the last revision that lacks a migration of ours; None when the history has none, or there is no history.

    That is what was landed before, if this release migrates, else what came before the last release that did.
    """
    for revision in ("origin/main", "main", "HEAD~1"):
        if git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") and _added_since(revision):
            return revision
    last = git("log", "-1", "--first-parent", "--format=%H", "--diff-filter=A", "HEAD", "--", _MIGRATIONS)
    before = git("rev-parse", "--verify", "--quiet", f"{last}~1^{{commit}}") if last else None
    return before if before and _added_since(before) else None


def _added_since(revision: str) -> bool:
    return bool(git("diff", "--name-only", "--diff-filter=A", revision, "--", _MIGRATIONS))


def take_out(revision: str, folder: Path) -> None:
    """Write the code of a revision into `folder`."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", revision, *_PARTS]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")


class Release:
    """The code in `folder`, run with the settings in `environment`."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        path = os.pathsep.join([str(folder), str(folder / "generated")])
        self._environment = {**os.environ, **environment, "PYTHONPATH": path}

    def migrate(self) -> list[str]:
        """Migrate; return what was applied."""
        code = "from kronos_db.cli import main; main()"
        done = self._run([sys.executable, "-c", code, "migrate"])
        return [line.strip() for line in done.splitlines() if "/" in line]

    def serve(self, grpc: str, ops: str) -> Process:
        """Serve on these addresses."""
        return Process(self._folder, {**self._environment, "KRONOS_DB_GRPC_LISTEN": grpc, "KRONOS_DB_OPS_LISTEN": ops})

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


class Process:
    """A serving process of a release."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._ops = environment["KRONOS_DB_OPS_LISTEN"]
        self._process = subprocess.Popen([sys.executable, "-m", "kronos_db"], cwd=folder, env=dict(environment))

    def wait(self) -> None:
        """Wait until it answers calls."""
        eventually(lambda: self.is_ready() or self._process.poll() is not None, LIMIT)
        assert self._process.poll() is None, "it ended"

    def drain(self) -> None:
        """Tell it to stop, and wait until it has."""
        self._process.terminate()
        assert self._process.wait(LIMIT) == 0

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait(LIMIT)

    def is_ready(self) -> bool:
        """Whether /readyz says that it serves."""
        try:
            with urllib.request.urlopen(f"http://{self._ops}/readyz", timeout=10) as answer:
                return bool(json.loads(answer.read())["status"] == "ok")
        except (urllib.error.URLError, OSError):
            return False
