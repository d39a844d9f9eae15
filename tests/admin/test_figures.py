"""What /metrics tells of PostgreSQL, of room and of statements, by the one process that looks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from kronos_db.admin.figures import PostgresFigures
from kronos_db.admin.statements import Cost
from kronos_db.admin.status_store import Server, Sizes
from kronos_db.runtime.errors import UnavailableError
from tests.parts.domain import LIMIT
from tests.parts.eventually import eventually
from tests.parts.serving import Serving

NAMES = ("connections", "max_connections", "oldest_transaction_seconds", "wraparound_age")
SERVER = Server("18.6", False, None, 2, 17, 200, None, 1234, 0.5)


class Look:
    """Stands for who looks at a PostgreSQL."""

    def __init__(self, server: Server | None) -> None:
        self._server = server

    def look(self) -> Server:
        if self._server is None:
            raise UnavailableError
        return self._server

    def close(self) -> None:
        pass


def cost(query_id: int, *queries: str) -> Cost:
    return Cost("users", query_id, 2, 500_000, 0, 0, 0, 0, 0, "SELECT", queries, (), "SELECT", "1")


def looked(costs: list[Cost], holds: bool = True, **servers: Server | None) -> CollectorRegistry:
    database: Any = SimpleNamespace(domain="admin")
    looks: Any = {name: Look(server) for name, server in servers.items()}
    sizes = {"users": Sizes(1000, 10, ())}
    figures = PostgresFigures(database, ("users", "logs"), looks, sizes.get, lambda _period: costs)
    figures.work = SimpleNamespace(holds=holds)  # type: ignore[assignment] # what is asked of it
    registry = CollectorRegistry()
    figures.watch(registry)
    figures.look()
    return registry


def test_servers_that_answer_are_told_and_sizes_that_are_known() -> None:
    registry = looked([], there=SERVER, away=None)
    told = {name: registry.get_sample_value(f"kronos_db_postgres_{name}", {"server": "there"}) for name in NAMES}
    assert told == {"connections": 17, "max_connections": 200, "oldest_transaction_seconds": 0, "wraparound_age": 1234}
    assert registry.get_sample_value("kronos_db_postgres_replication_lag_seconds", {"server": "there"}) is None
    assert registry.get_sample_value("kronos_db_postgres_connections", {"server": "away"}) is None
    assert registry.get_sample_value("kronos_db_domain_bytes", {"domain": "users"}) == 10
    assert registry.get_sample_value("kronos_db_domain_bytes", {"domain": "logs"}) is None


def test_statements_of_one_query_are_one_series() -> None:
    registry = looked([cost(1, "users:get"), cost(2, "users:get"), cost(3)])
    for query, seconds, calls in (("users:get", 1.0, 4), ("3", 0.5, 2)):
        labels = {"domain": "users", "query": query}
        assert registry.get_sample_value("kronos_db_statement_seconds", labels) == seconds
        assert registry.get_sample_value("kronos_db_statement_calls", labels) == calls


def test_whoever_does_not_look_tells_nothing() -> None:
    registry = looked([cost(1)], holds=False, there=SERVER)
    assert [sample for family in registry.collect() for sample in family.samples] == []


def test_the_server_tells_them(serving: Serving) -> None:
    def told() -> set[str]:
        return {sample.name for family in serving.server.registry.collect() for sample in family.samples}

    wanted = {f"kronos_db_postgres_{name}" for name in (*NAMES, "cache_hit_ratio", "standbys")}
    wanted |= {"kronos_db_domain_bytes", "kronos_db_database_bytes"}
    eventually(lambda: wanted <= told(), LIMIT, lambda: wanted - told())


@pytest.mark.parametrize("name", ["processes_wanted", "processes_answering"])
def test_a_process_without_a_supervisor_is_one_of_one(serving: Serving, name: str) -> None:
    assert serving.server.registry.get_sample_value(f"kronos_db_{name}") == 1
