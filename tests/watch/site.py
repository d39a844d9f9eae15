"""A fleet with all that it stands on, each part of its own, below a real Prometheus."""

from __future__ import annotations

from pathlib import Path
from typing import Any, LiteralString

import grpc
import psycopg

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.embedded.redis import EmbeddedRedis
from tests.parts.eventually import eventually
from tests.parts.fleet import Fleet
from tests.parts.prometheus import Prometheus
from tests.parts.serving import _Bearer

# Seconds that anything may take on a loaded machine.
LIMIT = 110.0


class Site:
    """Two serving processes with PostgreSQL, Redis, backups and Prometheus, all below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = EmbeddedPostgres(folder / "postgres", {"fsync": "off"})
        self.redis = EmbeddedRedis(folder / "redis")
        self.backups = folder / "backups"
        self.channel: grpc.Channel

    def start(self) -> None:
        """Start everything; the fleet serves and is scraped when this returns."""
        self.postgres.start()
        self.redis.start()
        self.fleet = Fleet(
            self.folder,
            self.postgres.dsn,
            redis_url=self.redis.url,
            backup_destination=str(self.backups),
            backup_scratch_folder=self.folder / "scratch",
            pool_max_size=3,
            pool_timeout=1.0,
            domain_concurrent_calls=24,
        )
        self.fleet.start()
        self.prometheus = Prometheus(self.folder / "prometheus", [self.fleet.settings.ops_listen])
        self.prometheus.start()
        self.fleet.await_ready()
        self.channel = grpc.insecure_channel(self.fleet.settings.grpc_listen, [("grpc.use_local_subchannel_pool", 1)])

    def stop(self) -> None:
        """End everything."""
        if hasattr(self, "channel"):
            self.channel.close()
        for part in ("prometheus", "fleet"):
            if hasattr(self, part):
                getattr(self, part).stop()
        self.redis.stop()
        self.postgres.stop("immediate")

    def channel_of(self, caller: str) -> grpc.Channel:
        """A channel whose calls carry the bearer token of `caller`."""
        return grpc.intercept_channel(self.channel, _Bearer(self.fleet.tokens[caller]))

    def run(self, statement: LiteralString, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement as superuser; return the rows of one that has columns."""
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            found = connection.execute(statement, parameters)
            return found.fetchall() if found.description else []

    def fires(self, *names: str) -> None:
        """Return when all these alerts have fired, not all at the same time; check that what they say is whole."""
        left = set(names)

        def fired() -> bool:
            for name, alerts in self.prometheus.firing().items():
                if name in left:
                    left.discard(name)
                    for text in alerts[0]["annotations"].values():
                        assert text, name
                        assert "<no value>" not in text, (name, text)
                        assert "error expanding" not in text, (name, text)
            return not left

        eventually(fired, LIMIT, lambda: ("not fired", left, "firing", self.prometheus.firing().keys()))

    def is_silent(self, *names: str) -> None:
        """Return when none of these alerts fires any more."""
        eventually(lambda: not self.prometheus.firing().keys() & set(names), LIMIT, self.prometheus.firing)
