"""What a statement looks for in each table, read off its text."""

from __future__ import annotations

import pytest

from kronos_db.admin.predicates import Access, Check, Condition, accesses

COLUMNS = {"t": ["id", "a", "b", "d", "flag", "gone"], "u": ["id", "t_id", "c"]}


def read(text: str) -> list[list[Access]]:
    return accesses(text, "s", COLUMNS)


def keys(access: Access) -> list[tuple[str, Check]]:
    return [(each.key, each.test) for each in access.conditions]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("a = $1", [("a", Check.EQUAL)]),
        ("$1 = a", [("a", Check.EQUAL)]),
        ("t.a = $1::text AND b = lower($2)", [("a", Check.EQUAL), ("b", Check.EQUAL)]),
        ("a IN ($1, $2)", [("a", Check.EQUAL)]),
        ("a = ANY($1)", [("a", Check.EQUAL)]),
        ("a = ANY((SELECT $1::uuid[])::uuid[])", [("a", Check.EQUAL)]),
        ("a BETWEEN $1 AND $2", [("a", Check.RANGE)]),
        ("a >= $1 AND a < $2", [("a", Check.RANGE)]),
        ("(a, b) > ($1, $2)", [("a", Check.RANGE)]),
        ("lower(a) = $1", [("lower(a)", Check.EQUAL)]),
        ("d ->> 'k' = $1", [("(d ->> 'k')", Check.EQUAL)]),
        ("d @> $1", [("d", Check.CONTAINS)]),
        ("gone IS NULL AND flag AND NOT flag", [("gone", Check.FIXED), ("flag", Check.FIXED), ("flag", Check.FIXED)]),
        # Nothing that an index is certain to serve.
        ("a = $1 OR b = $2", []),
        ("a <> $1", []),
        ("a::text = $1", []),
        ("a LIKE $1", []),
        ("a = b", []),
        ("random() < $1", []),
        ("d ->> $1 = $2", []),
        ("my_function(a) = $1", []),
        ("$1 @> d", []),
    ],
)
def test_conditions(where: str, expected: list[tuple[str, Check]]) -> None:
    ((access,),) = read(f"SELECT id FROM s.t WHERE {where}")
    assert keys(access) == expected


def test_both_bounds_of_a_range_are_one_condition() -> None:
    ((access,),) = read("SELECT id FROM s.t WHERE a >= $1 AND a < $2")
    assert access.conditions[0].both_sides
    ((access,),) = read("SELECT id FROM s.t WHERE a >= $1 AND a > $2")
    assert not access.conditions[0].both_sides


def test_what_is_joined_by_which_key() -> None:
    ((left, right),) = read("SELECT * FROM s.t JOIN s.u ON u.t_id = t.id AND u.c = $1")
    assert left.conditions == [Condition("id", Check.EQUAL, ("id",), "=", ("u", "t_id"))]
    assert [(each.key, each.joins) for each in right.conditions] == [("t_id", ("t", "id")), ("c", None)]
    ((left, right),) = read("SELECT * FROM s.t JOIN s.u USING (id)")
    assert left.conditions[0].joins == ("u", "id")
    assert right.conditions[0].joins == ("t", "id")


def test_queries_within_a_statement_are_read_too() -> None:
    found = read("SELECT id FROM s.t WHERE EXISTS (SELECT FROM s.u WHERE u.t_id = t.id AND c = $1)")
    by_table = {access.table: access for query in found for access in query}
    assert keys(by_table["u"]) == [("t_id", Check.EQUAL), ("c", Check.EQUAL)]
    assert by_table["u"].conditions[0].joins == ("t", "id")
    assert not by_table["u"].each_row
    found = read(
        "WITH x AS (DELETE FROM s.u WHERE c = $1 RETURNING t_id) UPDATE s.t SET a = 1 FROM x WHERE t.id = x.t_id"
    )
    assert {access.table: keys(access) for query in found for access in query}["u"] == [("c", Check.EQUAL)]
    (query, _outer) = read("SELECT (SELECT max(c) FROM s.u WHERE u.t_id = t.id) FROM s.t")
    assert query[0].each_row


def test_a_name_of_a_query_hides_the_table() -> None:
    found = read("WITH t AS (SELECT 1 AS a) SELECT * FROM t WHERE a = $1")
    assert [access for query in found for access in query] == []


def test_order_counts_only_where_rows_come_out_as_they_are_found() -> None:
    ((access,),) = read("SELECT id FROM s.t ORDER BY a DESC, id DESC LIMIT $1")
    assert [(each.key, each.descending) for each in access.order] == [("a", True), ("id", True)]
    assert access.limited
    for text in (
        "SELECT a FROM s.t GROUP BY a ORDER BY a LIMIT 1",
        "SELECT id FROM s.t ORDER BY lower(a) LIMIT 1",
        "SELECT t.id FROM s.t JOIN s.u ON u.id = t.id ORDER BY t.a LIMIT 1",
    ):
        assert all(access.order == () for query in read(text) for access in query)


def test_other_schemas_and_broken_texts_are_nobodys() -> None:
    assert read("SELECT * FROM other.t WHERE a = $1") == []
    assert read("SELECT FROM WHERE") == []
    assert read("SET LOCAL a = 'b'") == []
