"""The access log: a line per call under a name that cannot be forged, and nothing of what was said."""

from __future__ import annotations

import json
from contextvars import copy_context
from typing import Any
from uuid import UUID

import pytest

from kronos_db.runtime import tracing
from kronos_db.runtime.interceptors.access_log import AccessLog
from kronos_db.runtime.interceptors.method import Method
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.runtime.interceptors.probe import ALL_KINDS, SERVICE, Probe, ProbeServer


def _request_id(probe: ProbeServer, *given: tuple[str, Any]) -> str:
    call = probe.start("Unary", Probe(), metadata=given)
    call.result()
    return str(dict(call.trailing_metadata())["x-request-id"])


@pytest.mark.parametrize("given", ["a", "0190b6f2-7c1e-7000-8000-000000000000", "trace:1/2+3=4._-", "x" * 128])
def test_a_name_given_comes_back(probe: ProbeServer, given: str) -> None:
    assert _request_id(probe, ("x-request-id", given)) == given
    assert probe.lines[0]["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", '","level":"error', "<b>", "a;b"])
def test_a_name_that_could_forge_a_line_is_replaced(probe: ProbeServer, given: str) -> None:
    made = _request_id(probe, ("x-request-id", given))

    assert UUID(made).version == 7
    assert probe.lines[0]["request_id"] == made


@pytest.mark.parametrize("given", ["a\nb", "a\n", "a\tb", "\x1b[31m", "é", b"bytes", "x" * 100_000])
def test_what_grpc_would_not_carry_is_replaced_too(given: str | bytes) -> None:
    call: Any = _Call({"x-request-id": given})
    begin = AccessLog().begin(_METHOD)

    # As gRPC does: what is at hand there is of that call alone.
    copy_context().run(begin, call)

    assert UUID(call.request_id).version == 7
    assert call.context.trailing == (("x-request-id", call.request_id),)


def test_a_call_without_a_name_gets_one(probe: ProbeServer) -> None:
    assert UUID(_request_id(probe)).version == 7


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_line_has_the_callers_place_in_its_trace(probe: ProbeServer, kind: str) -> None:
    trace_id, span_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    probe.call(kind, Probe(), metadata=[("traceparent", f"00-{trace_id}-{span_id}-01")])
    # A pushed stream has ended for its caller before its line is written.
    eventually(lambda: len(probe.lines) == 1)
    probe.call(kind, Probe(), metadata=[("traceparent", f"00-{trace_id}-not one-01")])

    eventually(lambda: len(probe.lines) == 2)
    assert (probe.lines[0]["trace_id"], probe.lines[0]["span_id"]) == (trace_id, span_id)
    assert not {"trace_id", "span_id"} & set(probe.lines[1])


def test_what_is_logged_meanwhile_is_of_the_call(probe: ProbeServer) -> None:
    seen: list[tracing.Subject | None] = []

    def answer(request: Any, _call: object) -> Any:
        seen.append(tracing.current.get())
        return request

    probe.on["Unary"] = answer
    names = [_request_id(probe) for _ in range(3)]
    assert [subject and subject.request_id for subject in seen] == names


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_one_line_per_call_without_anything_of_its_content(probe: ProbeServer, kind: str) -> None:
    marked = Probe(secret="marker-secret", word="marker-word", name="mark-name", lookup="marker-look")

    probe.call(kind, marked)
    # As above.
    eventually(lambda: len(probe.lines) == 1)
    refused(lambda: probe.call(kind, Probe(word="marker-word", name="marker-too-long")))

    eventually(lambda: len(probe.lines) == 2)
    for line, code in zip(probe.lines, ["OK", "INVALID_ARGUMENT"], strict=True):
        milliseconds = line.pop("ms")
        assert 0 <= milliseconds < 10_000
        assert UUID(line.pop("request_id")).version == 7
        assert line == {"event": "call", "method": f"{SERVICE}/{kind}", "code": code, "caller": "friend"}
    assert "mark" not in json.dumps(probe.lines)


def test_a_refused_caller_has_no_name_in_its_line(probe: ProbeServer) -> None:
    refused(lambda: probe.call("Unary", caller=None))

    assert (probe.lines[0]["caller"], probe.lines[0]["code"]) == ("", "UNAUTHENTICATED")


class _Context:
    trailing: Any = None

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.trailing = metadata


class _Call:
    def __init__(self, metadata: dict[str, Any]) -> None:
        self.metadata = metadata
        self.context = _Context()
        self.request_id = ""


_METHOD = Method(Probe.DESCRIPTOR.file.services_by_name["ProbeService"].methods_by_name["Unary"])
