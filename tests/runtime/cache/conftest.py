"""Fixtures of the tests of copies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from kronos_db.embedded.redis import EmbeddedRedis
from kronos_db.runtime.cache import board as board_module
from kronos_db.runtime.cache import engine as module
from kronos_db.runtime.cache.board import Board
from kronos_db.runtime.cache.engine import Cache, Kind, Rules
from kronos_db.runtime.cache.memory import Memory
from kronos_db.runtime.cache.remote import Remote
from kronos_db.runtime.redis import RedisServer
from tests.runtime.cache.copied import (
    Clock,
    Process,
    Source,
    begun,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(board_module, "now", clock.now)
    monkeypatch.setattr(module, "now", clock.now)
    monkeypatch.setattr(module.time, "time", clock.time)
    return clock


@pytest.fixture
def source() -> Source:
    source = Source()
    source.values["a"] = b"old"
    return source


@pytest.fixture
def board(source: Source) -> Board:
    return begun(source, Board())


@pytest.fixture
def raw(redis_server: EmbeddedRedis) -> Iterator[Any]:
    """The Redis of the tests, empty."""
    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def process(source: Source, raw: Any, redis_server: EmbeddedRedis) -> Iterator[Process]:
    """Makes a kind as another process has it: with memory and a way to Redis of its own."""
    remotes = []

    def make(board: Board, **rules: Any) -> Kind:
        remote = Remote(RedisServer(redis_server.url), b"k" * 32)
        remotes.append(remote)
        return Cache(board, Memory(1 << 20), remote).kind(Rules("kind", **{"remote": True, **rules}), source.load)

    yield make
    for remote in remotes:
        remote.close()
        remote.server.close()
