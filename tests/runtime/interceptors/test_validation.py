"""Validation: rules of the contract, size, and text that is not text, each with the path of the field."""

from __future__ import annotations

import time
from typing import Any

import pytest
from google.protobuf import descriptor_pool, struct_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_db.runtime.interceptors.text import find_invalid_utf8, find_nul
from tests.parts.refusal import refused
from tests.runtime.interceptors.probe import ALL_KINDS, MAX_BYTES, Probe, ProbeServer, WriteRequest

_PROBE = descriptor_pool.Default().FindMessageTypeByName("kronos.probe.v1.Probe")
# In place of which the bytes of a faulty text are put: encoders refuse to write them.
_STAND_IN = "\x7f\x7f\x7f"
_INVALID = [b"\xff\xfe\xfd", b"\xc3\x28\x41", b"\xed\xa0\x80", b"ab\xe2"]


def _spoiled(message: Any, bad: bytes) -> bytes:
    raw: bytes = message.SerializeToString()
    assert raw.count(_STAND_IN.encode()) == 1
    return raw.replace(_STAND_IN.encode(), bad)


def _nested(text: str, where: str) -> Any:
    """Return a Probe with `text` at the path `where`."""
    probe = Probe()
    probe.name = "ok"
    if where == "name":
        probe.name = text
    elif where == "tags[2]":
        probe.tags.extend(["a", "b", text])
    elif where == 'labels["k"]':
        probe.labels.update({"k": text})
    elif where == "labels":
        probe.labels.update({text: "v"})
    elif where == "children[1].child.name":
        probe.children.add(name="fine")
        probe.children.add().child.name = text
    elif where == 'by_name["k"].tags[0]':
        probe.by_name["k"].tags.append(text)
    elif where == "by_name":
        probe.by_name[text].name = "v"
    elif where == 'attributes.fields["k"].string_value':
        probe.attributes["k"] = text
    elif where == "attributes.fields":
        probe.attributes[text] = 1
    elif where == 'attributes.fields["k"].list_value.values[1].struct_value.fields["z"].string_value':
        probe.attributes["k"] = [None, {"z": text}]
    else:
        raise AssertionError(where)
    return probe


_PATHS = [
    "name",
    "tags[2]",
    'labels["k"]',
    "labels",
    "children[1].child.name",
    'by_name["k"].tags[0]',
    "by_name",
    'attributes.fields["k"].string_value',
    "attributes.fields",
    'attributes.fields["k"].list_value.values[1].struct_value.fields["z"].string_value',
]


@pytest.mark.parametrize("path", _PATHS)
@pytest.mark.parametrize("bad", _INVALID)
def test_invalid_utf8_is_refused_with_its_path(probe: ProbeServer, path: str, bad: bytes) -> None:
    found = refused(lambda: probe.call("Unary", _spoiled(_nested(_STAND_IN, path), bad)))

    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "MESSAGE_MALFORMED")
    assert found.fields == {path: "must be valid UTF-8"}
    assert probe.seen == []


@pytest.mark.parametrize("path", _PATHS)
def test_u0000_is_refused_with_its_path(probe: ProbeServer, path: str) -> None:
    found = refused(lambda: probe.call("Unary", _nested("a\0b", path)))

    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert found.fields == {path: "must not contain U+0000"}
    assert probe.seen == []


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_kind_of_method_checks_text(probe: ProbeServer, kind: str) -> None:
    assert refused(lambda: probe.call(kind, _nested("\0", "name"))).fields == {"name": "must not contain U+0000"}
    found = refused(lambda: probe.call(kind, _spoiled(_nested(_STAND_IN, "name"), b"\xff\xff\xff")))
    assert found.fields == {"name": "must be valid UTF-8"}


@pytest.mark.parametrize(
    "raw",
    [b"\xff", b"\x0a\x05ab", b"\x0a", b"\x0b", b"\x00\x00", b"\x52\xff\xff\xff\xff\x0f", b"\x80" * 11, b"\x2f"],
)
def test_bytes_that_are_no_message_are_refused(probe: ProbeServer, raw: bytes) -> None:
    found = refused(lambda: probe.call("Unary", raw))

    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "MESSAGE_MALFORMED")
    assert found.metadata == {"type": "kronos.probe.v1.Probe"}
    assert found.fields == {}


