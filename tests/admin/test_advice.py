"""Index advice on a seeded schema whose cases are known: how many are found, and that none is made up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from kronos_db.admin.advice import Advice, Facts, Kind, Limits, Statement
from kronos_db.admin.advice_existing import advise_existing
from kronos_db.admin.advice_missing import advise_missing
from kronos_db.admin.index_store import facts_of
from kronos_db.admin.statement_store import QUERIES
from kronos_db.admin.statements import Counter, fingerprint, numbered
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.operating import connected
from tests.admin import shop
from tests.admin.shop import Known
from tests.parts.domain import new_database

LIMITS = Limits(observed=timedelta(0), unused_size=8192, wasted=100_000, mean_ms=0.2, rows=1_000)


@pytest.fixture(scope="module")
def facts(postgres: EmbeddedPostgres) -> Iterator[Facts]:
    with new_database(postgres) as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements SCHEMA public")
            shop.seed(connection)
            # What wrote the rows is not to weigh against indexes.
            connection.execute("SELECT pg_stat_reset_single_table_counters(oid) FROM pg_class WHERE relkind = 'r'")
            shop.use(connection)
            connection.execute("UPDATE shop.ledger SET amount = amount + 1")
            connection.execute("SELECT pg_stat_force_next_flush()")
        written = {fingerprint(numbered(text)): numbered(text) for text in (*shop.WANTING, *shop.WITHOUT)}
        with connected(dsn, "test", 30.0) as direct:
            counters = direct.fetch_all(QUERIES["counters"], {}, Counter)
            statements = [
                Statement(
                    str(each.query_id),
                    written.get(fingerprint(each.text), each.text),
                    each.calls,
                    each.total_us / 1000,
                    each.rows,
                )
                for each in counters
                if "FROM shop." in each.text or "UPDATE shop." in each.text
            ]
            yield facts_of(direct, "shop", statements)


def known_missing() -> list[Known]:
    return [Known(Kind.MISSING, table, what) for _value, table, what in shop.WANTING.values()]


def test_what_is_known_is_found_and_nothing_is_made_up(facts: Facts) -> None:
    advices = advise_existing(facts, LIMITS) + advise_missing(facts, LIMITS)
    known = [*shop.EXISTING, *known_missing()]
    lost = [each for each in known if not any(map(shop.matches(each), advices))]
    made_up = [each for each in advices if not any(shop.matches(case)(each) for case in known)]
    recall = 1 - len(lost) / len(known)
    precision = 1 - len(made_up) / len(advices)
    print(f"{len(known)} cases, {len(advices)} advices, recall {recall:.2f}, precision {precision:.2f}")
    assert len(known) >= 20
    assert [each.statement for each in made_up] == []
    assert recall >= 0.9, lost
    assert precision == 1.0


def test_one_of_two_that_are_the_same_stays(facts: Facts) -> None:
    dropped = {advice.index for advice in advise_existing(facts, LIMITS) if advice.kind is Kind.DUPLICATE}
    assert len({"parts_b", "parts_b_again"} & dropped) == 1
    assert "parts_pkey" not in dropped


def test_what_is_advised_can_be_done_and_undone(facts: Facts, postgres: EmbeddedPostgres) -> None:
    advices = advise_existing(facts, LIMITS) + advise_missing(facts, LIMITS)
    with new_database(postgres) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        for statement in shop.SCHEMA.split(";\n"):
            if statement.strip() and not statement.startswith("INSERT"):
                connection.execute(statement)
        for advice in advices:
            if not advice.statement.startswith("REINDEX"):
                connection.execute(advice.statement)
        before = _indexes(connection)
        for advice in advices:
            if advice.undo and advice.kind is not Kind.INVALID:
                connection.execute(advice.undo)
                connection.execute(advice.statement)
        assert _indexes(connection) == before
    assert len({advice.id for advice in advices}) == len(advices)


def _indexes(connection: psycopg.Connection[tuple[object, ...]]) -> set[tuple[object, ...]]:
    return set(connection.execute("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'shop'"))


def test_an_index_is_unused_only_when_that_is_certain(facts: Facts) -> None:
    def unused(changed: Facts, limits: Limits = LIMITS) -> list[str]:
        return [each.index for each in advise_existing(changed, limits) if each.kind is Kind.UNUSED]

    assert unused(facts) == ["parts_unused"]
    # Not counted for long enough; a standby that nobody asks may use it; a replica that was asked does.
    assert unused(facts, replace(LIMITS, observed=timedelta(days=7))) == []
    assert unused(replace(facts, unknown_standbys=1)) == []
    used = [replace(each, scans=each.scans + (each.name == "parts_unused")) for each in facts.indexes]
    assert unused(replace(facts, indexes=used)) == []


def test_an_index_that_is_being_built_is_left_alone(facts: Facts) -> None:
    building = [replace(each, building=True) for each in facts.indexes]
    assert advise_existing(replace(facts, indexes=building), LIMITS) == []


def test_writes_weigh_against_an_index(facts: Facts) -> None:
    heavy = {name: replace(table, writes=10**9) for name, table in facts.tables.items()}
    assert advise_missing(replace(facts, tables=heavy), LIMITS) == []


def test_statements_that_are_fast_or_rare_want_nothing(facts: Facts) -> None:
    assert advise_missing(facts, replace(LIMITS, calls=shop.CALLS + 1)) == []
    assert advise_missing(facts, replace(LIMITS, mean_ms=10_000.0)) == []


def test_what_was_made_is_not_asked_for_again(postgres: EmbeddedPostgres, facts: Facts) -> None:
    advices: list[Advice] = advise_missing(facts, LIMITS)
    with new_database(postgres) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        for statement in shop.SCHEMA.split(";\n"):
            if statement.strip() and not statement.startswith("INSERT"):
                connection.execute(statement)
        for advice in advices:
            connection.execute(advice.statement)
        with connected(dsn, "test", 30.0) as direct:
            after = facts_of(direct, "shop")
    # The tables and statements of before, with the indexes of after.
    again = advise_missing(replace(facts, indexes=after.indexes), LIMITS)
    assert [each.statement for each in again] == []
