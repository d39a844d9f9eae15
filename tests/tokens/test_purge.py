"""What is over is removed in the background, and nobody takes it for active again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub

from kronos_db.runtime.database.background import Held
from kronos_db.tokens.store import TokensStore
from kronos_db.tokens.upkeep import Purge
from tests.parts.domain import opened, settings_of
from tests.parts.eventually import eventually
from tests.parts.serving import Serving
from tests.tokens.population import (
    introspect_jwt,
    is_active,
    issue,
    outcome,
    reason,
    refresh,
    register,
    rotate,
    unique,
)

HELD = Held(1, lambda: True)


class World:
    """A server of the test's own, its database, and the background work, to be run when the test says."""

    def __init__(self, serving: Serving, connection: psycopg.Connection[Any]) -> None:
        self.tokens = TokensServiceStub(serving.channel_of("operator"))
        self._connection = connection
        # The server's own would come in between.
        next(work for work in serving.server._domains._background if work.name == "purge-tokens").stop()
        database = serving.server._databases["tokens"]
        self.store = TokensStore(database)
        self.purge = Purge(database, self.store)

    def sql(self, text: str, *params: object) -> Any:
        found = self._connection.execute(text, params)  # type: ignore[arg-type]
        row = found.fetchone() if found.description else None
        return row[0] if row else None

    def age(self, days: int = 8) -> None:
        """Let so many days go by: for all tokens and revocations that there are."""
        for table, columns in {
            "token": ("purge_time", "revoke_time", "use_time", "seen_time", "issue_time", "grant_time", "expire_time"),
            "cutoff": ("revoke_time", "before", "until"),
        }.items():
            moved = ", ".join(f"{column} = {column} - interval '{days} days'" for column in columns)
            self.sql(f"UPDATE tokens.{table} SET {moved}")

    def multiply(self, number: int) -> None:
        """Add so many tokens that are like those that there are."""
        another = "jsonb_populate_record(token, jsonb_build_object('id', gen_random_uuid()))"
        self.sql(f"INSERT INTO tokens.token SELECT ({another}).* FROM tokens.token, generate_series(1, {number})")

    @property
    def rows(self) -> int:
        return int(self.sql("SELECT count(*) FROM tokens.token"))

    @property
    def cutoffs(self) -> int:
        return int(self.sql("SELECT count(*) FROM tokens.cutoff"))


@pytest.fixture
def world(fresh_serving: Serving) -> Iterator[World]:
    assert fresh_serving.settings.postgres_dsn is not None
    with psycopg.connect(fresh_serving.settings.postgres_dsn.get_secret_value(), autocommit=True) as connection:
        yield World(fresh_serving, connection)


def test_a_family_member_that_was_purged_is_not_active(world: World) -> None:
    tokens = world.tokens
    first = refresh(tokens)
    second = rotate(tokens, first.issued.secret)
    world.sql("UPDATE tokens.token SET purge_time = now() - interval '1 s' WHERE id = %s", first.issued.id)

    world.purge.run(HELD)

    assert reason(tokens, first.issued.secret) == "UNKNOWN"
    assert outcome(rotate(tokens, first.issued.secret)) == "REJECTED"
    # Nobody can tell any more that it was stolen: the family goes on.
    assert is_active(tokens, second.refresh.secret)


def test_what_is_over_for_long_goes_and_nothing_else(world: World) -> None:
    tokens = world.tokens
    used = refresh(tokens).issued
    rotate(tokens, used.secret)
    revoked = issue(tokens, pb.TOKEN_KIND_API_KEY).issued
    tokens.RevokeToken(pb.RevokeTokenRequest(token=revoked.secret))
    world.age()
    alive = [issue(tokens).issued.secret, refresh(tokens).issued.secret]

    world.purge.run(HELD)

    # Two sessions and an access token; the successor and the access tokens of before expired in those days too.
    assert world.rows == 3
    assert all(is_active(tokens, text) for text in alive)
    for text in (used.secret, revoked.secret):
        assert reason(tokens, text) == "UNKNOWN"


def test_an_api_key_that_nobody_used_goes_too(world: World) -> None:
    wanted = pb.Token(
        kind=pb.TOKEN_KIND_API_KEY,
        subject_kind=pb.SUBJECT_KIND_SERVICE,
        subject=unique(),
        idle_timeout=Duration(seconds=60),
    )
    issued = world.tokens.IssueToken(pb.IssueTokenRequest(token=wanted)).issued
    world.purge.run(HELD)
    assert world.rows == 1
    world.age()

    assert reason(world.tokens, issued.secret) == "IDLE"
    world.purge.run(HELD)
    assert world.rows == 0