def test_a_message_nested_without_end_is_refused(probe: ProbeServer) -> None:
    raw = b""
    for _ in range(3000):
        raw = b"\x52" + _varint(len(raw)) + raw

    assert refused(lambda: probe.call("Unary", raw)).reason == "MESSAGE_MALFORMED"


def test_looking_for_the_fault_in_a_hostile_message_takes_no_time() -> None:
    # Two million empty children, and a fault behind them.
    raw = b"\x4a\x00" * 2_000_000 + b"\x2a\x01\xff"

    begun = time.process_time()
    assert find_invalid_utf8(_PROBE, raw) is None
    assert time.process_time() - begun < 5


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_message_over_the_limit_says_so(probe: ProbeServer, kind: str) -> None:
    raw = Probe(word="x" * MAX_BYTES).SerializeToString()

    found = refused(lambda: probe.call(kind, raw))

    assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    assert found.metadata == {"size": str(len(raw)), "limit": str(MAX_BYTES)}
    assert str(MAX_BYTES) in found.message
    assert probe.seen == []


def test_a_message_at_the_limit_passes(probe: ProbeServer) -> None:
    raw = Probe(word="x" * (MAX_BYTES - 4)).SerializeToString()

    assert len(raw) == MAX_BYTES
    probe.call("Unary", raw)


def test_over_the_limit_of_grpc_it_is_refused_without_a_reason(probe: ProbeServer) -> None:
    found = refused(lambda: probe.call("Unary", b"\0" * (4 * MAX_BYTES + 1)))

    assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "")
    assert probe.calls == []


def _broken_rules() -> list[tuple[Any, str]]:
    in_list, in_map, deep, keyed = Probe(), Probe(), Probe(), Probe()
    in_list.tags.extend(["fine", "too long"])
    in_map.labels['a "quoted" key'] = "too long"
    deep.children.add()
    deep.children.add().child.name = "longer than ten"
    keyed.by_name["key"].children.add(name="longer than ten")
    return [
        (Probe(name="longer than ten"), "name"),
        (in_list, "tags[1]"),
        (in_map, 'labels["a "quoted" key"]'),
        (deep, "children[1].child.name"),
        (keyed, 'by_name["key"].children[0].name'),
    ]


@pytest.mark.parametrize(
    ("request_", "path"), _broken_rules(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_broken_rule_has_its_path(probe: ProbeServer, request_: Any, path: str) -> None:
    found = refused(lambda: probe.call("Unary", request_))

    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert list(found.fields) == [path]
    assert all(found.fields.values())


def test_all_broken_rules_are_told_at_once(probe: ProbeServer) -> None:
    bad = Probe(name="longer than ten", tags=["too long", "fine", "too long too"])

    assert set(refused(lambda: probe.call("Unary", bad)).fields) == {"name", "tags[0]", "tags[2]"}


def test_rules_are_checked_before_anything_is_sealed(probe: ProbeServer) -> None:
    # A sealed form would be far longer than ten characters.
    assert probe.call("Unary", Probe(secret="short"))[0].secret == "short"
    request = WriteRequest()
    request.probe.name = "longer than ten"
    assert list(refused(lambda: probe.call("Write", request)).fields) == ["probe.name"]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@settings(deadline=None, max_examples=150)
@given(
    st.recursive(
        _TEXT | st.none() | st.booleans() | st.floats(), lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner)
    )
)
def test_find_nul_finds_it_wherever_it_is(value: object) -> None:
    message = Probe()
    message.attributes["top"] = value

    assert (find_nul(message) is not None) == ("\\u0000" in repr_json(message.attributes))


def repr_json(message: struct_pb2.Struct) -> str:
    texts: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, struct_pb2.ListValue):
            for item in value:
                walk(item)
        elif isinstance(value, struct_pb2.Struct):
            for key in value:
                texts.append(key)
                walk(value[key])

    walk(message)
    return "\\u0000" if any("\0" in text for text in texts) else ""


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_looking_for_the_fault_in_garbage_never_fails(raw: bytes) -> None:
    find_invalid_utf8(_PROBE, raw)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_looking_for_the_fault_in_a_damaged_message_never_fails(position: int, patch: bytes) -> None:
    sound = _nested("x", 'attributes.fields["k"].list_value.values[1].struct_value.fields["z"].string_value')
    sound.children.add(name="n", tags=["a", "b"])
    raw = bytearray(sound.SerializeToString())
    raw[position % len(raw) : position % len(raw)] = patch

    find_invalid_utf8(_PROBE, bytes(raw))
