"""Finds the commands that the documents tell to type, in fenced and in indented blocks."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.dockerfile import ROOT

SHELLS = {"sh", "bash", "shell", "console"}
# Blocks that are no commands: programs have tests of their own, the others are data.
OTHERS = {"python", "js", "ts", "json", "toml", "yaml", "ini", "proto", "text", "promql"}
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"<<-?'?(\w+)'?")
_SQL = re.compile(r"(SELECT|ALTER|CREATE|GRANT|INSERT|UPDATE|DELETE|EXPLAIN|SHOW)\b")


@dataclass(frozen=True)
class Command:
    """What a page tells to type, at once: for a shell, or for psql."""

    page: str
    text: str
    sql: bool = False

    @property
    def name(self) -> str:
        """The command on one line."""
        return re.sub(r"\s+", " ", self.text)


def pages() -> list[Path]:
    """Return the pages that may have commands. Generated references have the synopses of the command line alone."""
    found = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "deploy" / "README.md",
        ROOT / "examples" / "README.md",
    ]
    found += sorted((ROOT / "docs").rglob("*.md"))
    return [page for page in found if not page.read_text(encoding="utf-8").startswith("<!-- Made by")]


def commands(page: Path) -> list[Command]:
    """Return the commands of a page, in its order."""
    name = str(page.relative_to(ROOT))
    text = page.read_text(encoding="utf-8")
    found = []
    for language, block in blocks(text):
        if language == "sql":
            found.append(Command(name, block.strip(), sql=True))
        elif language in SHELLS:
            found += [Command(name, command) for command in split(block, console=language == "console")]
        elif language == "indented":
            found += [Command(name, command, sql=bool(_SQL.match(command))) for command in split(block, console=False)]
        else:
            assert language in OTHERS, f"{name} has a block of {language!r}: say in commands.py what that is"
    return found


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield language and content of each block of code, dedented; an indented one is of the language `indented`."""
    found = [
        (match.start(), match[2], re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE))
        for match in _FENCE.finditer(text)
    ]
    # Of the same length, so that places stay.
    plain = _FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    for match in re.finditer(r"(?<=\n\n)((?:    \S.*\n)+)", plain):
        before = plain[: match.start()].rstrip().rpartition("\n")[2]
        # Below an item of a list it is a paragraph of it.
        if not re.match(r" *([-*]|\d+\.) ", before):
            found.append((match.start(), "indented", re.sub(r"^    ", "", match[0], flags=re.MULTILINE)))
    for _place, language, block in sorted(found):
        yield language, block


def split(block: str, *, console: bool) -> list[str]:
    """Return the commands of a block. In a console they stand behind `$ `, and the rest is what is answered."""
    found: list[str] = []
    lines = iter(block.splitlines())
    for line in lines:
        if console and not line.startswith("$ "):
            continue
        command = line.removeprefix("$ ") if console else line
        while not _complete(command):
            command += "\n" + next(lines)
        if command.strip() and not command.startswith("#"):
            found.append(re.sub(r"\s+# .*$", "", command))
    return found


def _complete(command: str) -> bool:
    heredoc = _HEREDOC.search(command)
    if heredoc:
        return re.search(rf"\n{heredoc[1]}$", command) is not None
    if command.endswith("\\"):
        return False
    # An open quote is what else goes on in the next line.
    return _quotes(command)


def _quotes(command: str) -> bool:
    if command.count("'") % 2 == 0 and command.count('"') % 2 == 0:
        return True
    return subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False, timeout=10).returncode == 0


def spans(page: Path, begin: str) -> list[str]:
    """Return what stands in backticks on a page, outside of blocks, and begins so."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [span for span in re.findall(r"`([^`\n]+)`", text) if span.startswith(begin)]
