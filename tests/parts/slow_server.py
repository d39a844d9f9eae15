"""A serving process whose every step between PostgreSQL, its copies and Redis may take a while.

    python -m tests.parts.slow_server --shared FOLDER --seed N [--fault FAULT | --plain]

With `--plain` none takes longer than it does. Users are kept in Redis too. The faults: `unchecked` takes the version
check out, so that copies are answered from as long as the lease lasts, whatever was changed; `trusting` takes what
Redis has for new, whatever moment it is from.
Prints the gRPC address when it serves.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kronos_db import fleet
from kronos_db.config import load
from kronos_db.routes import table
from kronos_db.runtime.cache import board, coherence, engine, memory, remote

# Of the steps one in so many takes a while: seconds, at most.
_ODDS, _LONGEST = 4, 0.02


def _slowly(kind: type, name: str, chance: random.Random) -> None:
    """Let the method take a while now and then, before it does anything and after it has done all."""
    method: Callable[..., Any] = getattr(kind, name)

    def slow(*arguments: Any, **named: Any) -> Any:
        _wait(chance)
        result = method(*arguments, **named)
        _wait(chance)
        return result

    setattr(kind, name, slow)


def _wait(chance: random.Random) -> None:
    if chance.randrange(_ODDS) == 0:
        time.sleep(chance.random() * _LONGEST)


def _keep_in_redis() -> None:
    original = engine.Cache.kind

    def kind(self: engine.Cache, rules: engine.Rules, load: engine.Load) -> engine.Kind:
        return original(self, replace(rules, remote=True), load)

    engine.Cache.kind = kind  # type: ignore[method-assign] # that is what this process is for


def _check_nothing() -> None:
    board.Board.is_current = lambda self, mark, _places, at: True  # type: ignore[method-assign] # the fault


def _trust_redis() -> None:
    original = remote.Remote.get

    def get(self: remote.Remote, names: Sequence[str]) -> dict[str, remote.Kept]:
        return {name: kept._replace(moment=1 << 62) for name, kept in original(self, names).items()}

    remote.Remote.get = get  # type: ignore[method-assign] # the fault


FAULTS: Mapping[str, Callable[[], None]] = {"unchecked": _check_nothing, "trusting": _trust_redis}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--fault", choices=FAULTS)
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    if not arguments.plain:
        _slow_down(random.Random(arguments.seed))
    if arguments.fault:
        FAULTS[arguments.fault]()
    place = fleet.Place(None, 1, arguments.shared)
    fleet.run(load(), place, lambda serving: print(serving.grpc_address, flush=True))


def _slow_down(chance: random.Random) -> None:
    _keep_in_redis()
    for kind, names in {
        board.Board: ("mark", "change"),
        coherence.Coherence: ("outdate",),
        memory.Memory: ("put",),
        remote.Remote: ("get", "put"),
        engine.Kind: ("_fill", "_read", "_from_remote"),
        table.Table: ("read", "_after_others"),
    }.items():
        for name in names:
            _slowly(kind, name, chance)


if __name__ == "__main__":
    main()
