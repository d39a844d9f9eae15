"""The rules of permissions and scopes, and what roles give each other."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
from buf.validate import validate_pb2
from kronos.users.v1 import roles_pb2 as pb

from kronos_db.users import permissions as rules
from kronos_db.users.permissions import around, covering, place, scope_of
from kronos_db.users.role_graph import Node, RoleGraph, way_to


def test_the_rules_are_those_of_the_contract() -> None:
    def pattern(message: type, field: str) -> validate_pb2.FieldRules:
        return message.DESCRIPTOR.fields_by_name[field].GetOptions().Extensions[validate_pb2.field]  # type: ignore[attr-defined]

    for message, field in ((pb.CheckPermissionRequest, "permission"), (pb.ListPermissionHoldersRequest, "permission")):
        assert pattern(message, field).string.pattern == rules.PERMISSION
    assert pattern(pb.Role, "permissions").repeated.items.string.pattern == rules.PERMISSION
    for message in (pb.Grant, pb.CheckPermissionRequest, pb.ListGrantsRequest, pb.ListUserPermissionsRequest):
        assert pattern(message, "scope").string.pattern == rules.SCOPE
        assert pattern(message, "scope").string.max_len == rules.MAX_SCOPE


@pytest.mark.parametrize(
    ("permission", "covered_by"),
    [
        ("doc:read", {"doc:read", "doc:*", "*:read", "*:*"}),
        ("doc:*", {"doc:*", "*:*"}),
        ("*:read", {"*:read", "*:*"}),
        ("*:*", {"*:*"}),
        ("doc", None),
        ("doc:read\n", None),
        ("doc:" + "x" * 65, None),
    ],
)
def test_what_covers_a_permission(permission: str, covered_by: set[str] | None) -> None:
    assert covering(permission) == covered_by


def test_places() -> None:
    assert [place(scope) for scope in ("", "a", "a/b")] == ["", "a/", "a/b/"]
    assert [place(scope) for scope in ("/", "a/", "/a", "a//b", "a b", "a\n", "x" * 257)] == [None] * 7
    assert [scope_of(where) for where in ("", "a/", "a/b/")] == ["", "a", "a/b"]
    assert [around(where) for where in ("", "a/", "a/b/")] == [[""], ["", "a/"], ["", "a/", "a/b/"]]


def node(number: int, *parents: int, gives: tuple[str, ...] = ()) -> Node:
    return Node(number, f"id{number}", f"name{number}", parents, gives)


class TestRoleGraph:
    def test_a_diamond(self) -> None:
        graph = RoleGraph()
        graph.add([node(1, gives=("a:a",)), node(2, 1, gives=("b:b",)), node(3, 1), node(9, 2, 3, gives=("c:c",))])

        assert graph.gives["9"] == {"a:a", "b:b", "c:c"}
        assert graph.gives["3"] == {"a:a"}
        assert graph.size == 1 + 2 + 1 + 3
        assert graph.known == bytes([0b1110, 0b10])
        way = graph.way(9, frozenset({"a:a", "*:*"}))
        assert way is not None
        assert ([each.number for each in way[0]], way[1]) == ([9, 2, 1], "a:a")
        assert graph.way(9, frozenset({"x:x"})) is None

    def test_what_is_added_stands_on_what_is_there(self) -> None:
        graph = RoleGraph()
        graph.add([node(1, gives=("a:a",))])
        graph.add([node(17, 1), node(1, gives=("changed:since",))], gone=[5, 17])

        assert graph.gives == {"1": {"a:a"}, "17": {"a:a"}, "5": frozenset()}
        assert graph.known == bytes([0b100010, 0, 0b10])

    def test_nobody_sees_half_of_what_is_added(self) -> None:
        graph, stop, seen = RoleGraph(), threading.Event(), []

        def look() -> None:
            while not stop.is_set():
                seen.extend(given for given in list(graph.gives.values()) if "root:x" not in given)

        thread = threading.Thread(target=look)
        thread.start()
        for base in range(0, 2000, 10):
            line = [node(base + 9, gives=("root:x",)), *(node(base + depth, base + depth + 1) for depth in range(9))]
            graph.add(reversed(line))
        stop.set()
        thread.join()
        assert seen == []


def test_the_shortest_way() -> None:
    parents = {"a": ["b", "c"], "b": ["d"], "c": ["e"], "d": ["e"], "e": []}

    assert way_to(["a"], "e", parents) == ["a", "c", "e"]
    assert way_to(["b", "c"], "e", parents) == ["c", "e"]
    assert way_to(["e"], "e", parents) == ["e"]
    assert way_to(["d"], "a", parents) is None
    way = way_to(["a"], "d", parents)
    assert way is not None
    assert all(parent in parents[child] for child, parent in pairwise(way))
