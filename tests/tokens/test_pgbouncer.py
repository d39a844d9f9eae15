"""Tokens through a pgBouncer in transaction mode, with prepared statements and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub
from psycopg.conninfo import conninfo_to_dict

from kronos_db.runtime.database.background import Held
from kronos_db.tokens.store import TokensStore
from kronos_db.tokens.upkeep import Purge
from tests.parts.pgbouncer import PgBouncer
from tests.parts.serving import Serving
from tests.tokens.population import introspect_jwt, is_active, issue, outcome, refresh, register, rotate, sessions


@pytest.fixture(params=["pgbouncer_118", "pgbouncer_124"])
def behind(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[Serving]:
    way: PgBouncer = request.getfixturevalue(request.param)
    parts = conninfo_to_dict(database)
    through = way.dsn(str(parts["user"]), str(parts["password"]), str(parts["dbname"]))
    prepared = request.param == "pgbouncer_124"
    running = Serving(tmp_path, through, postgres_direct_dsn=database, prepared_statements=prepared)
    running.start()
    yield running
    running.stop()


def test_every_statement(behind: Serving) -> None:
    tokens = TokensServiceStub(behind.channel_of("operator"))
    # Often enough that statements would be prepared.
    for _ in range(8):
        first = refresh(tokens, idle_timeout=Duration(seconds=60), claims={"x": 1}, client_id="web")
        subject = first.issued.token.subject
        session = issue(tokens, subject=subject, device_id="device").issued
        jwt = register(tokens, subject=subject)
        assert is_active(tokens, first.issued.secret)
        assert introspect_jwt(tokens, jwt.jwt_id).active
        second = rotate(tokens, first.issued.secret)
        assert outcome(rotate(tokens, first.issued.secret)) == "REPLAYED"
        assert len(sessions(tokens, subject)) == 2
        tokens.UpdateToken(pb.UpdateTokenRequest(token=pb.Token(id=session.id, claims={"y": 2})))
        tokens.RevokeToken(pb.RevokeTokenRequest(token=second.refresh.secret))
        assert tokens.RevokeTokens(pb.RevokeTokensRequest(device_id="device")).revoked_count == 1
        assert tokens.RevokeTokens(pb.RevokeTokensRequest(subject=subject)).revoked_count == 1
        assert not is_active(tokens, session.secret)
        behind.server._domains._uses.flush()
    stream = tokens.WatchRevocations(pb.WatchRevocationsRequest(), timeout=20)
    assert len(next(stream).snapshot) == 9
    stream.cancel()
    database = behind.server._databases["tokens"]
    Purge(database, TokensStore(database)).run(Held(1, lambda: True))
