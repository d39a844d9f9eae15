"""The server of the tests of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub

from kronos_db.domains import Domains, Parts
from kronos_db.tokens.identity import Identities
from kronos_db.tokens.service import TokensService
from tests.parts.domain import new_database
from tests.parts.serving import Serving
from tests.tokens.population import People


@pytest.fixture
def tokens(serving: Serving) -> TokensServiceStub:
    """A stub of the operator, who may know why a token is not active."""
    return TokensServiceStub(serving.channel_of("operator"))


@pytest.fixture
def sql(serving: Serving) -> Iterator[Callable[..., object]]:
    """Run a statement in the database of the server, as superuser; return the first column of the first row."""
    assert serving.settings.postgres_dsn is not None
    with psycopg.connect(serving.settings.postgres_dsn.get_secret_value(), autocommit=True) as connection:

        def run(text: str, *params: object) -> object:
            found = connection.execute(text, params)  # type: ignore[arg-type]  # texts of the tests
            row = found.fetchone() if found.description else None
            return row[0] if row else None

        yield run


# Those that `with_people` has built.
_services: list[TokensService] = []


@pytest.fixture
def identities() -> Callable[[], Identities]:
    """What other domains would ask of the server `with_people`."""
    return lambda: Identities(_services[-1].introspection)


@pytest.fixture(scope="module")
def people() -> People:
    return People()


@pytest.fixture(scope="module")
def with_people(
    postgres: object, people: People, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TokensServiceStub]:
    """A stub of a server whose users are those of `people`."""
    patch = pytest.MonkeyPatch()
    built = Domains._new_tokens

    def with_stand_in(domains: Domains, parts: Parts, _access: object) -> TokensService:
        _services.append(built(domains, parts, people))  # type: ignore[arg-type]  # it stands in
        return _services[-1]

    patch.setattr(Domains, "_new_tokens", with_stand_in)
    with new_database(postgres) as dsn:  # type: ignore[arg-type]
        running = Serving(tmp_path_factory.mktemp("people"), dsn)
        running.start()
        yield TokensServiceStub(running.channel_of("operator"))
        running.stop()
    patch.undo()
