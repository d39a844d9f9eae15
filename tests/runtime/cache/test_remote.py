"""Copies in Redis: what is not ours is not found, and a Redis that does not answer costs its timeout once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from kronos_db.embedded.redis import EmbeddedRedis
from kronos_db.runtime import redis as module
from kronos_db.runtime.cache import remote as remote_module
from kronos_db.runtime.cache.remote import Kept, Remote
from kronos_db.runtime.redis import RedisServer
from kronos_db.runtime.redis_clients import WHOLE
from tests.parts.eventually import eventually

KEY = b"k" * 32
# What a call that waits for Redis may take at most: the timeout, and what a busy machine adds.
_ENOUGH = 2.0


class Clock:
    """Stands in for `time` of the module: its monotonic time goes on when the test says so."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def server(redis_server: EmbeddedRedis) -> Iterator[EmbeddedRedis]:
    """The Redis of the tests, empty; it runs again afterwards."""
    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    yield redis_server
    if redis_server.pid is not None:
        os.kill(redis_server.pid, signal.SIGCONT)
    redis_server.start()


@pytest.fixture
def remote(server: EmbeddedRedis) -> Iterator[Remote]:
    remote = Remote(RedisServer(server.url), KEY)
    yield remote
    remote.close()


@pytest.fixture
def raw(server: EmbeddedRedis) -> Iterator[Any]:
    """The same Redis as anybody else sees it."""
    with redis.Redis.from_url(server.url) as client:
        yield client


def kept(value: bytes = b"value", seconds: float = 60.0) -> Kept:
    return Kept(value, 77, (16, 65_551), int((time.time() + seconds) * 1000))


def wait_for(remote: Remote, names: list[str]) -> None:
    eventually(lambda: len(remote.get(names)) == len(names))


def hang(server: EmbeddedRedis) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)


def resume(server: EmbeddedRedis) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    "make",
    [
        lambda until: {"a": Kept(b"value", 77, (16, 65_551), until)},
        lambda until: {"a": Kept(b"", 77, (16,), until), "b": Kept(b"\x00" * 70_000, (1 << 63) + 1, (), until)},
        lambda until: {str(n): Kept(bytes([n]), n, (n,) * n, until) for n in range(1, 50)},
    ],
)
def test_what_is_kept_is_found(remote: Remote, make: Callable[[int], dict[str, Kept]]) -> None:
    values = make(kept().until)
    remote.put(values)
    assert remote.get([*values, "another"]) == values


def test_a_copy_is_gone_at_its_end(remote: Remote, raw: Any) -> None:
    remote.put({"a": kept(seconds=60), "b": kept(seconds=-1)})
    assert remote.get(["b"]) == {}
    assert 50_000 < raw.pttl("a") <= 60_000


def test_a_single_wrong_bit_is_not_found(remote: Remote, raw: Any) -> None:
    remote.put({"a": kept()})
    whole = raw.get("a")
    for position in range(len(whole)):
        forged = bytearray(whole)
        forged[position] ^= 1
        raw.set("a", bytes(forged))
        assert remote.get(["a"]) == {}, f"byte {position} was forged"
    raw.set("a", whole)
    assert list(remote.get(["a"])) == ["a"]


def test_no_part_of_a_copy_and_nothing_longer_is_found(remote: Remote, raw: Any) -> None:
    remote.put({"a": kept()})
    whole = raw.get("a")
    for text in [*(whole[:length] for length in range(len(whole))), whole + b"\x00"]:
        raw.set("a", text)
        assert remote.get(["a"]) == {}, f"{len(text)} bytes of {len(whole)}"


def test_a_copy_under_another_name_is_not_found(remote: Remote, raw: Any) -> None:
    remote.put({"a": kept(b"of a"), "b": kept(b"of b")})
    of_a, of_b = raw.mget("a", "b")
    raw.mset({"a": of_b, "b": of_a})
    assert remote.get(["a", "b"]) == {}


def test_a_name_cannot_take_bytes_from_the_value(remote: Remote, raw: Any) -> None:
    """The name and what follows it are told apart: what is authentic as a whole is not so with another border."""
    remote.put({"ab": kept()})
    mac, body = raw.get("ab")[:16], raw.get("ab")[16:]
    raw.set("a", mac + b"b" + body)
    assert remote.get(["a"]) == {}


def test_copies_of_another_key_are_not_found(server: EmbeddedRedis, remote: Remote) -> None:
    stranger = Remote(RedisServer(server.url), b"x" * 32)
    stranger.put({"a": kept()})
    assert list(stranger.get(["a"])) == ["a"]
    assert remote.get(["a"]) == {}
    stranger.close()


def test_what_is_no_text_is_not_found(remote: Remote, raw: Any) -> None:
    raw.rpush("a", "element")
    remote.put({"b": kept()})
    assert list(remote.get(["a", "b"])) == ["b"]
    assert remote.server.failures == 0


def test_a_hung_redis_costs_its_timeout_once_and_is_then_left_alone(
    server: EmbeddedRedis, remote: Remote, clock: Clock
) -> None:
    remote.put({"a": kept()})
    hang(server)
    started = time.monotonic()
    assert remote.get(["a"]) == {}
    assert time.monotonic() - started < _ENOUGH
    assert remote.is_away
    started = time.monotonic()
    for _ in range(100):
        assert remote.get(["a"]) == {}
        assert remote.lock("lock", 1.0) is not None
        remote.unlock("lock", "token")
        remote.put({"b": kept()})
    assert time.monotonic() - started < module.TIMEOUT, "asked although it is away"
    assert remote.server.failures == 1
    resume(server)
    clock.ahead += module._FIRST_PAUSE
    assert list(remote.get(["a"])) == ["a"]
    assert not remote.is_away


