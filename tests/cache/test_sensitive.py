"""Sensitive namespaces: values are sealed wherever they are kept, and open in their own place alone."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import uuid4

import psycopg
import pytest
import redis
from kronos.cache.v1 import cache_pb2 as pb

from kronos_db.embedded.redis import EmbeddedRedis
from kronos_db.runtime.cache.memory import Entry, Memory
from tests.cache.population import fill, get, lease, new_namespace, put, seconds, stub, value
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import Serving

SECRET = b"a value that nobody else is to see"


@pytest.mark.parametrize(
    "storage", [pb.NAMESPACE_STORAGE_MEMORY, pb.NAMESPACE_STORAGE_DURABLE], ids=["memory", "durable"]
)
def test_it_comes_back_whatever_way(serving: Serving, storage: int) -> None:
    cache = stub(serving)
    name = new_namespace(cache, storage=storage, sensitive=True)
    put(cache, name, "a", SECRET, ttl=seconds(0.001), stale_time=seconds(100))
    put(cache, name, "b", SECRET + b"b")
    put(cache, name, "c", b"")
    eventually(lambda: value(cache, name, "a") is None)

    leased = lease(cache, name, "a")[0]

    assert leased.entry.value == SECRET
    assert [each.entry.value for each in lease(cache, name, "a", "b")] == [SECRET, SECRET + b"b"]
    assert [entry.value for entry in get(cache, name, "b", "c", "b").entries] == [SECRET + b"b", b"", SECRET + b"b"]
    assert value(cache, name, "b") == SECRET + b"b"
    assert fill(cache, name, leased, SECRET + b"a").outcome == pb.FILL_OUTCOME_STORED
    assert value(cache, name, "a") == SECRET + b"a"


def test_nothing_that_is_kept_shows_it(
    database: str,
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: EmbeddedRedis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies: list[bytes] = []
    original = Memory.put

    def kept_in_memory(self: Memory, shelf: int, entries: Mapping[str, Entry]) -> None:
        copies.extend(entry.value for entry in entries.values())
        original(self, shelf, entries)

    monkeypatch.setattr(Memory, "put", kept_in_memory)
    serving = Serving(tmp_path_factory.mktemp("sensitive"), database, redis_url=redis_server.url)
    serving.start()
    try:
        cache = stub(serving)
        name, plain = new_namespace(cache, sensitive=True), new_namespace(cache)
        entries = [pb.EntryWrite(key="a", value=SECRET)]
        cache.PutEntries(pb.PutEntriesRequest(namespace=name, entries=entries, request_id=str(uuid4())))
        put(cache, plain, "a", b"plain to see")
        assert (value(cache, name, "a"), value(cache, plain, "a")) == (SECRET, b"plain to see")
        with redis.Redis.from_url(redis_server.url) as client:
            kept = lambda: b"".join(client.get(key) or b"" for key in client.scan_iter("kronos-db:*"))  # noqa: E731
            eventually(lambda: b"plain to see" in kept())
            assert SECRET not in kept()
        assert any(b"plain to see" in copy for copy in copies)
        assert not any(SECRET in copy for copy in copies)
        with psycopg.connect(database) as admin:
            for table in ("entry", "change", "idempotency"):
                rows = admin.execute(f"SELECT {table}::text FROM cache.{table}").fetchall()
                assert rows
                assert not any(form in row[0] for (*row,) in rows for form in (SECRET.decode(), SECRET.hex()))
    finally:
        serving.stop()


def test_a_sealed_value_opens_in_its_place_alone(serving: Serving) -> None:
    cache = stub(serving)
    name = new_namespace(cache, sensitive=True)
    put(cache, name, "a", SECRET)
    put(cache, name, "b", b"another")
    dsn = serving.settings.postgres_dsn
    assert dsn is not None
    with psycopg.connect(dsn.get_secret_value(), autocommit=True) as admin:
        admin.execute(
            "UPDATE cache.entry SET value = (SELECT value FROM cache.entry AS other WHERE other.key = 'a'"
            " AND other.namespace_id = entry.namespace_id) FROM cache.namespace"
            " WHERE namespace.id = entry.namespace_id AND name = %s AND key = 'b'",
            [name],
        )

    refusal = refused(lambda: get(cache, name, "b"))

    assert (refusal.code, refusal.reason) == ("DATA_LOSS", "SEALED_VALUE_INVALID")
    assert value(cache, name, "a") == SECRET
