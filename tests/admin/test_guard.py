"""The guard's verdict is the same however a statement is written, and what reads only is let through."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_db.admin import guard_lists as lists
from kronos_db.admin.guard import MOST_CHARACTERS, check, fingerprint
from kronos_db.admin.query_model import StatementRefusedError
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.reading_role import HARMFUL

RELATIONS = frozenset({"stand.t"})
# Ways to write a call; F stands for it. In each, a function that harms is to be refused as the function, and one that
# does not is to be let through.
WAYS = (
    "SELECT F",
    "select F;",
    "  \n SELECT F -- end",
    "/* a /* nested */ comment */ SELECT F",
    "SELECT/**/F/**/",
    "SELECT (F)",
    "SELECT ((F)) AS x",
    "SELECT F::text",
    "SELECT CAST(F AS text)",
    "SELECT F::text::varchar(10)::bytea",
    "SELECT * FROM F",
    "SELECT * FROM F AS x",
    "SELECT * FROM F WITH ORDINALITY",
    "SELECT * FROM ROWS FROM (F)",
    "SELECT * FROM ROWS FROM (generate_series(1, 2), F) AS x",
    "SELECT * FROM stand.t, LATERAL F AS x",
    "SELECT * FROM stand.t CROSS JOIN LATERAL (SELECT F) AS x",
    "SELECT * FROM stand.t LEFT JOIN F AS x ON true",
    "SELECT * FROM stand.t JOIN stand.t AS u ON F IS NULL",
    "SELECT (SELECT F)",
    "SELECT * FROM (SELECT F) AS x",
    "SELECT * FROM (VALUES (F)) AS x",
    "VALUES (1), (F)",
    "WITH x AS (SELECT F) SELECT * FROM x",
    "WITH x AS MATERIALIZED (SELECT F) TABLE x",
    "WITH RECURSIVE x AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM x WHERE F IS NULL) SELECT * FROM x",
    "WITH x AS (WITH y AS (SELECT F) SELECT * FROM y) SELECT * FROM x",
    "SELECT 1 WHERE F IS NOT NULL",
    "SELECT 1 WHERE EXISTS (SELECT F)",
    "SELECT 1 WHERE 1 IN (SELECT 1 WHERE F IS NULL)",
    "SELECT 1 WHERE '1' = ANY (ARRAY(SELECT F::text))",
    "SELECT 1 WHERE NOT (F IS NULL AND true) OR false",
    "SELECT 1 WHERE F::text BETWEEN 'a' AND 'b'",
    "SELECT 1 WHERE F::text SIMILAR TO 'a'",
    "SELECT 1 WHERE F IS DISTINCT FROM NULL",
    "SELECT CASE WHEN F IS NULL THEN 1 ELSE 2 END",
    "SELECT CASE F WHEN NULL THEN 1 END",
    "SELECT COALESCE(F, NULL)",
    "SELECT GREATEST(F, NULL)",
    "SELECT NULLIF(F, NULL)",
    "SELECT ARRAY[F]",
    "SELECT (ARRAY[1])[F::text::int]",
    "SELECT (ARRAY[1])[1:F::text::int]",
    "SELECT ROW(F, 1)",
    "SELECT (ROW(F)).*",
    "SELECT count(F)",
    "SELECT count(*) FILTER (WHERE F IS NULL)",
    "SELECT array_agg(id ORDER BY F) FROM stand.t",
    "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY F) FROM stand.t",
    "SELECT sum(1) OVER (PARTITION BY F)",
    "SELECT sum(1) OVER w FROM stand.t WINDOW w AS (ORDER BY F)",
    "SELECT sum(1) OVER (ORDER BY id ROWS BETWEEN F PRECEDING AND CURRENT ROW) FROM stand.t",
    "SELECT 1 GROUP BY F",
    "SELECT 1 GROUP BY ROLLUP (F)",
    "SELECT 1 GROUP BY GROUPING SETS ((F), ())",
    "SELECT 1 HAVING F IS NULL",
    "SELECT 1 ORDER BY F",
    "SELECT DISTINCT ON (F) 1",
    "SELECT 1 LIMIT F",
    "SELECT 1 OFFSET F",
    "SELECT 1 FETCH FIRST (F) ROWS ONLY",
    "SELECT 1 UNION ALL SELECT F",
    "SELECT 1 EXCEPT (SELECT 2 INTERSECT SELECT F)",
    "SELECT abs(abs(F))",
    "SELECT make_date(year => 1, month => F, day => 1)",
    "SELECT concat(VARIADIC ARRAY[F])",
    'SELECT F COLLATE "C"',
    "SELECT F AT TIME ZONE 'UTC'",
    "SELECT extract(year FROM F)",
    "SELECT substring(F FROM 1 FOR 2)",
    "SELECT trim(both 'x' FROM F)",
    "SELECT overlay('a' PLACING F FROM 1)",
    "SELECT position(F IN 'a')",
    "SELECT * FROM stand.t TABLESAMPLE bernoulli (F)",
    "SELECT * FROM stand.t TABLESAMPLE system (1) REPEATABLE (F)",
    "SELECT JSON_OBJECT('a': F)",
    "SELECT JSON_ARRAY(F, 1)",
    "SELECT JSON_ARRAYAGG(F)",
    "SELECT JSON_OBJECTAGG('a': F)",
    "SELECT JSON(F)",
    "SELECT JSON_SERIALIZE(F)",
    "SELECT JSON_SCALAR(F)",
    "SELECT JSON_QUERY(F, '$')",
    "SELECT JSON_EXISTS('{}', '$' PASSING F AS x)",
    "SELECT JSON_VALUE('{}', '$.a' DEFAULT F ON ERROR)",
    "SELECT * FROM JSON_TABLE(F, '$[*]' COLUMNS (a int PATH '$', NESTED PATH '$[*]' COLUMNS (b int PATH '$')))",
    "SELECT F IS JSON OBJECT",
    "SELECT NOT F IS TRUE",
    "SELECT - F",
    "SELECT F || F",
    "SELECT 1 OPERATOR(pg_catalog.+) F",
    "SELECT $$a$$ || F",
    "SELECT E'\\x41' || F",
    "SELECT U&'\\0041' || F",
)
HARMLESS = (
    "abs(1)",
    "ABS (1)",
    "pg_catalog.abs(1)",
    '"abs"(1)',
    'U&"\\0061bs"(1)',
    "pg_catalog . abs\n(1)",
    "a\u0062s(1)",
)
HARM = (
    "pg_read_file('x')",
    "PG_READ_FILE ('x')",
    "pg_catalog.pg_read_file('x')",
    "\"pg_read_file\"('x')",
    "U&\"\\0070g_read_file\"('x')",
    "U&\"!0070g_read_file\" UESCAPE '!' ('x')",
    "pg_catalog . pg_read_file\n('x')",
    "stand.abs(1)",
    'public."abs"(1)',
    "set_config('a', 'b', true)",
    "nextval('x')",
    "dblink('x', 'y')",
)


def verdict(text: str) -> str:
    try:
        check(text, RELATIONS)
    except StatementRefusedError as error:
        return error.rule
    return "accepted"


def written(way: str, call: str) -> str:
    return re.sub(r"\bF\b", lambda _: call, way)


@pytest.mark.parametrize("way", WAYS)
def test_the_verdict_is_the_same_however_a_call_is_written(way: str) -> None:
    assert {(call, verdict(written(way, call))) for call in HARM} == {(call, "function") for call in HARM}
    assert {(call, verdict(written(way, call))) for call in HARMLESS} == {(call, "accepted") for call in HARMLESS}


@pytest.mark.parametrize(
    ("text", "rule", "position"),
    [
        ("", "one statement", 0),
        ("-- nothing", "one statement", 0),
        ("SELECT 1; SELECT 2", "one statement", 0),
        ("SELEC 1", "syntax", 1),
        ("SELECT 'a", "syntax", 8),
        ("SELECT 1 \0", "syntax", 0),
        ("DELETE FROM stand.t", "statement", 1),
        ("SELECT 'ä', x FROM stand.v", "relation", 20),
        ("SELECT 1 FROM t", "relation", 15),
        ("SELECT 'ö', pg_sleep(1)", "function", 13),
        ("SELECT 'pg_class'::regclass", "type", 20),
        ("SELECT 1::stand.kind", "type", 11),
        ("SELECT 1 OPERATOR(stand.+) 2", "operator", 10),
        ("SELECT 'a' COLLATE stand.x", "collation", 12),
        ("SELECT id FROM stand.t FOR UPDATE", "node", 0),
        ("SELECT repeat('x', 1000000000)", "size", 8),
        ("SELECT repeat('x', id) FROM stand.t", "size", 8),
        ("SELECT repeat(repeat(repeat('x', 10000), 10000), 10000)", "size", 15),
        ("SELECT 'x'::char(10485760)", "size", 13),
        ("SELECT format('%1000000000s', 'x')", "size", 8),
        ("SELECT format(x, 'x') FROM stand.t", "size", 8),
        ("SELECT " + "+".join(["1"] * 300), "depth", 0),
        ("SELECT " + "+".join(["1"] * 20_000), "length", 0),
        ("SELECT " + "(" * 20_000, "length", 0),
        ("SELECT '" + "x" * MOST_CHARACTERS + "'", "length", 0),
    ],
)  # fmt: skip
def test_a_refusal_names_the_rule_and_the_place(text: str, rule: str, position: int) -> None:
    with pytest.raises(StatementRefusedError) as refused:
        check(text, RELATIONS)
    assert (refused.value.rule, refused.value.position) == (rule, position)
    assert refused.value.metadata["rule"] == rule


def test_the_statement_comes_back_without_what_ends_it() -> None:
    assert check(" SELECT 'é;' ;\n-- that was all", RELATIONS) == " SELECT 'é;' "


def test_fingerprints_leave_constants_out_and_are_empty_for_what_is_no_statement() -> None:
    assert fingerprint("SELECT 1") == fingerprint("select  2 -- x") != ""
    assert fingerprint("SELEC") == fingerprint("SELECT " + "1+" * 20_000 + "1") == fingerprint("a\0") == ""


@pytest.mark.parametrize(
    "step", ["+1", " UNION SELECT 1", "::int", "[1]", " IS NULL", " CROSS JOIN stand.t", "(", "NOT "]
)
def test_no_statement_ends_the_process_however_deep(step: str) -> None:
    said: list[str] = []
    # As on a thread of the server, whose stack is smaller than that of the main one.
    size = threading.stack_size(1 << 20)
    thread = threading.Thread(target=lambda: said.append(verdict("SELECT (1)" + step * 1990)))
    try:
        thread.start()
    finally:
        threading.stack_size(size)
    thread.join()
    assert said in (["depth"], ["length"], ["syntax"])


@given(st.text(max_size=60))
def test_any_text_gets_a_verdict(text: str) -> None:
    assert verdict(text)
    assert verdict(f"SELECT {text}")


def test_the_lists_name_what_there_is_and_nothing_that_harms(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.dsn) as connection:
        rows = connection.execute(
            "SELECT proname, max(provolatile) FROM pg_proc "
            "WHERE pronamespace = 'pg_catalog'::regnamespace GROUP BY proname"
        )
        functions = dict(rows.fetchall())
        named = connection.execute("SELECT relnamespace::regnamespace::text, relname FROM pg_class").fetchall()
    relations = {schema: {name for place, name in named if place == schema} for schema, _ in named}
    assert functions.keys() >= lists.FUNCTIONS
    assert functions.keys() >= lists.SAMPLING
    assert not lists.FUNCTIONS & set(HARMFUL)
    # Of those that may have an effect, what each does was looked at.
    assert {name for name in lists.FUNCTIONS if functions[name] == "v"} == {
        *("random", "random_normal", "array_sample", "array_shuffle", "gen_random_uuid", "uuidv4", "uuidv7"),
        *("clock_timestamp", "timeofday", "pg_is_in_recovery"),
        *("pg_relation_size", "pg_table_size", "pg_indexes_size", "pg_total_relation_size"),
    }
    assert relations["pg_catalog"] >= lists.CATALOG
    assert relations["information_schema"] >= lists.INFORMATION_SCHEMA


def test_hostile_statements_are_known_to_be_refused_but_for_those_that_only_the_role_refuses() -> None:
    lines = (Path(__file__).parent / "hostile" / "statements.sql").read_text().splitlines()
    passed = [line for line in lines if line and not line.startswith("-- ") and verdict(line) == "accepted"]
    # All of these read a column of a table that may be read.
    assert all("stand.t" in line for line in passed)
    assert 10 <= len(passed) <= 25
