"""Templates of paths, and the normal form of request paths: what is decided is what the contract says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_db.routes.template import (
    ALTERNATIVES,
    ANY,
    LITERAL,
    TYPED,
    PathInvalidError,
    TemplateInvalidError,
    normalized,
    parse,
    segments_of,
)


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/", "/"),
        ("/a", "/a"),
        ("/a/", "/a"),
        ("//a///b//", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a"),
        ("/a/%2e%2E/b", "/b"),
        ("/%2e/a", "/a"),
        ("/a..b/...", "/a..b/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/%41%7e", "/A~"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/a%20b", "/a%20b"),
        ("/a%25b", "/a%25b"),
        ("/a%3Fb%23", "/a%3Fb%23"),
        ("/A/a", "/A/a"),
        ("/a;v=1,2", "/a%3Bv%3D1%2C2"),
        ("/a|b[c]", "/a%7Cb%5Bc%5D"),
        ("/" + "a" * 8191, "/" + "a" * 8191),
    ],
)
def test_the_normal_form(path: str, normal: str) -> None:
    found = normalized(segments_of(path))
    if ";" in path:
        assert found == "/a;v=1,2"
    else:
        assert found == normal
    assert normalized(segments_of(found)) == found


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "*",
        "/..",
        "/a/../..",
        "/%2e%2e",
        "/a%2Fb",
        "/a%2fb",
        "/a%5cb",
        "/a\\b",
        "/a%00",
        "/a%0a",
        "/a\n",
        "/a%7f",
        "/a?b",
        "/a#b",
        "/a%",
        "/a%4",
        "/a%zz",
        "/a%ff",
        "/a%c3",
        "/é",
        "/a b",
        "http://host/a",
        "/" + "a" * 8192,
        "/" + "a/" * 32_768,
        "/" + "../" * 20_000,
    ],
    ids=lambda path: path[:12],
)
def test_what_is_refused(path: str) -> None:
    with pytest.raises(PathInvalidError) as caught:
        segments_of(path)
    assert caught.value.violations[0].field == "path"


@given(st.text(alphabet="/.a%2eEfF5cC é\\?#|0", max_size=30))
def test_a_path_has_one_normal_form_or_none(path: str) -> None:
    try:
        segments = segments_of(path)
    except PathInvalidError:
        return
    assert all(segment not in {"", ".", ".."} and "/" not in segment for segment in segments)
    assert segments_of(normalized(segments)) == segments


def test_kinds_of_segments() -> None:
    template = parse("/v1/{a|b}".replace("{a|b}", "{kind:b|a}") + "/{id:int}/{name}/*/{rest:**}", "f")

    assert [segment.kind for segment in template.segments] == [LITERAL, ALTERNATIVES, TYPED, ANY, ANY]
    assert template.segments[1].text == "a|b"
    assert template.names == ["kind", "id", "name"]
    assert (template.rest, template.rest_name) == (True, "rest")
    assert not template.is_exact
    assert parse("/a/%C3%A9/", "f").segments[1].text == "é"
    assert parse("/a/b", "f").is_exact
    assert parse("/", "f").segments == ()


def test_the_shape_knows_no_names() -> None:
    assert parse("/{a}/{b:int}/**", "f").shape == parse("/{x}/{y:int}/{z:**}", "f").shape
    assert parse("/*", "f").shape == parse("/{x}", "f").shape
    shapes = [parse(path, "f").shape for path in ("/a", "/{a}", "/{a:int}", "/{a:a|b}", "/a/**", "/", "/**", "/a%7Cb")]
    assert len(set(shapes)) == len(shapes)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("", "begin with /"),
        ("a", "begin with /"),
        ("/{}", "whole segment"),
        ("/{a", "whole segment"),
        ("/a}", "whole segment"),
        ("/x{a}", "whole segment"),
        ("/{a}{b}", "whole segment"),
        ("/{a}/{a}", "twice"),
        ("/{a}/{a:**}", "twice"),
        ("/{1a}", "letters"),
        ("/{a-b}", "letters"),
        ("/{" + "a" * 33 + "}", "letters"),
        ("/{a:}", "constraint"),
        ("/{a:float}", "constraint"),
        ("/{a:x|}", "constraint"),
        ("/{a:[0-9]+}", "constraint"),
        ("/**/a", "alone"),
        ("/{a:**}/b", "constraint"),
        ("/a*", "alone"),
        ("/a//b", "empty"),
        ("/a/./b", "empty"),
        ("/a/..", "climbs"),
        ("/a%2Fb", "encoded slash"),
        ("/a b", "percent-encoded"),
        ("/a?x", "query"),
        ("/a" * 65, "64 segments"),
    ],
)
def test_malformed_templates(template: str, says: str) -> None:
    with pytest.raises(TemplateInvalidError) as caught:
        parse(template, "route.path")
    assert caught.value.violations[0].field == "route.path"
    assert says in caught.value.violations[0].description


@pytest.mark.parametrize(
    ("constraint", "accepted", "refused"),
    [
        (":int", ["0", "007", "9" * 18], ["", "-1", "1.0", "9" * 19, "٣"]),
        (":uuid", ["01a20747-db40-762b-bf27-12f63205bd16"], ["01a20747db40762bbf2712f63205bd16", "x"]),
        (":slug", ["a-b_C9"], ["", "a.b", "é"]),
        (":a|b.c", ["a", "b.c"], ["b", "A", "a|b.c"]),
        ("", ["a", "é", "a.b"], []),
    ],
)
def test_constraints(constraint: str, accepted: list[str], refused: list[str]) -> None:
    segment = parse(f"/{{p{constraint}}}", "f").segments[0]

    assert all(segment.accepts(text) for text in accepted)
    assert not any(segment.accepts(text) for text in refused)
