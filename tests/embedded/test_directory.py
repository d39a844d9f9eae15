"""DataDirectory: one process at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kronos_db.embedded.directory import DataDirectory, DataDirectoryInUseError
from kronos_db.embedded.errors import EmbeddedError

HOLD = "import sys; from pathlib import Path; from kronos_db.embedded.directory import DataDirectory; "
HOLD += "held = DataDirectory(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


def test_it_is_made_private_and_names_the_places(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "new" / "kronos")
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert directory.keys.stat().st_mode & 0o777 == 0o700
    assert {path.parent for path in (directory.postgres, directory.redis, directory.log)} == {directory.path}
    directory.close()
    directory.close()
    DataDirectory(directory.path).close()


def test_a_second_process_is_refused_until_the_first_has_died(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DataDirectoryInUseError, match=rf"{tmp_path} .*pid {holder.pid}\b"):
            DataDirectory(tmp_path)
        holder.kill()
    DataDirectory(tmp_path).close()


def test_a_path_that_cannot_be_a_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match=rf"{tmp_path}/file/data cannot be the data directory: Not a directory"):
        DataDirectory(tmp_path / "file" / "data")
