"""Puts the generated stubs into the wheel, below its own name: nothing of it lies where another wheel has files.

The server's wheel has the same stubs as `kronos` and `buf`. Two wheels with the same files undo each other when one is
changed or removed, so here `kronos/users/v1` becomes `kronos_db_client/users/v1`, and imports follow.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "kronos_db_client"
# Where an sdist keeps them as they were generated.
CARRIED = "_generated"
_IMPORT = re.compile(r"^(from|import) (kronos|buf)\b", re.MULTILINE)


class StubsHook(BuildHookInterface[Any]):
    """Finds the stubs beside the checkout's other folders, or in the sdist that is built from."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add them to what is built; fails when they are nowhere."""
        del version
        root = Path(self.root)
        found = [folder for folder in (root / CARRIED, root.parent.parent / "generated") if folder.is_dir()]
        if not found:
            raise FileNotFoundError("there is no generated/ to take the stubs from")
        if self.target_name == "sdist":
            build_data["force_include"][str(found[0])] = CARRIED
            return
        target = Path(self.directory) / "stubs"
        shutil.rmtree(target, ignore_errors=True)
        for path, text in stubs(found[0]):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_text(text, encoding="utf-8")
            build_data["force_include"][str(target / path)] = f"{PACKAGE}/{path}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what the wheel has now."""
        del version, build_data, artifact_path
        shutil.rmtree(Path(self.directory) / "stubs", ignore_errors=True)


def stubs(generated: Path) -> list[tuple[Path, str]]:
    """Return path in the package and text of all that is generated for Python, and of the retry policy."""
    found = []
    for path in sorted(generated.rglob("*")):
        name = path.relative_to(generated)
        if path.suffix not in {".py", ".pyi", ".json"} or name == Path("kronos/__init__.py"):
            continue
        text = _IMPORT.sub(_renamed, path.read_text(encoding="utf-8"))
        found.append((Path(*name.parts[1:]) if name.parts[0] == "kronos" else name, text))
    return found


def _renamed(match: re.Match[str]) -> str:
    return f"{match[1]} {PACKAGE}" if match[2] == "kronos" else f"{match[1]} {PACKAGE}.buf"
