"""A Redis whose master sentinels name: when it dies its replica is asked, and nobody gets an error meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kronos_db.routes.counters import Counters
from kronos_db.routes.demands import Demand
from kronos_db.routes.limiter import Limiter
from kronos_db.routes.model import Failure
from kronos_db.runtime.cache.remote import Kept, Remote
from kronos_db.runtime.redis import RedisServer
from tests.parts.domain import opened, settings_of
from tests.parts.eventually import eventually
from tests.parts.redis_nodes import LIMIT, Watched
from tests.scale.test_redis_cluster import rule


def test_the_replica_is_asked_after_its_master_has_died(watched: Watched, database: str, tmp_path: Path) -> None:
    server = RedisServer(watched.url)
    remote = Remote(server, b"k" * 32)
    values = {f"copy {number}": Kept(b"value", 77, (16,), int((time.time() + 600) * 1000)) for number in range(9)}
    with opened(settings_of(tmp_path / "routes", database), "routes") as routes:
        limiter = Limiter(server, Counters(routes))
        demand = Demand([rule(5, Failure.ALLOW)], ["ab" * 16])
        remote.put(values)
        assert remote.get(list(values)) == values
        assert [limiter.decide([demand])[0].allowed for _ in range(6)] == [True] * 5 + [False]
        eventually(lambda: watched.replica.ask("DBSIZE") == watched.master.ask("DBSIZE"), LIMIT)
        watched.master.kill()

        assert remote.get(list(values)) == {}
        assert limiter.decide([demand])[0].allowed, "its failure mode"
        eventually(lambda: remote.get(list(values)) == values, LIMIT)
        assert not limiter.decide([demand])[0].allowed, "the replica knows what was used"
        remote.put({"new": values["copy 1"]})
        assert remote.get(["new"])
        assert watched.replica.ask("EXISTS", "new") == 1
    remote.close()
    server.close()


def test_without_any_sentinel_nothing_fails() -> None:
    server = RedisServer("redis+sentinel://127.0.0.1:1,127.0.0.1:2/kronos")
    assert Remote(server, b"k" * 32).get(["a"]) == {}
    assert server.is_away


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("redis+sentinel://ann:p%40w@a:1/kronos?db=3", {"username": "ann", "password": "p@w", "db": 3}),
        ("rediss+sentinel://:pw@a/kronos?sentinel_password=other", {"password": "pw"}),
    ],
)
def test_logins(url: str, login: dict[str, object]) -> None:
    pool = RedisServer(url)._client.commands().connection_pool
    assert login.items() <= pool.connection_kwargs.items()
    sentinel = pool.sentinel_manager.sentinels[0].connection_pool.connection_kwargs
    assert sentinel.get("password") == ("other" if "other" in url else None)
