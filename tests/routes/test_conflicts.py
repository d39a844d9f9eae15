"""Routes that conflict: what is ambiguous, what is shadowed, and what precedence tells apart."""

from __future__ import annotations

from typing import Any

import pytest

from kronos_db.routes.conflicts import Conflict, conflicts
from kronos_db.routes.messages import new_route
from kronos_db.routes.model import NewRoute


def new(name: str, path: str, **spec: Any) -> NewRoute:
    return new_route("routes[0]", "", name, {"path": path, "upstream": "up", **spec})


@pytest.mark.parametrize(
    "routes",
    [
        [new("a", "/x"), new("b", "/y")],
        [new("a", "/x", methods=["GET"]), new("b", "/x", methods=["POST"])],
        [new("a", "/x"), new("b", "/x", methods=["POST"])],
        [new("a", "/x", host="h"), new("b", "/x")],
        [new("a", "/x", headers=[["h", "1"]]), new("b", "/x", headers=[["h", "2"]])],
        [new("a", "/{p}"), new("b", "/{p:int}"), new("c", "/{p}/**")],
        [new("a", "/x", methods=["GET"], priority=1), new("b", "/x", methods=["GET", "POST"])],
    ],
)
def test_no_conflict(routes: list[NewRoute]) -> None:
    assert conflicts(routes) == []


def test_ambiguous_whatever_parameters_are_called() -> None:
    routes = [new("b", "/{x}"), new("a", "/{y}"), new("c", "/*", methods=["GET"]), new("d", "/{z}", methods=["GET"])]

    assert conflicts(routes) == [Conflict(True, "b", ["a"]), Conflict(True, "d", ["c"])]


def test_one_method_in_common_is_enough() -> None:
    routes = [new("a", "/x", methods=["GET", "PUT"]), new("b", "/x", methods=["POST", "PUT"])]

    assert conflicts(routes) == [Conflict(True, "b", ["a"])]


def test_shadowed_when_others_take_every_method() -> None:
    routes = [
        new("low", "/x", methods=["GET", "POST"]),
        new("get", "/x", methods=["GET"], priority=1),
        new("post", "/x", methods=["POST"], priority=2),
    ]

    assert conflicts(routes) == [Conflict(False, "low", ["get", "post"])]
    assert conflicts([new("low", "/x"), new("high", "/x", priority=1)]) == [Conflict(False, "low", ["high"])]
