"""Resolves the dependencies into files with hashes below `locks/`, for Python 3.11 to 3.14.

`requirements.txt` is all; `runtime.txt` what the container image holds, the server with all extras but the embedded
PostgreSQL and Redis; `build.txt` what its wheel is built with. The versions are the same.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = "--universal --python-version=3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --quiet"
ALL = "locks/requirements.txt"
RUNTIME = "locks/runtime.txt"
BUILD = "locks/build.txt"
NOT_IN_PRODUCTION = {"embedded"}


def resolve(*arguments: str) -> int:
    """Run uv and return its exit code."""
    uv = [sys.executable, "-m", "uv", "pip", "compile", *OPTIONS.split(), *arguments]
    return subprocess.run(uv, cwd=ROOT, check=False).returncode


def runtime_extras() -> list[str]:
    """Return the extras that the image has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return sorted(project["optional-dependencies"].keys() - NOT_IN_PRODUCTION)


def main(options: list[str]) -> int:
    """Write all locks; `options` go to uv, for the first."""
    extras = [f"--extra={extra}" for extra in runtime_extras()]
    # What the first lock says binds the others.
    return (
        resolve("pyproject.toml", "--all-extras", "--group=dev", f"--output-file={ALL}", *options)
        or resolve("pyproject.toml", *extras, f"--constraint={ALL}", f"--output-file={RUNTIME}")
        or resolve("--group=pyproject.toml:build", f"--constraint={ALL}", f"--output-file={BUILD}")
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
