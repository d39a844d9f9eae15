"""The locks: of the runtime and of the build are part of the whole, at the same versions, with hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Return the entry and its number of hashes for each package of a lock, by `NAME==VERSION`."""
    text = (ROOT / "locks" / name).read_text(encoding="utf-8")
    entries = re.split(r"^(?=\S+==)", text, flags=re.MULTILINE)[1:]
    return {entry.split(" \\")[0].strip(): (entry, entry.count("--hash=sha256:")) for entry in entries}


@pytest.mark.parametrize("name", ["runtime.txt", "build.txt"])
def test_the_parts_are_of_the_whole(name: str) -> None:
    whole, part = locked("requirements.txt"), locked(name)
    assert len(part) > 3
    assert part.items() <= whole.items()
    assert all(hashes for _entry, hashes in part.values())


def test_the_runtime_has_what_it_needs_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    runtime = {line.partition("==")[0] for line in locked("runtime.txt")}
    extras = project["project"]["optional-dependencies"]
    embedded = names(extras.pop("embedded"))
    wanted = names(project["project"]["dependencies"]).union(*map(names, extras.values()))
    assert wanted <= runtime
    assert not ((names(project["dependency-groups"]["dev"]) | embedded) - wanted) & runtime


def names(needs: list[str | dict[str, str]]) -> set[str]:
    """Return the packages of requirements, without versions, extras and markers."""
    return {re.split(r"[\[>=<;]", need)[0] for need in needs if isinstance(need, str)}


def test_the_build_has_the_version_that_builds_here() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["dependency-groups"]["build"] == project["build-system"]["requires"]
    assert set(project["build-system"]["requires"]) <= set(locked("build.txt"))
