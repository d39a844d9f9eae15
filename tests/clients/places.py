"""A clean place for a client package: an environment that has what the package asks for, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distribution, requires
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LIMIT = 120.0  # seconds


def ran(command: list[str], folder: Path, **settings: str) -> str:
    """Run a program that must succeed; return what it printed."""
    # What the shell adds to the path is not in the place.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def block_of_the_page(language: str, address: str, token_file: Path) -> str:
    """Return the program of docs/clients.md in a language, for a server that is there."""
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    found = re.search(rf"```{language}\n(.*?)```", page, re.DOTALL)
    assert found
    return found[1].replace("db.internal:50051", address).replace("/run/secrets/kronos-db", str(token_file))


class PythonPlace:
    """A virtual environment with a wheel, and links to the packages that it requires: no server, no network."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        [self.packages] = folder.glob("lib/*/site-packages")
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check"]
        ran([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], folder)
        for found in _closure(_required(self.packages)):
            self._link(found)
        # Complains of what is required and not there.
        ran([*pip, "check"], folder)

    def run(self, program: str, **settings: str) -> str:
        """Run Python text that must succeed."""
        return ran([str(self.python), "-W", "error", "-c", program], self.packages.parent, **settings)

    def _link(self, found: Distribution) -> None:
        """Link all of a package; what shares a folder with other packages, as all in `google` do, one level deeper."""
        for path in {_own_part(Path(str(file))) for file in found.files or ()} - {None}:
            assert path is not None
            target = self.packages / path
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(Path(str(found.locate_file(str(path)))))


def _own_part(path: Path) -> Path | None:
    if path.parts[0] in {"..", "__pycache__"}:
        return None
    return Path(*path.parts[:2]) if path.parts[0] == "google" else Path(path.parts[0])


def _required(packages: Path) -> Iterator[str]:
    [metadata] = packages.glob("kronos_db_client-*.dist-info/METADATA")
    for line in metadata.read_text().splitlines():
        if line.startswith("Requires-Dist: "):
            yield _name(line.removeprefix("Requires-Dist: "))


def _closure(names: Iterator[str]) -> list[Distribution]:
    waiting, found = list(names), {}
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = distribution(name)
            waiting += [_name(each) for each in requires(name) or () if "extra ==" not in each]
    return list(found.values())


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return match[0]


class NodePlace:
    """A folder with the npm package and what it requires; `tools` is the package's own folder, where tsc is."""

    def __init__(self, folder: Path, tarball: Path, tools: Path, node: str, npm: str) -> None:
        self.folder = folder
        self._node = node
        self._tsc = tools / "node_modules" / "typescript" / "bin" / "tsc"
        folder.mkdir()
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        ran([npm, "install", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts", str(tarball)], folder)

    def run(self, program: str, *words: str, **settings: str) -> str:
        """Run JavaScript text that must succeed."""
        (self.folder / "program.mjs").write_text(program)
        return ran([self._node, "program.mjs", *words], self.folder, **settings)

    def check(self, samples: Mapping[str, str]) -> list[str]:
        """Return what tsc finds wrong with TypeScript texts, by the names of their files."""
        for name, sample in samples.items():
            (self.folder / name).write_text(sample)
        options = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--types", "node"]
        command = [self._node, str(self._tsc), *options, *samples]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=LIMIT)
        return [line for line in done.stdout.splitlines() if ": error TS" in line]
