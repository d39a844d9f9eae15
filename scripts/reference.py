"""Writes the reference pages below `docs/` that are made from the code, or checks that they are what the code gives."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from kronos_db import config

ROOT = Path(__file__).resolve().parent.parent
HEAD = "<!-- Made by `python scripts/reference.py write`; do not edit. -->"


def settings_page() -> str:
    """Return the page of every setting."""
    rows = [
        (f"`{row.name}`", row.kind, f"`{row.default}`" if row.default else "", row.meaning) for row in config.explain()
    ]
    return f"""# Settings

Every setting is an environment variable. The same names, in lower case and without `{config.PREFIX}`, may stand in the
TOML file that `{config.CONFIG_FILE}` names; the environment goes before the file. An empty variable counts as not set.
A wrong value, and a name that is none of these, stops the start with one sentence that names it.

The meanings below leave out `{config.PREFIX}`. DSNs are PostgreSQL connection URLs or key=value strings of libpq;
inside a URL, reserved characters of a password are spelt `%XX`. Secrets are never printed, neither by
`kronos-db config show` nor in errors or logs. Relative paths start from the working directory.

{table(("Setting", "Type", "Default", "Meaning"), rows)}"""


PAGES: dict[str, Callable[[], str]] = {"docs/settings.md": settings_page}


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(root: Path) -> None:
    """Write every page below `root`."""
    for name, page in PAGES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{HEAD}\n{page()}", encoding="utf-8")


def drifted(root: Path) -> list[str]:
    """Return the pages below `root` that are missing or not what the code gives."""
    return [
        name
        for name, page in PAGES.items()
        if not (root / name).is_file() or (root / name).read_text(encoding="utf-8") != f"{HEAD}\n{page()}"
    ]


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["write", "check"])
    if parser.parse_args().action == "write":
        write(ROOT)
    elif names := drifted(ROOT):
        raise SystemExit(f"{', '.join(names)} is not what the code gives; run `python scripts/reference.py write`.")


if __name__ == "__main__":
    main()
