"""What PostgreSQL calls as restore_command: brings one file of WAL, or a timeline's history, from the archive.

python -m kronos_db.backup.fetch DESTINATION MASTER_KEY_FILE SYSTEM_IDENTIFIER SEGMENT_SIZE NAME PATH

Exit codes: 0 it is at PATH, 1 the archive ends before it, and recovery with it. Everything else ends the server, so
that a damaged or incomplete archive is not taken for the end of the history.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kronos_db.backup.destination import open_destination
from kronos_db.backup.vault import Vault
from kronos_db.backup.wal import WalArchive, parse_segment_name
from kronos_db.runtime.crypto.master_key import FileMasterKeys
from kronos_db.runtime.errors import KronosError

_FETCHED, _NOT_THERE = 0, 1
# Above 125 PostgreSQL does not go on.
_STOP = 200


def fetch(archive: WalArchive, segment_size: int, name: str, path: Path) -> bool:
    """Write the file `name` to `path`; return whether the archive has it. Raises BackupError."""
    segment = parse_segment_name(name, segment_size)
    if segment is not None:
        data = archive.segment(*segment, segment_size)
    elif name.endswith(".history"):
        data = archive.history(int(name.partition(".")[0], 16))
    else:
        data = None
    if data is None:
        return False
    path.write_bytes(data)
    return True


def main(arguments: Sequence[str]) -> int:
    """Do what the module says and return the exit code."""
    destination, key_file, system_identifier, segment_size, name, path = arguments
    try:
        vault = Vault(open_destination(destination), FileMasterKeys(Path(key_file)))
        archive = WalArchive(vault, int(system_identifier))
        return _FETCHED if fetch(archive, int(segment_size), name, Path(path)) else _NOT_THERE
    except (KronosError, OSError) as error:
        sys.stderr.write(f"{name} cannot be fetched from the archive: {error}\n")
        return _STOP


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
