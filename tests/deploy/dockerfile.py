"""Reads a Dockerfile, as far as ours goes: stages of instructions, with continued lines joined."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stage:
    """A stage: its base, name ("" of the last), and instructions after FROM."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        """Return what stands behind each such instruction."""
        return [rest for word, rest in self.steps if word == instruction]

    def copies(self) -> list[tuple[list[str], str, str]]:
        """Return sources, target and the stage that they come from ("": the context) of each COPY."""
        found = []
        for rest in self.all("COPY"):
            words = shlex.split(rest)
            stage = words.pop(0).partition("=")[2] if words[0].startswith("--from=") else ""
            found.append((words[:-1], words[-1], stage))
        return found

    def environment(self) -> dict[str, str]:
        """Return what ENV sets."""
        return dict(pair.split("=", 1) for rest in self.all("ENV") for pair in shlex.split(rest))

    def command(self, instruction: str) -> list[str]:
        """Return the words of ENTRYPOINT, CMD or HEALTHCHECK, which stand as JSON."""
        [rest] = self.all(instruction)
        words = json.loads(rest[rest.index("[") :])
        assert isinstance(words, list)
        return words


def stages() -> list[Stage]:
    """Return the stages of deploy/Dockerfile; arguments before the first one are filled in."""
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        word, _, rest = line.partition(" ")
        rest = re.sub(r"\s+", " ", rest)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], base), name))
        elif found:
            found[-1].steps.append((word, rest))
        else:
            assert word == "ARG"
            arguments.update([rest.split("=", 1)])
    return found
