"""Field encryption: handlers hold sealed values alone, and requests have fingerprints."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from google.protobuf import descriptor_pool

from kronos_db.runtime.crypto.normalization import Normalization
from kronos_db.runtime.crypto.sealing import Index, Sealer
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.method import Method
from tests.parts.refusal import refused
from tests.runtime.interceptors.probe import ALL_KINDS, SERVICE, Probe, ProbeServer, WriteRequest

_FIELD = "kronos.probe.v1.Probe.secret"


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_handler_never_sees_plaintext_and_the_caller_never_sealed(probe: ProbeServer, kind: str) -> None:
    request = Probe(secret="top-secret", lookup="look-secret", word="word")
    request.children.add(secret="child-secret")
    request.child.child.secret = "deep-secret"
    request.by_name["k"].secret = "map-secret"

    response = probe.call(kind, request)[0]

    (seen,) = probe.seen
    assert b"-secret" not in seen.SerializeToString()
    for part in (seen, seen.children[0], seen.child.child, seen.by_name["k"]):
        assert part.secret.startswith("k1.")
        # The record was given an id to be bound to.
        assert UUID(part.id).version == 7
    assert seen.word == "word"
    assert len(seen.lookup) == 43
    assert (response.secret, response.children[0].secret) == ("top-secret", "child-secret")
    assert (response.child.child.secret, response.by_name["k"].secret) == ("deep-secret", "map-secret")
    assert response.lookup == seen.lookup


def test_a_sealed_value_is_found_by_its_index_without_regard_to_form(probe: ProbeServer) -> None:
    probe.call("Unary", Probe(secret="Ann@Example.org", lookup=" ann@example.ORG"))
    probe.call("Unary", Probe(secret="Ann@Example.org"))

    first, second = probe.seen
    assert first.secret.split(".")[2] == first.lookup == second.secret.split(".")[2]
    assert first.secret != second.secret


def test_an_id_is_made_canonical_before_values_are_bound_to_it(probe: ProbeServer) -> None:
    (response,) = probe.call("Unary", Probe(id="0190B6F2-7C1E-7000-8000-00000000ABCD", secret="s"))

    assert (response.id, response.secret) == ("0190b6f2-7c1e-7000-8000-00000000abcd", "s")


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_value_that_was_moved_does_not_open(probe: ProbeServer, kind: str) -> None:
    stored = Sealer(probe.ring).seal_text("x", _FIELD, str(uuid4()), Index("probe.secret", Normalization.CASELESS))
    moved = Probe(id=str(uuid4()), secret=stored)
    probe.on[kind] = {
        "Unary": lambda *_: moved,
        "ClientStream": lambda *_: moved,
        "Push": lambda _request, _call, send: send(moved),
    }.get(kind, lambda *_: iter([moved]))

    found = refused(lambda: probe.call(kind))

    assert (found.code, found.reason) == ("DATA_LOSS", "SEALED_VALUE_INVALID")
    assert found.metadata == {"field": _FIELD}
    assert _FIELD in found.message
    assert stored.encode() not in found.everything


def test_what_was_sealed_for_the_answer_is_not_opened(probe: ProbeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    sealer = Sealer(probe.ring)

    def answer(_request: Probe, call: Call) -> Probe:
        made = Probe(id=str(uuid4()))
        made.secret = sealed = sealer.seal_text("made here", _FIELD, made.id)
        call.sealed[sealed] = "made here"
        made.children.add(id=str(uuid4()))
        made.children[0].secret = sealer.seal_text("from before", _FIELD, made.children[0].id)
        return made

    opened = []
    monkeypatch.setattr(Sealer, "open_text", lambda _self, *sealed: opened.append(sealed) or "opened")
    probe.on["Unary"] = answer
    (response,) = probe.call("Unary")

    assert (response.secret, response.children[0].secret) == ("made here", "opened")
    assert len(opened) == 1


def _fingerprint(probe: ProbeServer, method: str, request: object) -> bytes:
    probe.call(method, request)
    return probe.calls[-1].fingerprint


def _write(**changes: object) -> object:
    request = WriteRequest(request_id="0190b6f2-7c1e-7000-8000-000000000001")
    request.probe.secret = "s"
    request.probe.labels.update({str(number): "v" for number in range(20)})
    for name, value in changes.items():
        target = request.probe if name in {"secret", "word"} else request
        setattr(target, name, value)
    return request


def test_equal_requests_have_one_fingerprint(probe: ProbeServer) -> None:
    first = _fingerprint(probe, "Write", _write())
    backwards = WriteRequest(request_id="0190b6f2-7c1e-7000-8000-000000000001")
    backwards.probe.labels.update({str(number): "v" for number in reversed(range(20))})
    backwards.probe.secret = "s"

    assert len(first) == 32
    assert _fingerprint(probe, "Write", _write()) == first
    assert _fingerprint(probe, "Write", backwards) == first
    # Though what the handler got was never the same twice.
    assert probe.seen[0].probe.secret != probe.seen[1].probe.secret


def test_other_methods_and_bodies_have_others(probe: ProbeServer) -> None:
    prints = {
        _fingerprint(probe, "Write", _write()),
        _fingerprint(probe, "OtherWrite", _write()),
        _fingerprint(probe, "Write", _write(secret="t")),
        _fingerprint(probe, "Write", _write(word="redacted ones count")),
        _fingerprint(probe, "Write", _write(validate_only=True)),
        _fingerprint(probe, "Write", _write(request_id="")),
    }

    assert len(prints) == 6


def test_a_mutating_call_knows_how_it_is_kept(probe: ProbeServer) -> None:
    probe.call("Write", _write(validate_only=True))
    probe.call("Write", _write(request_id=""))
    probe.call("Unary")
    kept, nameless, reading = probe.calls

    assert kept.write_id == UUID("0190b6f2-7c1e-7000-8000-000000000001")
    assert (kept.validate_only, kept.request_id_window) == (True, 3600.0)
    # Nobody can repeat it: there is nothing to compare it with.
    assert (nameless.fingerprint, nameless.write_id) == (b"", None)
    assert (reading.fingerprint, reading.write_id) == (b"", None)


def test_methods_of_other_domains_are_left_alone(probe: ProbeServer) -> None:
    encryption = probe.chain.interceptors["encryption"]
    check = Method(descriptor_pool.Default().FindMethodByName("grpc.health.v1.Health.Check"))
    unary = Method(descriptor_pool.Default().FindMethodByName(f"{SERVICE}.Unary"))

    assert encryption.request(check) is None  # type: ignore[union-attr]
    assert encryption.response(check) is None  # type: ignore[union-attr]
    assert encryption.request(unary) is not None  # type: ignore[union-attr]
