"""Who has all of PostgreSQL and all of Redis has no token that anybody accepts."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub

from kronos_db.embedded.redis import EmbeddedRedis
from kronos_db.tokens.store import TokensStore
from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.tokens.population import is_active, new, outcome, refresh, register, rotate

# What could be a token, or part of one, in what was dumped.
WORD = re.compile(rb"[0-9A-Za-z_.+/=-]{4,}")


@pytest.fixture
def running(database: str, tmp_path: Path, redis_server: EmbeddedRedis) -> Iterator[Serving]:
    serving = Serving(tmp_path, database, redis_url=redis_server.url)
    serving.start()
    yield serving
    serving.stop()


def dump_of(dsn: str, redis_url: str) -> bytes:
    """All that is in the schema, as text, and all that is in Redis."""
    found = []
    with psycopg.connect(dsn) as connection:
        tables = connection.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'tokens'")
        for (table,) in tables.fetchall():
            for (row,) in connection.execute(f"SELECT t::text FROM tokens.{table} AS t"):  # type: ignore[arg-type]
                found.append(row.encode())
            # What is in bytes may hold text.
            columns = connection.execute(
                "SELECT column_name FROM information_schema.columns"
                " WHERE table_schema = 'tokens' AND table_name = %s AND data_type = 'bytea'",
                [table],
            )
            for (column,) in columns.fetchall():
                rows = connection.execute(f"SELECT {column} FROM tokens.{table} WHERE {column} IS NOT NULL")  # type: ignore[arg-type]
                found += [bytes(row[0]) for row in rows]
    with redis.Redis.from_url(redis_url) as client:
        found += [value for key in client.scan_iter() for value in (key, client.dump(key) or b"")]  # type: ignore[no-untyped-call]
    return b"\n".join(found)


def test_nothing_that_was_found_is_accepted(running: Serving, redis_server: EmbeddedRedis) -> None:
    tokens = TokensServiceStub(running.channel_of("operator"))
    sensitive = f"claim-{uuid4().hex}"
    issued = tokens.IssueToken(
        pb.IssueTokenRequest(
            token=new(
                pb.TOKEN_KIND_REFRESH,
                sensitive_claims=sensitive,
                ip_address="192.0.2.77",
                device_name=f"phone-{sensitive}",
            ),
            request_id=str(uuid4()),
        )
    )
    rotated = rotate(tokens, issued.issued.secret, request_id=str(uuid4()))
    replayed = refresh(tokens)
    again = rotate(tokens, replayed.issued.secret)
    register(tokens, sensitive_claims=sensitive)
    secrets = [
        answer.secret
        for answer in (
            issued.issued,
            issued.access,
            rotated.refresh,
            rotated.access,
            again.refresh,
            again.access,
        )
    ]
    for text in secrets:
        is_active(tokens, text)
    tokens.ListSessions(pb.ListSessionsRequest(subject=issued.issued.token.subject))
    assert running.settings.postgres_dsn is not None

    dump = dump_of(running.settings.postgres_dsn.get_secret_value(), redis_server.url)

    # The dump is what it should be: ids are there, and the answers that are kept for repeats.
    assert issued.issued.id.encode() in dump
    assert issued.issued.token.subject.encode() in dump
    # No secret, not even its random part; and nothing that is sealed.
    for text in secrets:
        assert text.encode() not in dump
        assert text[44:-8].encode() not in dump
    for value in (sensitive, "192.0.2.77"):
        assert value.encode() not in dump
    # Whatever is presented is refused, as a token and as a refresh token.
    words = sorted({word.decode() for word in WORD.findall(dump)}, key=len, reverse=True)
    assert len(words) > 50
    for start in range(0, len(words), 1000):
        batch = [pb.IntrospectTokenRequest(token=word[:8192]) for word in words[start : start + 1000]]
        answer: Any = tokens.BatchIntrospectTokens(pb.BatchIntrospectTokensRequest(requests=batch))
        assert not any(each.active for each in answer.introspections)
    for word in words[:200]:
        assert outcome(rotate(tokens, word[:8192])) == "REJECTED"


def test_no_secret_is_in_the_log(
    database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = Serving(tmp_path, database, log_level="debug")
    serving.start()
    try:
        tokens = TokensServiceStub(serving.channel_of("operator"))
        first = refresh(tokens, ip_address="192.0.2.77", sensitive_claims="sesame").issued
        second = rotate(tokens, first.secret).refresh
        # Refused, reused, and failed for a reason that nobody foresaw.
        refused(lambda: is_active(tokens, first.secret + "x" * 8192))
        assert outcome(rotate(tokens, rotate(tokens, second.secret).refresh.secret)) == "ROTATED"
        assert outcome(rotate(tokens, first.secret)) == "REUSE_DETECTED"
        monkeypatch.setattr(TokensStore, "revoke", lambda *_: 1 // 0)
        assert refused(lambda: tokens.RevokeToken(pb.RevokeTokenRequest(token=second.secret))).code == "INTERNAL"
    finally:
        serving.stop()

    logged = "".join(capfd.readouterr())
    assert "ZeroDivisionError" in logged
    assert "a refresh token was presented again" in logged
    for value in (first.secret, second.secret, first.secret[44:-8], second.secret[44:-8], "192.0.2.77", "sesame"):
        assert value not in logged


def test_a_hash_in_the_place_of_a_secret_is_refused(running: Serving) -> None:
    """Made up into the form of a token, with mark, id and checksum all right."""
    tokens = TokensServiceStub(running.channel_of("operator"))
    issued = refresh(tokens).issued
    assert running.settings.postgres_dsn is not None
    with psycopg.connect(running.settings.postgres_dsn.get_secret_value()) as connection:
        row = connection.execute("SELECT mark, hash FROM tokens.token WHERE id = %s", [issued.id]).fetchone()
    assert row is not None
    mark, hash_ = row
    for part in (hash_.hex()[:43], hash_.hex()[-43:], "0" * 43):
        body = f"krr_{mark}{issued.id.replace('-', '')}{part}"
        forged = f"{body}{zlib.crc32(body.encode()):08x}"
        assert not is_active(tokens, forged)
        assert outcome(rotate(tokens, forged)) == "REJECTED"
    assert is_active(tokens, issued.secret)
