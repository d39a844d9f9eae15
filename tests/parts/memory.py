"""Folders that no disk is waited for in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PLACE = Path("/dev/shm")
# Bytes that must be free there: a container often has 64 MB.
_ROOM = 4 << 30


@contextmanager
def memory() -> Iterator[Path]:
    """Make a folder in memory where there is room, else on the disk; it is removed afterwards."""
    roomy = _PLACE.is_dir() and shutil.disk_usage(_PLACE).free > _ROOM
    folder = Path(tempfile.mkdtemp(prefix="kronos-", dir=_PLACE if roomy else None))
    # As a folder of pytest's: who runs PostgreSQL for root must get in.
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
