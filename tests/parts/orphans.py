"""Leaves a server behind as a killed process would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parent.parent.parent
_LIMIT = 60.0  # seconds


def leave_running(module: str, kind: str, directory: Path) -> int:
    """Start a server of class `kind` in another Python, kill that Python at once, and return the server's pid."""
    program = (
        f"import os, signal; from pathlib import Path; from {module} import {kind}; "
        f"server = {kind}(Path({str(directory)!r})); server.start(); "
        "print(server.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=False, timeout=_LIMIT
    )
    return int(done.stdout)
