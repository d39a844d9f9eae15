"""Installs into the environment that runs it what the lock file names, then this project; says how far it is.

Standard library alone: it runs before anything is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "locks" / "requirements.txt"
PIP = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]


def main() -> int:
    """Install and return pip's exit code; what pip said is shown when it fails."""
    total = len(re.findall(r"^\S+==", LOCK.read_text(encoding="utf-8"), re.MULTILINE))
    code = watched(["--require-hashes", "--requirement", str(LOCK)], total)
    return code or watched(["--no-deps", "--no-build-isolation", "--editable", str(ROOT)], 0)


def watched(arguments: list[str], total: int) -> int:
    """Run pip, telling how many of `total` packages it has dealt with."""
    said: list[str] = []
    done = 0
    with subprocess.Popen([*PIP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout or ():
            said.append(line)
            word, _, rest = line.partition(" ")
            if word in ("Collecting", "Ignoring"):
                done += 1
                tell(f"  {done} of {total}: {re.split('[=: ]', rest)[0]}")
            elif line.startswith("Installing collected") and total:
                tell("  unpacking")
    tell("")
    if pip.returncode != 0:
        sys.stderr.writelines(said)
    return pip.returncode


def tell(text: str) -> None:
    """Show a line that the next one replaces; nothing where that is not possible."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
