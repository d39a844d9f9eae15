"""Resolves the dependencies into `locks/requirements.txt`: one file with hashes, for Python 3.11 to 3.14."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = (
    "--universal --python-version=3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --quiet "
    "--all-extras --group=dev pyproject.toml --output-file=locks/requirements.txt"
)

if __name__ == "__main__":
    uv = [sys.executable, "-m", "uv", "pip", "compile", *OPTIONS.split(), *sys.argv[1:]]
    raise SystemExit(subprocess.run(uv, cwd=ROOT, check=False).returncode)
