"""The serving process, `python -m kronos_db`: reads the settings and serves until it is told to stop."""

from __future__ import annotations

import sys

from kronos_db.config import SettingsError, load
from kronos_db.runtime.errors import KronosError


def main() -> int:
    """Return 0 after an orderly stop, 1 when the server cannot start, 2 when a setting is wrong."""
    # structlog takes rich in wherever it is installed: start time and memory that a serving process has no use for.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type] # None is how an import is refused
    try:
        settings = load()
        from kronos_db.server import run  # noqa: PLC0415 - after rich is refused, and only when the settings are right

        return run(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except KronosError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
