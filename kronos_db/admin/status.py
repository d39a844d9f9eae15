"""All parts of the server as they are seen: who looks at them, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, Protocol

from kronos_db.admin.status_store import Domain, DomainLooks, PoolerLook, Server, ServerLook, Sizes
from kronos_db.admin.watching import Health, State, Watched, ask
from kronos_db.runtime.database.direct import address_of
from kronos_db.runtime.errors import UnavailableError
from kronos_db.runtime.ops.vitals import Vitals
from kronos_db.runtime.redis import RedisAwayError, RedisFigures, RedisServer


class Backups(NamedTuple):
    """What can be restored; None where there is nothing."""

    health: Health
    last_backup_time: datetime | None = None
    restorable_from: datetime | None = None
    restorable_until: datetime | None = None
    # Seconds that a restore took in the last drill.
    recovery_seconds: float | None = None
    # Places where the archive lacks WAL.
    gaps: int = 0


class BackupsLook(Protocol):
    """Who knows how backups are; must not wait."""

    def status(self) -> Backups:
        """Tell it."""


class NoBackups:
    """Stands in where no backups are made."""

    def status(self) -> Backups:
        """Tell that nothing is known."""
        return Backups(Health(State.UNKNOWN, "the server makes no backups"))


@dataclass(frozen=True, slots=True)
class Ways:
    """How a domain is reached: the DSN that its calls take, and one that leads straight to PostgreSQL."""

    serving: str
    straight: str


class PoolerParts(NamedTuple):
    """A pooler, and PostgreSQL as it is seen through it: `behind` tells whether sessions end in the pooler."""

    at: Watched[None]
    behind: Watched[bool]
    domains: Sequence[str]


class ServerParts(NamedTuple):
    """A PostgreSQL, and who is kept in it."""

    at: Watched[Server]
    domains: Sequence[str]


class Parts:
    """Everything that is watched. `processes` asks the process in a slot, of so many."""

    def __init__(
        self,
        ways: Mapping[str, Ways],
        looks: DomainLooks,
        redis: RedisServer | None,
        processes: tuple[int, Callable[[int], Vitals]],
        backups: BackupsLook,
    ) -> None:
        self.postgres = _servers(ways)
        self.poolers = _poolers(ways)
        self.redis = None if redis is None else Watched("redis", partial(_redis, redis))
        self.domains = {domain: Watched[Domain](domain, partial(looks.look, domain)) for domain in ways}
        # Aside: they take longer than a domain needs to answer, and it does not wait for them.
        self.sizes = {domain: Watched[Sizes | None](f"sizes {domain}", partial(looks.sizes, domain)) for domain in ways}
        slots, ask_process = processes
        self.processes = [Watched[Vitals](f"process {slot}", partial(ask_process, slot)) for slot in range(slots)]
        self.backups = backups

    def start(self) -> None:
        """Begin to look, once somebody asks."""
        for part in self.all():
            part.start()

    def stop(self) -> None:
        """Look no more."""
        for part in self.all():
            part.stop()

    def ask(self) -> None:
        """Have all parts looked at; waits 30 ms at most, for those that were not looked at of late."""
        ask(self.all())

    def all(self) -> Sequence[Watched[Any]]:
        """Return everything that is looked at."""
        behind = [pooler.behind for pooler in self.poolers.values()]
        return [*self._vital(), *self._spare(), *behind, *self.sizes.values()]

    def state(self) -> State:
        """Return what all parts come to."""
        states = [part.health.state for part in self._vital()]
        spare = [part.health.state for part in self._spare()]
        backups = self.backups.status().health.state
        if backups is not State.UNKNOWN:
            spare.append(backups)
        states += [min(state, State.DEGRADED, key=_BADNESS.index) for state in spare]
        return max(states, key=_BADNESS.index)

    def _vital(self) -> list[Watched[Any]]:
        servers = [server.at for server in self.postgres.values()]
        return [*servers, *(pooler.at for pooler in self.poolers.values()), *self.domains.values()]

    def _spare(self) -> list[Watched[Any]]:
        return [*self.processes, *([self.redis] if self.redis is not None else [])]


# From the best to the worst.
_BADNESS = (State.OK, State.UNKNOWN, State.DEGRADED, State.DOWN)


def server_looks(ways: Mapping[str, Ways]) -> dict[str, ServerLook]:
    """Return who looks at each PostgreSQL, by its address."""
    return {address: ServerLook(dsn) for address, (dsn, _domains) in _straight(ways).items()}


def _servers(ways: Mapping[str, Ways]) -> dict[str, ServerParts]:
    made = {}
    for address, (dsn, domains) in _straight(ways).items():
        look = ServerLook(dsn)
        made[address] = ServerParts(Watched(f"postgres {address}", look.look, look.close), domains)
    return made


def _straight(ways: Mapping[str, Ways]) -> dict[str, tuple[str, list[str]]]:
    """Return a DSN of each PostgreSQL and the domains in it, by its address."""
    found: dict[str, tuple[str, list[str]]] = {}
    for domain, way in ways.items():
        dsn, domains = found.get(address_of(way.straight), (way.straight, []))
        # The role of administration may see most.
        found[address_of(way.straight)] = (way.straight if domain == "admin" else dsn, [*domains, domain])
    return found


def _poolers(ways: Mapping[str, Ways]) -> dict[str, PoolerParts]:
    found: dict[str, tuple[str, list[str]]] = {}
    for domain, way in ways.items():
        address = address_of(way.serving)
        if address != address_of(way.straight):
            _dsn, domains = found.get(address, ("", []))
            found[address] = (way.serving, [*domains, domain])
    made = {}
    for address, (dsn, domains) in found.items():
        look = PoolerLook(dsn)
        at = Watched(f"pooler {address}", look.look)
        made[address] = PoolerParts(at, Watched(f"behind pooler {address}", look.reach, look.close), domains)
    return made


def _redis(server: RedisServer) -> RedisFigures:
    try:
        return server.figures()
    except RedisAwayError:
        raise UnavailableError("does not answer") from None