def test_a_killed_redis_is_left_alone_and_comes_back(server: EmbeddedRedis, remote: Remote, clock: Clock) -> None:
    remote.put({"a": kept()})
    server.kill()
    started = time.monotonic()
    assert remote.get(["a"]) == {}
    assert time.monotonic() - started < _ENOUGH
    server.start()
    assert remote.get(["a"]) == {}
    assert remote.is_away
    clock.ahead += module._FIRST_PAUSE
    remote.put({"a": kept()})
    assert list(remote.get(["a"])) == ["a"]
    assert remote.server.failures == 1


def test_pauses_grow_to_a_bound_and_begin_anew(server: EmbeddedRedis, remote: Remote, clock: Clock) -> None:
    server.kill()
    pauses = []
    for _ in range(7):
        remote.get(["a"])
        pauses.append(round(remote.server._away_until[WHOLE] - clock.monotonic(), 1))
        clock.ahead += module._LONGEST_PAUSE
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    server.start()
    remote.get(["a"])
    server.kill()
    remote.get(["a"])
    assert round(remote.server._away_until[WHOLE] - clock.monotonic(), 1) == module._FIRST_PAUSE


def test_calls_that_fail_together_are_one_failure(server: EmbeddedRedis, remote: Remote) -> None:
    hang(server)
    together = threading.Barrier(8)

    def ask() -> None:
        together.wait(_ENOUGH)
        remote.get(["a"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_ENOUGH)
    assert remote.server._pauses[WHOLE] == 2 * module._FIRST_PAUSE


def test_a_redis_that_refuses_is_away_too(remote: Remote, raw: Any) -> None:
    raw.config_set("maxmemory", "1")
    raw.config_set("maxmemory-policy", "noeviction")
    try:
        remote.put({"a": kept()})
        assert (remote.is_away, remote.server.failures) == (True, 1)
    finally:
        raw.config_set("maxmemory", "64mb")
        raw.config_set("maxmemory-policy", "allkeys-lru")


def test_copies_are_kept_soon(remote: Remote) -> None:
    for number in range(20):
        remote.put_soon({f"{number}": kept()})
    wait_for(remote, [f"{number}" for number in range(20)])


@pytest.mark.parametrize("size", [1, remote_module._MOST_AT_ONCE, 3 * remote_module._MOST_AT_ONCE])
def test_batches_of_any_size_are_kept_one_after_the_other(remote: Remote, size: int) -> None:
    for batch in range(3):
        names = [f"{batch}:{number}" for number in range(size)]
        remote.put_soon({name: kept() for name in names})
        wait_for(remote, names)
    assert remote._writer.is_alive()


def test_what_waits_for_a_hung_redis_is_bounded_and_the_rest_dropped(
    server: EmbeddedRedis, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, let_go = threading.Event(), threading.Event()

    def stuck(values: object) -> None:
        entered.set()
        assert let_go.wait(_ENOUGH * 5)

    monkeypatch.setattr(remote, "put", stuck)
    remote.put_soon({"first": kept()})
    assert entered.wait(_ENOUGH)
    started = time.monotonic()
    for number in range(remote_module._MOST_WAITING + 10):
        remote.put_soon({f"{number}": kept()})
    assert time.monotonic() - started < _ENOUGH, "nobody waits for room"
    assert remote.dropped == 10
    assert remote._waiting.qsize() == remote_module._MOST_WAITING
    let_go.set()
    eventually(remote._waiting.empty)


def test_closing_ends_the_writer_whatever_waits(server: EmbeddedRedis) -> None:
    idle, busy = Remote(RedisServer(server.url), KEY), Remote(RedisServer(server.url), KEY)
    hang(server)
    for _ in range(2 * remote_module._MOST_WAITING):
        busy.put_soon({"a": kept()})
    for remote in (idle, busy):
        remote.close()
        remote._writer.join(_ENOUGH)
        assert not remote._writer.is_alive()


def test_a_lock_is_had_by_one_until_it_is_opened(remote: Remote) -> None:
    token = remote.lock("lock", 60.0)
    assert token is not None
    assert remote.lock("lock", 60.0) is None
    assert remote.lock("another", 60.0) is not None
    remote.unlock("lock", token)
    assert remote.lock("lock", 60.0) is not None


def test_the_lock_of_another_is_not_opened(remote: Remote, raw: Any) -> None:
    first = remote.lock("lock", 60.0)
    assert first is not None
    raw.delete("lock")
    assert remote.lock("lock", 60.0) not in {None, first}
    remote.unlock("lock", first)
    assert remote.lock("lock", 60.0) is None


def test_a_lock_opens_by_itself(remote: Remote, raw: Any) -> None:
    assert remote.lock("long", 60.0) is not None
    assert 20_000 < raw.pttl("long") <= 60_000
    assert remote.lock("lock", 0.02) is not None
    eventually(lambda: remote.lock("lock", 60.0) is not None)


def test_without_redis_everybody_has_the_lock(server: EmbeddedRedis, remote: Remote) -> None:
    server.kill()
    assert remote.lock("lock", 60.0) is not None
    assert remote.lock("lock", 60.0) is not None
