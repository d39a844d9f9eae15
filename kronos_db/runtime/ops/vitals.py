"""What a serving process tells of itself to the others on its machine: /processz on the ops port of each."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import kronos_db
from kronos_db.runtime.cache.engine import Cache
from kronos_db.runtime.errors import UnavailableError
from kronos_db.runtime.ops.http import Request, Response, Route
from kronos_db.runtime.ops.saturation import Pooled
from kronos_db.runtime.reception import Lane

PATH = "/processz"
_TIMEOUT = 0.8
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Load:
    """What one domain is busy with. Of values asked for, `hits` were in memory and `remote_hits` in Redis."""

    running: int
    queued: int
    limit: int
    pool_size: int
    pool_limit: int
    pool_idle: int
    pool_waiting: int
    asked: int
    hits: int
    remote_hits: int


@dataclass(frozen=True, slots=True)
class Vitals:
    """A process: `started` in Unix time, memory in bytes, and its domains."""

    pid: int
    version: str
    started: float
    resident_bytes: int
    copy_bytes: int
    loads: Mapping[str, Load]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a process looks to tell of itself. `limit` is of the calls of a domain, `pool_limit` of its pool."""

    running: Callable[[], Mapping[str, int]]
    queued: Callable[[], Mapping[Lane, int]]
    pools: Mapping[str, Pooled]
    caches: Mapping[str, Cache]
    limit: int
    pool_limit: int


class Self:
    """This process among the `slots` that share a port; `shared` is their common folder, None when it is alone."""

    def __init__(self, slot: int | None, slots: int, shared: Path | None) -> None:
        self.slot = slot or 0
        self.slots = slots
        self._shared = shared
        self._started = time.time()
        self._sources: Sources | None = None

    def tells(self, sources: Sources) -> None:
        """Tell from now on."""
        self._sources = sources

    def announce(self, address: str) -> None:
        """Let the others know the ops address at which this process answers."""
        if self._shared is not None:
            # One that is to end may still write the same: each has a draft of its own.
            fresh = self._shared / f"ops-{self.slot}.{os.getpid()}.new"
            fresh.write_text(address, encoding="utf-8")
            # Whoever reads meanwhile gets the old address or the new one, and no half of it.
            fresh.replace(self._place(self.slot))

    def route(self) -> Route:
        """Return what answers the others."""

        def processz(_request: Request) -> Response:
            vitals = self.vitals()
            return Response.of_json(asdict(vitals) if vitals is not None else None)

        return Route("GET", PATH, processz)

    def vitals(self) -> Vitals | None:
        """Tell of this process; None before there is anything to tell."""
        sources = self._sources
        if sources is None:
            return None
        running, queued = sources.running(), sources.queued()
        loads = {
            domain: _load(sources, domain, running.get(domain, 0), _waiting(queued, domain)) for domain in sources.pools
        }
        memories = {cache.memory for cache in sources.caches.values()}
        return Vitals(
            os.getpid(),
            kronos_db.__version__,
            self._started,
            _resident(),
            sum(memory.size for memory in memories),
            loads,
        )

    def ask(self, slot: int) -> Vitals:
        """Return what the process in `slot` tells. Raises UnavailableError when it does not."""
        told = self.vitals() if slot == self.slot else self._asked(slot)
        if told is None:
            raise UnavailableError("is being started")
        return told

    def _asked(self, slot: int) -> Vitals | None:
        try:
            address = self._place(slot).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            connection = http.client.HTTPConnection(address, timeout=_TIMEOUT)
            try:
                connection.request("GET", PATH)
                document = json.loads(connection.getresponse().read())
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError):
            raise UnavailableError("does not answer") from None
        return _read(document) if document is not None else None

    def _place(self, slot: int) -> Path:
        return (self._shared or Path()) / f"ops-{slot}"


def _load(sources: Sources, domain: str, running: int, queued: int) -> Load:
    pool, kinds = sources.pools[domain].stats(), sources.caches[domain].kinds
    hits, misses = sum(kind.hits for kind in kinds), sum(kind.misses for kind in kinds)
    return Load(
        running=running,
        queued=queued,
        limit=sources.limit,
        pool_size=pool.get("pool_size", 0),
        pool_limit=sources.pool_limit,
        pool_idle=pool.get("pool_available", 0),
        pool_waiting=pool.get("requests_waiting", 0),
        asked=hits + misses,
        hits=hits,
        remote_hits=sum(kind.remote_hits for kind in kinds),
    )


def _waiting(queued: Mapping[Lane, int], domain: str) -> int:
    return sum(count for lane, count in queued.items() if lane.domain == domain)


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except OSError:
        # Not Linux.
        return 0


def _read(document: Any) -> Vitals:
    loads = {domain: Load(**load) for domain, load in document.pop("loads").items()}
    return Vitals(**document, loads=loads)