def test_in_bounded_steps(world: World) -> None:
    issue(world.tokens)
    world.multiply(2500)
    world.sql("UPDATE tokens.token SET purge_time = now() - interval '5 s'")

    assert 4 < world.store.purge_lag() < 60
    assert [world.store.purge() for _ in range(4)] == [1000, 1000, 501, 0]
    assert world.store.purge_lag() == 0


def test_it_stops_when_it_is_told_to(world: World) -> None:
    issue(world.tokens)
    world.age()

    world.purge.run(Held(1, lambda: False))

    assert world.rows == 1


def test_the_lag_is_told_by_the_process_that_purges(fresh_serving: Serving) -> None:
    labels = {"domain": "tokens", "work": "purge-tokens"}

    def lag() -> float | None:
        return fresh_serving.server.registry.get_sample_value("kronos_db_background_lag_seconds", labels)

    eventually(lambda: lag() == 0.0, 20)


class TestRevocationsOfMany:
    """They are marked on each token, and go when nobody needs them."""

    def test_nothing_comes_back_when_they_go(self, world: World) -> None:
        tokens = world.tokens
        subject, client, device = unique(), unique("client"), unique("device")
        revoked = [
            issue(tokens, **named).issued.secret
            for named in ({"subject": subject}, {"client_id": client}, {"device_id": device})
        ]
        family = refresh(tokens).issued
        old = register(tokens)
        tokens.RevokeTokens(pb.RevokeTokensRequest(subject=subject))
        tokens.RevokeTokens(pb.RevokeTokensRequest(client_id=client))
        tokens.RevokeTokens(pb.RevokeTokensRequest(device_id=device))
        tokens.RevokeToken(pb.RevokeTokenRequest(token=family.secret))
        tokens.RevokeTokens(pb.RevokeTokensRequest(everything=True, issued_before=old.issue_time))
        later = [issue(tokens, subject=subject, client_id=client, device_id=device).issued.secret]
        assert world.cutoffs == 5

        world.purge.run(HELD)
        assert world.cutoffs == 5
        world.sql("UPDATE tokens.cutoff SET revoke_time = now() - interval '25 hours', until = now()")
        world.purge.run(HELD)

        assert world.cutoffs == 0
        for text in (*revoked, family.secret):
            assert reason(tokens, text) == "REVOKED"
        assert all(is_active(tokens, text) for text in later)
        assert introspect_jwt(tokens, old.jwt_id).active
        # A week later the rows go.
        kept = "revoke_time IS NOT NULL AND purge_time < now() + interval '7 days 1 hour'"
        assert world.sql(f"SELECT count(*) FROM tokens.token WHERE {kept}") == 5

    def test_they_stay_as_long_as_a_jwt_of_theirs(self, world: World) -> None:
        subject = unique()
        jwt = register(world.tokens, subject=subject)
        world.tokens.RevokeTokens(pb.RevokeTokensRequest(subject=subject))
        world.sql("UPDATE tokens.cutoff SET revoke_time = now() - interval '25 hours'")

        world.purge.run(HELD)

        assert world.sql("SELECT marked FROM tokens.cutoff")
        # The JWT has a day to live, and is known to be revoked as long.
        assert world.cutoffs == 1
        assert not introspect_jwt(world.tokens, jwt.jwt_id).active
        assert world.sql("SELECT purge_time > expire_time FROM tokens.token WHERE jwt_id = %s", jwt.jwt_id)
        # Another revocation of the same begins anew.
        world.tokens.RevokeTokens(pb.RevokeTokensRequest(subject=subject))
        assert not world.sql("SELECT marked FROM tokens.cutoff")
        world.sql("UPDATE tokens.cutoff SET until = now(), revoke_time = now() - interval '25 hours'")
        world.purge.run(HELD)
        assert world.cutoffs == 0
        assert not introspect_jwt(world.tokens, jwt.jwt_id).active

    def test_many_tokens_in_bounded_steps(self, world: World) -> None:
        subject = unique()
        issue(world.tokens, subject=subject)
        world.multiply(2500)
        assert world.tokens.RevokeTokens(pb.RevokeTokensRequest(subject=subject)).revoked_count == 2501
        world.sql("UPDATE tokens.cutoff SET revoke_time = now() - interval '25 hours'")

        world.purge.run(HELD)

        assert world.sql("SELECT count(*) FROM tokens.token WHERE revoke_time IS NULL") == 0
        assert world.cutoffs == 0


def test_a_database_without_tokens(postgres: Any, database: str, tmp_path: Path) -> None:
    with opened(settings_of(tmp_path / "own", database), "tokens") as empty:
        store = TokensStore(empty)

        assert store.purge() == 0
        assert store.purge_lag() == 0
        store.mark_cutoffs(lambda: True)
