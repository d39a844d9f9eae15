"""The serving process, `python -m kronos_db`: reads the settings and serves until it is told to stop."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kronos_db.runtime import collector
from kronos_db.runtime.errors import KronosError

if TYPE_CHECKING:
    from kronos_db.config import Settings
    from kronos_db.fleet import Serving

# As malloc.h numbers it.
_M_ARENA_MAX = -8


def main() -> int:
    """Return 0 after an orderly stop, 1 when the server cannot start, 2 when a setting is wrong."""
    # structlog takes rich in wherever it is installed: start time and memory that a serving process has no use for.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type] # None is how an import is refused
    _share_arenas()
    given = _arguments()
    # Before anything that takes long to import.
    collector.pause()
    from kronos_db.config import SettingsError, load  # noqa: PLC0415

    try:
        settings = load()
        if given.slot is not None:
            return _serve_in(given, settings)
        from kronos_db import fleet  # noqa: PLC0415 - after rich is refused

        return fleet.run(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except KronosError as error:
        print(error, file=sys.stderr)
        return 1


def _share_arenas() -> None:
    """Have all threads allocate from two arenas (glibc): one for each thread keeps what another could use."""
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kronos_db", description=__doc__)
    inner = parser.add_argument_group("given by a supervisor to its processes")
    inner.add_argument("--slot", type=int, help="place among the processes that share a port")
    inner.add_argument("--slots", type=int, help="how many these are")
    inner.add_argument("--status", type=int, help="file descriptor that is told when this process serves")
    inner.add_argument(
        "--shared", type=Path, help="folder of all these processes: values of counters, boards of copies"
    )
    return parser.parse_args()


def _serve_in(given: argparse.Namespace, settings: Settings) -> int:
    """Serve as one of several processes."""
    # Before the server is imported: metrics take their kind of value when they are made.
    from kronos_db.runtime.ops.fleet import keep_values_in  # noqa: PLC0415
    from kronos_db.runtime.processes import end_with_parent  # noqa: PLC0415

    end_with_parent()
    keep_values_in(given.shared, given.slot)
    from kronos_db import fleet  # noqa: PLC0415

    def tell(serving: Serving) -> None:
        with os.fdopen(given.status, "w", encoding="utf-8") as status:
            json.dump({"ops": serving.ops_address}, status)
            status.write("\n")

    return fleet.run(settings, fleet.Place(given.slot, given.slots, given.shared), tell)


if __name__ == "__main__":
    raise SystemExit(main())
