"""A server with Redis for the tests of routes, and stand-ins for what Users and Tokens know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from kronos.routes.v1.routes_pb2_grpc import RoutesServiceStub

from kronos_db.domains import Domains
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.embedded.redis import EmbeddedRedis
from kronos_db.runtime.errors import BadRequestError
from tests.parts.serving import Serving
from tests.routes.population import stub

ANN, BOB, SUSPENDED = (f"01a20747-db40-762b-bf27-00000000000{number}" for number in range(1, 4))
TOKEN = "a token that is valid"


class Platform:
    """Knows Ann, who may read orders everywhere and write them in one tenant, and Bob, who may nothing."""

    asked = 0

    def active(self, user_ids: Sequence[str]) -> frozenset[str]:
        return frozenset(user_ids) & {ANN, BOB}

    def may(self, questions: Sequence[tuple[str, str, str]]) -> list[bool]:
        Platform.asked += 1
        if any(" " in scope for _, _, scope in questions):
            raise BadRequestError.of("scope", "is none")
        granted = {(ANN, "orders:read", ""), (ANN, "orders:write", "tenant/acme")}
        return [
            (user, permission, scope) in granted or (user, permission, "") in granted
            for user, permission, scope in questions
        ]

    def identify(self, tokens: Sequence[str]) -> Sequence[SimpleNamespace | None]:
        identity = SimpleNamespace(subject=ANN, client="mobile", scopes=["orders"])
        return [identity if token == TOKEN else None for token in tokens]


@pytest.fixture(scope="session")
def platform(
    postgres: EmbeddedPostgres, redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE routes_platform")
    with pytest.MonkeyPatch.context() as patch:
        built = Domains._new_routes
        known: Any = Platform()
        patch.setattr(Domains, "_new_routes", lambda domains, parts, *_: built(domains, parts, known, known))
        running = Serving(
            tmp_path_factory.mktemp("platform"), postgres.dsn_for("routes_platform"), redis_url=redis_server.url
        )
        running.start()
    yield running
    running.stop()


@pytest.fixture
def routes(platform: Serving) -> RoutesServiceStub:
    return stub(platform)
