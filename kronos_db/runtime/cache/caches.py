"""The caches of all domains of a process, and what keeps each of them from being old."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from kronos_db.runtime.cache.board import Board
from kronos_db.runtime.cache.coherence import Coherence
from kronos_db.runtime.cache.engine import Cache
from kronos_db.runtime.cache.memory import Memory
from kronos_db.runtime.cache.remote import Remote
from kronos_db.runtime.database.changes import channel
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.holders import Holders
from kronos_db.runtime.redis import RedisServer

# Have a function called for a channel in the database of a domain: `Feeds.listen`.
Listen = Callable[[str, str, Callable[[], None]], None]


class Key(Protocol):
    """What has the secrets of a domain."""

    def subkey(self, purpose: str) -> bytes:
        """Return the secret for one purpose."""


class Caches:
    """Copies of each domain's data; every write of a database tells them.

    `shared` is the folder in which the processes of this machine keep their boards, None for a process alone.
    """

    def __init__(self, databases: Mapping[str, Database], shared: Path | None, listen: Listen) -> None:
        self._coherence = {domain: _keep(database, shared, listen) for domain, database in databases.items()}
        self._remotes: list[Remote] = []

    def open(self, keys: Mapping[str, Key], memory_bytes: int, redis: RedisServer | None) -> Mapping[str, Cache]:
        """Return the cache of each domain; all of them share the memory that is set for copies."""
        memory = Memory(memory_bytes)
        opened = {}
        for domain, key in keys.items():
            remote = Remote(redis, key.subkey("cache")) if redis else None
            self._remotes += [remote] if remote else []
            opened[domain] = Cache(self._coherence[domain].board, memory, remote)
        return opened

    def start(self) -> None:
        """Follow what changes."""
        for coherence in self._coherence.values():
            coherence.start()

    def stop(self) -> None:
        """Stop, in the time that one would take, also when PostgreSQL is away."""
        for coherence in self._coherence.values():
            coherence.end()
        for coherence in self._coherence.values():
            coherence.stop()
        for remote in self._remotes:
            remote.close()


def _keep(database: Database, shared: Path | None, listen: Listen) -> Coherence:
    domain = database.domain
    board = Board(shared / f"{domain}.board" if shared else None)
    coherence = Coherence(domain, board, Holders(database, board.holder))
    listen(domain, channel(domain, "copies"), coherence.wake.set)
    database.copies = coherence
    return coherence
