"""What is recorded of calls: before they run, and what became of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from kronos.options.v1 import options_pb2

from kronos_db.runtime.crypto.marks import Marks
from kronos_db.runtime.errors import UnavailableError
from kronos_db.runtime.interceptors.audit import MOST_CHARACTERS, AuditRequest, Entry, Phase
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.interceptors.terms import Terms
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.runtime.interceptors.probe import ALL_KINDS, SERVICE, Probe, ProbeServer, TeapotError, WriteRequest


def recorded(probe: ProbeServer, count: int) -> list[Entry]:
    eventually(lambda: len(probe.recorder.entries) >= count)
    assert len(probe.recorder.entries) == count
    return probe.recorder.entries


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_call_is_recorded_before_it_runs_and_with_its_outcome(probe: ProbeServer, kind: str) -> None:
    before: list[int] = []
    probe_call = probe.calls

    def count(entry: Entry, record: Any = probe.recorder.record) -> None:
        before.append(len(probe_call))
        record(entry)

    probe.recorder.record = count  # type: ignore[method-assign]
    try:
        probe.call(kind, Probe(name="n"), metadata=[("x-request-id", "mine")])
        begun, ended = recorded(probe, 2)
    finally:
        del probe.recorder.record

    # A handler of a stream may be called first, but gets no request before that.
    assert before[0] == (1 if kind in {"ClientStream", "BidiStream"} else 0)
    assert (begun.phase, begun.code, begun.request) == (Phase.BEGUN, "", 'name: "n"')
    assert (ended.phase, ended.code, ended.reason, ended.request) == (Phase.ENDED, "OK", "", "")
    assert begun.call_id == ended.call_id
    assert {(each.caller, each.method, each.request_id) for each in (begun, ended)} == {
        ("friend", f"{SERVICE}/{kind}", "mine")
    }


def test_request_is_recorded_without_what_is_marked(probe: ProbeServer) -> None:
    probe.call("Write", WriteRequest(probe=Probe(secret="s3cret", lookup="l00k", word="w0rd", name="plain")))

    begun, _ = recorded(probe, 2)

    assert "plain" in begun.request
    assert not any(word in begun.request for word in ("s3cret", "l00k", "w0rd"))
    assert begun.request.count("***") == 3


def test_long_request_is_cut(probe: ProbeServer) -> None:
    probe.call("Unary", Probe(labels={str(number): "v" for number in range(1000)}))

    begun, _ = recorded(probe, 2)

    assert len(begun.request) == MOST_CHARACTERS + 1
    assert begun.request.endswith("…")


def test_outcome_of_a_call_that_failed_has_its_reason(probe: ProbeServer) -> None:
    def fail(_request: Any, _call: Any) -> Any:
        raise TeapotError(metadata={"vessel": "it"})

    probe.on["Unary"] = fail
    assert refused(lambda: probe.call("Unary")).reason == "TEAPOT"

    begun, ended = recorded(probe, 2)
    assert (ended.phase, ended.code, ended.reason) == (Phase.ENDED, "FAILED_PRECONDITION", "TEAPOT")
    assert begun.call_id == ended.call_id


@pytest.mark.parametrize(
    ("caller", "request_", "name", "expected"),
    [
        (None, Probe(), "Unary", ("", "UNAUTHENTICATED", "CREDENTIAL_INVALID")),
        ("stranger", Probe(), "Unary", ("stranger", "PERMISSION_DENIED", "METHOD_NOT_ALLOWED")),
        ("friend", Probe(name="longer than ten"), "Unary", ("friend", "INVALID_ARGUMENT", "BAD_REQUEST")),
        ("friend", b"\xff", "Unary", ("friend", "INVALID_ARGUMENT", "MESSAGE_MALFORMED")),
        ("friend", Probe(name="longer than ten"), "Burn", ("friend", "INVALID_ARGUMENT", "BAD_REQUEST")),
    ],
)
def test_refusal_is_recorded(probe: ProbeServer, caller: str, request_: Any, name: str, expected: Any) -> None:
    with pytest.raises(grpc.RpcError):
        probe.call(name, request_, caller=caller)

    [entry] = recorded(probe, 1)
    assert entry.phase is Phase.REFUSED
    assert (entry.caller, entry.code, entry.reason) == expected
    assert entry.request == ""


def test_call_that_cannot_be_recorded_does_not_run(probe: ProbeServer) -> None:
    probe.recorder.failure = UnavailableError("away")
    assert refused(lambda: probe.call("Unary")).reason == "UNAVAILABLE"

    [entry] = recorded(probe, 1)
    assert not probe.calls
    assert (entry.phase, entry.code) == (Phase.REFUSED, "UNAVAILABLE")


def test_answer_is_not_lost_when_its_outcome_cannot_be_recorded_at_once(probe: ProbeServer) -> None:
    def answer(request: Any, _call: Any) -> Any:
        probe.recorder.failure = UnavailableError("away")
        return request

    probe.on["Unary"] = answer
    assert probe.call("Unary", Probe(name="n"))[0].name == "n"

    _, ended = recorded(probe, 2)
    assert (ended.phase, ended.code) == (Phase.ENDED, "OK")


def test_call_that_only_reads_is_recorded_when_it_fails_alone(probe: ProbeServer) -> None:
    probe.call("Burn")
    assert not probe.recorder.entries

    def fail(_request: Any, _call: Any) -> Any:
        raise TeapotError

    probe.on["Burn"] = fail
    assert refused(lambda: probe.call("Burn")).reason == "TEAPOT"
    [entry] = recorded(probe, 1)
    assert (entry.phase, entry.reason) == (Phase.REFUSED, "TEAPOT")


def test_handler_says_what_stands_beside_the_request(probe: ProbeServer) -> None:
    descriptor = descriptor_pool.Default().FindServiceByName(SERVICE).methods_by_name["Unary"]
    method = Method(descriptor, terms=Terms(detail=lambda message: f"fingerprint of {message.name}"))
    step = AuditRequest(probe.recorders, Marks()).request(method)
    assert step is not None

    step(Probe(name="n"), Call(method, SimpleNamespace(invocation_metadata=lambda: ())))  # type: ignore[arg-type]

    [begun] = probe.recorder.entries
    assert begun.detail == "fingerprint of n"


def test_method_that_reads_is_recorded_beforehand_when_the_contract_says_so() -> None:
    file = FileDescriptorProto(name="kronos/audited/v1/audited.proto", package="kronos.audited.v1", syntax="proto3")
    file.message_type.add(name="Empty")
    empty = ".kronos.audited.v1.Empty"
    service = file.service.add(name="AuditedService")
    for name, level, audited in (("Read", 1, False), ("Run", 1, True), ("Write", 2, False), ("Unknown", 0, False)):
        method = service.method.add(name=name, input_type=empty, output_type=empty)
        method.options.idempotency_level = level  # type: ignore[assignment]
        method.options.Extensions[options_pb2.audited] = audited
    pool = DescriptorPool()
    pool.Add(file)
    methods = pool.FindServiceByName("kronos.audited.v1.AuditedService").methods
    assert [method.name for method in methods if Method(method).audited] == ["Run", "Write", "Unknown"]
