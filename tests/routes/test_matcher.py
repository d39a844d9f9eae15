"""The matcher against a plain linear reference, over random tables and paths, and through random changes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_db.routes.matcher import Entry, Matcher, Place, normalized_host
from kronos_db.routes.model import Route
from kronos_db.routes.template import parse, segments_of
from tests.routes.population import route


def reference(routes: Sequence[Route], method: str, host: str, path: str, headers: Mapping[str, str]) -> Route | None:
    """Look at every route, and return the first of those that match by the order that the contract states."""
    segments = segments_of(path)
    host = normalized_host(host)
    matching = [each for each in routes if _matches(each, method, host, segments, headers)]
    return min(matching, key=_order, default=None)


def _matches(each: Route, method: str, host: str, segments: list[str], headers: Mapping[str, str]) -> bool:
    spec = each.spec
    wanted = spec.get("host", "")
    if wanted.startswith("*"):
        if not host.endswith(wanted[1:]):
            return False
    elif wanted and host != wanted:
        return False
    template = parse(spec["path"], "path")
    count = len(template.segments)
    if len(segments) < count or (len(segments) > count and not template.rest):
        return False
    if not all(segment.accepts(text) for segment, text in zip(template.segments, segments, strict=False)):
        return False
    if spec.get("methods") and method not in spec["methods"]:
        return False
    return all(name in headers and value in {"", headers[name]} for name, value in spec.get("headers", ()))


def _order(each: Route) -> tuple[Any, ...]:
    spec = each.spec
    host = spec.get("host", "")
    template = parse(spec["path"], "path")
    return (
        not host or host.startswith("*"),
        -len(host),
        not template.is_exact,
        -len(template.segments),
        template.rest,
        tuple(segment.pattern for segment in template.segments),
        not spec.get("methods"),
        -len(spec.get("headers", ())),
        -spec.get("priority", 0),
        each.create_time,
        each.name,
    )


HOSTS = ["", "a.example", "b.example", "*.example", "*.b.example", "x.b.example"]
SEGMENTS = ["a", "b", "7", "{p}", "*", "{p:int}", "{p:a|b}", "{p:b|7}", "{p:slug}"]
METHODS: list[list[str]] = [[], ["GET"], ["POST"], ["GET", "POST"]]
HEADERS: list[list[list[str]]] = [[], [["x-a", "1"]], [["x-b", ""]], [["x-a", "1"], ["x-b", ""]]]


@st.composite
def routes_of(draw: st.DrawFn, name: str) -> Route:
    parts = draw(st.lists(st.sampled_from(SEGMENTS), max_size=4))
    parts = [part.replace("p", f"p{index}", 1) if part[0] == "{" else part for index, part in enumerate(parts)]
    tail = draw(st.sampled_from(["", "/**", "/{rest:**}"]))
    return route(
        name,
        "/" + "/".join(parts) + tail if parts else tail or "/",
        draw(st.integers(0, 2)),
        host=draw(st.sampled_from(HOSTS)),
        methods=draw(st.sampled_from(METHODS)),
        headers=draw(st.sampled_from(HEADERS)),
        priority=draw(st.integers(0, 1)),
    )


@st.composite
def tables(draw: st.DrawFn) -> list[Route]:
    return [draw(routes_of(f"r{number}")) for number in range(draw(st.integers(0, 12)))]


requests = st.tuples(
    st.sampled_from(["GET", "POST", "PUT"]),
    st.sampled_from(["A.example", "b.example:80", "x.b.example.", "y.x.b.example", "other", ""]),
    st.lists(st.sampled_from(["a", "b", "7", "c"]), max_size=5).map(lambda parts: "/" + "/".join(parts)),
    st.sampled_from([{}, {"x-a": "1"}, {"x-a": "2", "x-b": "9"}, {"x-a": "1", "x-b": ""}]),
)


@settings(max_examples=150, deadline=None)
@given(tables(), st.lists(requests, min_size=1, max_size=20))
def test_it_finds_what_the_reference_finds(table: list[Route], asked: list[Any]) -> None:
    matcher = Matcher().changed(table)
    for method, host, path, headers in asked:
        found = matcher.find(method, host, path, headers)
        assert (found and found[0].route) == reference(table, method, host, path, headers)


@settings(max_examples=50, deadline=None)
@given(
    tables(), st.lists(st.tuples(tables(), st.lists(st.integers(0, 15), max_size=6)), max_size=3), st.lists(requests)
)
def test_changes_make_what_building_anew_makes(
    table: list[Route], changes: list[tuple[list[Route], list[int]]], asked: list[Any]
) -> None:
    held = {each.id: each for each in table}
    matcher = Matcher().changed(table)
    for put, removed in changes:
        before, held_before = matcher, dict(held)
        gone = [f"id of r{number}" for number in removed]
        matcher = matcher.changed(put, gone)
        for route_id in gone:
            held.pop(route_id, None)
        held |= {each.id: each for each in put}
        for request in asked:
            found = before.find(*request)
            assert (found and found[0].route) == reference(list(held_before.values()), *request), "it was immutable"
    for request in asked:
        found = matcher.find(*request)
        assert (found and found[0].route) == reference(list(held.values()), *request)
    assert matcher.changed([], list(held))._trees == {}, "nothing is left behind"


def test_the_order_of_precedence_step_by_step() -> None:
    """Each route goes before all that follow it, for one request."""
    ordered = [
        route("exact host", "/**", host="h.b.example"),
        route("long wildcard", "/**", host="*.b.example"),
        route("wildcard", "/**", host="*.example"),
        route("exact path", "/a/b/7"),
        route("alternatives", "/a/b/{p:6|7}"),
        route("typed", "/a/b/{p:int}"),
        route("slug", "/a/b/{p:slug}"),
        route("any, method and headers", "/a/b/*", methods=["GET"], headers=[["x-a", "1"], ["x-b", ""]]),
        route("any, method and header", "/a/b/*", methods=["GET"], headers=[["x-a", "1"]]),
        route("any, method", "/a/b/*", methods=["GET"]),
        route("any, headers", "/a/b/*", headers=[["x-a", "1"]]),
        route("any, priority", "/a/b/*", priority=1),
        route("any, old", "/a/b/*", age=1),
        route("any, a", "/a/b/*", age=2),
        route("any, b", "/a/b/*", age=2),
        route("less specific first", "/{p}/b/7"),
        route("rest of nothing", "/a/b/7/**"),
        route("rest of one", "/a/b/**"),
        route("rest of two", "/a/**"),
        route("rest of all", "/**"),
    ]
    shuffled = random.Random(4).sample(ordered, len(ordered))
    for first in range(len(ordered)):
        left = [each for each in shuffled if ordered.index(each) >= first]
        found = Matcher().changed(left).find("GET", "h.b.example", "/a/b/7", {"x-a": "1", "x-b": "2"})
        assert found is not None
        assert found[0].route.name == ordered[first].name


def test_a_more_specific_route_that_does_not_take_the_method_stands_in_no_ones_way() -> None:
    table = [route("post", "/a", methods=["POST"], host="h"), route("rest", "/**", host="h"), route("any", "/a")]
    matcher = Matcher().changed(table)

    assert matcher.find("GET", "h", "/a")[0].route.name == "rest"  # type: ignore[index]
    assert matcher.find("POST", "h", "/a")[0].route.name == "post"  # type: ignore[index]
    assert matcher.find("GET", "i", "/a")[0].route.name == "any"  # type: ignore[index]
    assert matcher.find("GET", "i", "/b") is None


def test_values_of_parameters() -> None:
    declared = route("r", "/{a}/x/{b:int}/{rest:**}")
    entry = Entry(declared, Place(declared, 0))

    assert entry.values(segments_of("/caf%C3%A9/x/7/c/d")) == {"a": "café", "b": "7", "rest": "c/d"}
    assert entry.values(segments_of("/q/x/7")) == {"a": "q", "b": "7", "rest": ""}


@pytest.mark.parametrize(
    ("host", "normal"),
    [("A.Example:443", "a.example"), ("a.example.", "a.example"), ("[::1]:80", "[::1]"), ("", "")],
)
def test_hosts(host: str, normal: str) -> None:
    assert normalized_host(host) == normal


def test_a_path_of_many_ways_is_looked_at_level_by_level() -> None:
    """Were every way walked by itself, this would take 3^12 of them."""
    parts = ["a", "{p:a|b}", "{q}"]
    chance = random.Random(1)
    table = [
        route(f"r{n}", "/" + "/".join(_named(chance.choice(parts), at) for at in range(12)) + "/end")
        for n in range(300)
    ]
    assert Matcher().changed(table).find("GET", "", "/a" * 12) is None


def _named(part: str, at: int) -> str:
    return part.replace("p:", f"p{at}:").replace("{q", f"{{q{at}")
