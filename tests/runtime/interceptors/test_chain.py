"""The chain as a whole: its order, and that every kind of method goes through all of it."""

from __future__ import annotations

import gc
import queue
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool

from kronos_db.runtime.errors import SealBrokenError
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.chain import ORDER, Chain, Filter, Guard, Registrar
from kronos_db.runtime.interceptors.method import Method
from tests.parts.eventually import eventually
from tests.parts.refusal import read, refused
from tests.runtime.interceptors.probe import ALL_KINDS, KIND_NAMES, SERVICE, Probe, ProbeServer, TeapotError

_STREAMS_OUT = ("ServerStream", "BidiStream", "Push")


def test_the_order_is_that_of_the_design_and_every_place_has_its_reason() -> None:
    names = [place.name for place in ORDER]

    assert names == [
        "access_log",
        "metrics",
        "errors",
        "audit_outcome",
        "authentication",
        "overload",
        "validation",
        "audit_request",
        "encryption",
    ]
    assert all(len(place.because.split()) >= 8 for place in ORDER)
    assert len({place.because for place in ORDER}) == len(ORDER)


def test_the_links_stand_in_the_chain_in_that_order(probe: ProbeServer) -> None:
    guards = [type(link).__name__ for link in probe.chain._guards]
    filters = [type(link).__name__ for link in probe.chain._filters]

    assert guards == ["AccessLog", "Metrics", "Errors", "AuditOutcome", "Authentication", "Overload"]
    assert filters == ["Metrics", "Overload", "Validation", "AuditRequest", "Encryption"]


def test_a_chain_with_a_missing_or_unknown_link_is_refused(probe: ProbeServer) -> None:
    links = dict(probe.chain.interceptors)

    with pytest.raises(ValueError, match="exactly the interceptors of ORDER"):
        Chain({name: link for name, link in links.items() if name != "overload"})
    with pytest.raises(ValueError, match="exactly the interceptors of ORDER"):
        Chain({**links, "cache": links["overload"]})


def test_each_method_is_composed_once_and_not_per_call(probe: ProbeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for link in probe.chain.interceptors.values():
        for name in ("begin", "end", "request", "response"):
            if hasattr(link, name):
                monkeypatch.setattr(link, name, lambda *_, name=name: made.append(name))

    for kind in ALL_KINDS:
        probe.call(kind)

    assert made == []


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_call_goes_through_all_of_them(probe: ProbeServer, kind: str) -> None:
    before = probe.counts(kind)

    responses = probe.call(kind, Probe(secret="Plain", word="open"), metadata=[("x-request-id", "seven")])

    assert {(response.secret, response.word) for response in responses} == {("Plain", "open")}
    # Encryption stood between the caller and the handler, and sealed and opened.
    assert {seen.secret[:3] for seen in probe.seen} == {"k1."}

    def lines() -> list[tuple[str, str]]:
        # The line of the call before this test's may come late.
        return [(line["caller"], line["code"]) for line in probe.lines if line["request_id"] == "seven"]

    eventually(lines)
    assert lines() == [("friend", "OK")]
    counted = probe.counts(kind) - before
    assert counted["started"] == counted["handled OK"] == counted["handling_seconds_count"] == 1
    assert counted["msg_received"] == 1
    assert counted["msg_sent"] == len(responses)
    assert probe.overload.running()["probe"] == 0


@pytest.mark.parametrize("kind", ["ClientStream", "BidiStream"])
def test_every_message_of_a_stream_is_checked_and_sealed(probe: ProbeServer, kind: str) -> None:
    requests = [Probe(secret=f"s{number}") for number in range(5)]

    responses = probe.call(kind, *requests)

    assert [seen.secret[:3] for seen in probe.seen] == ["k1."] * 5
    assert [response.secret for response in responses] == (
        ["s4"] if kind == "ClientStream" else [f"s{number}" for number in range(5)]
    )


@pytest.mark.parametrize("kind", ["ClientStream", "BidiStream"])
def test_a_bad_message_in_the_middle_ends_the_stream(probe: ProbeServer, kind: str) -> None:
    found = refused(lambda: probe.call(kind, Probe(name="fine"), Probe(name="far too long"), Probe(name="unseen")))

    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert list(found.fields) == ["name"]
    assert [seen.name for seen in probe.seen] == ["fine"]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_kind_ends_with_the_error_of_its_handler(probe: ProbeServer, kind: str) -> None:
    before = probe.counts(kind)

    def fail(*_: Any) -> Any:
        raise TeapotError(metadata={"vessel": "kettle"})

    probe.on[kind] = fail
    found = refused(lambda: probe.call(kind))

    assert (found.code, found.reason, found.message) == (
        "FAILED_PRECONDITION",
        "TEAPOT",
        "The kettle is short and stout.",
    )
    eventually(lambda: probe.lines)
    assert probe.lines[0]["code"] == "FAILED_PRECONDITION"
    assert (probe.counts(kind) - before)["handled FAILED_PRECONDITION"] == 1
    assert probe.overload.running()["probe"] == 0


@pytest.mark.parametrize("kind", ["ServerStream", "BidiStream"])
def test_an_error_after_the_first_response_comes_after_it(probe: ProbeServer, kind: str) -> None:
    def one_and_fail(_requests: Any, _call: Call) -> Iterator[Any]:
        yield Probe(name="first")
        raise TeapotError(metadata={"vessel": "pot"})

    probe.on[kind] = one_and_fail
    stream = probe.start(kind, Probe())

    assert next(stream).name == "first"
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert read(caught.value).reason == "TEAPOT"


@pytest.mark.parametrize("kind", _STREAMS_OUT)
def test_a_caller_who_leaves_counts_as_cancelled_once(probe: ProbeServer, kind: str) -> None:
    before = probe.counts(kind)
    gone = threading.Event()

    def endless(_requests: Any, call: Call, *send: Any) -> Any:
        call.context.add_callback(gone.set)
        if send:
            send[0](Probe(name="one"))
            return None
        return _until(gone)

    probe.on[kind] = endless
    stream = probe.start(kind, Probe())
    assert next(stream).name == "one"
    stream.cancel()

    eventually(lambda: probe.lines)
    assert [line["code"] for line in probe.lines] == ["CANCELLED"]
    eventually(lambda: (probe.counts(kind) - before)["handled CANCELLED"] == 1)
    assert (probe.counts(kind) - before)["started"] == 1
    eventually(lambda: probe.overload.running()["probe"] == 0)


def _held(sends: list[Any]) -> Any:
    """Return a handler that answers once and keeps its stream open."""

    def hold(_request: Any, _call: Call, send: Any) -> None:
        send(Probe(name="one"))
        sends.append(send)

    return hold


def _until(gone: threading.Event) -> Iterator[Any]:
    yield Probe(name="one")
    assert gone.wait(10)
    yield Probe(name="two")


@pytest.mark.parametrize("kind", ["ClientStream", "BidiStream"])
def test_a_caller_who_leaves_while_sending_counts_once(probe: ProbeServer, kind: str) -> None:
    before = probe.counts(kind)
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    requests.put(Probe(name="only"))
    call = probe.start(kind, iter(requests.get, None))
    eventually(lambda: probe.seen)

    call.cancel()
    requests.put(None)

    eventually(lambda: probe.lines)
    # gRPC may tell that the requests are over before it tells that the caller is gone.
    [code] = [line["code"] for line in probe.lines]
    assert code in {"CANCELLED", "OK"}
    eventually(lambda: (probe.counts(kind) - before)[f"handled {code}"] == 1)
    eventually(lambda: probe.overload.running()["probe"] == 0)


def test_a_deadline_that_passes_in_a_pushed_stream_counts_as_cancelled(probe: ProbeServer) -> None:
    probe.on["Push"] = lambda _request, _call, send: send(Probe(name="one"))
    stream = probe.start("Push", Probe(), timeout=0.3)

    assert next(stream).name == "one"
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: probe.lines)
    assert [line["code"] for line in probe.lines] == ["CANCELLED"]


class TestPushed:
    """Handlers that answer by callback."""

    def test_they_hold_no_thread(self, probe: ProbeServer) -> None:
        sends: list[Any] = []
        probe.on["Push"] = _held(sends)
        streams = [probe.start("Push", Probe()) for _ in range(20)]
        for stream in streams:
            next(stream)
        eventually(lambda: len(sends) == 20)

        # Two workers, 20 streams: other calls are still answered, and no thread was made for any stream.
        assert probe.call("Unary", Probe(name="still"), timeout=5)[0].name == "still"
        assert probe.call("BidiStream", Probe(name="still"), timeout=5)[0].name == "still"
        assert probe.overload.running()["probe"] == 20
        for send in sends:
            send(None)
        assert [list(stream) for stream in streams] == [[]] * 20
        eventually(lambda: probe.overload.running()["probe"] == 0)
        assert {line["code"] for line in probe.lines} == {"OK"}

    def test_a_refusal_at_the_beginning_unwinds_what_was_entered(self, probe: ProbeServer) -> None:
        before = probe.counts("Push")

        found = refused(lambda: probe.call("Push", caller="stranger"))

        assert (found.code, found.reason) == ("PERMISSION_DENIED", "METHOD_NOT_ALLOWED")
        assert probe.seen == []
        assert [line["code"] for line in probe.lines] == ["PERMISSION_DENIED"]
        assert probe.counts("Push") - before == {
            "started": 1,
            "handled PERMISSION_DENIED": 1,
            "handling_seconds_count": 1,
        }
        assert probe.overload.running().get("probe", 0) == 0

    def test_an_answer_that_does_not_open_ends_that_stream_and_no_other(self, probe: ProbeServer) -> None:
        sends: list[Any] = []
        probe.on["Push"] = _held(sends)
        sick = probe.start("Push", Probe())
        next(sick)
        eventually(lambda: sends)
        sound = probe.start("Push", Probe())
        next(sound)
        eventually(lambda: len(sends) == 2)

        # What a domain does when something happens: it tells one watcher after the other.
        sends[0](Probe(secret="k1.moved", id="a"))
        sends[1](Probe(name="two"))
        sends[1](None)

        with pytest.raises(grpc.RpcError) as caught:
            list(sick)
        assert (read(caught.value).code, read(caught.value).reason) == ("DATA_LOSS", "SEALED_VALUE_INVALID")
        assert [response.name for response in sound] == ["two"]
        eventually(lambda: sorted(line["code"] for line in probe.lines) == ["DATA_LOSS", "OK"])
        eventually(lambda: probe.overload.running()["probe"] == 0)
        # A domain that has not noticed yet does no harm.
        sends[0](Probe(name="three"))
        sends[0](None)
        sends[1](None)
        assert len(probe.lines) == 2

    def test_an_error_after_the_first_answer(self, probe: ProbeServer) -> None:
        def one_and_fail(_request: Any, _call: Call, send: Any) -> None:
            send(Probe(name="one"))
            raise SealBrokenError(metadata={"field": "x"})

        probe.on["Push"] = one_and_fail
        stream = probe.start("Push", Probe())

        assert next(stream).name == "one"
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert read(caught.value).reason == "SEALED_VALUE_INVALID"


def test_idle_streams_of_any_kind_leave_the_workers_to_other_calls(probe: ProbeServer) -> None:
    ends: queue.SimpleQueue[None] = queue.SimpleQueue()
    # Twice as many as there are workers.
    streams = [probe.start("BidiStream", iter(ends.get, None)) for _ in range(4)]
    eventually(lambda: probe.overload.running()["probe"] == 4)

    assert probe.call("Unary", Probe(name="served"), timeout=5)[0].name == "served"

    for _ in streams:
        ends.put(None)
    assert [list(stream) for stream in streams] == [[]] * 4


def test_compute_methods_run_in_their_own_pool(probe: ProbeServer) -> None:
    names: list[str] = []

    def note(request: Any, _call: Call) -> Any:
        names.append(threading.current_thread().name)
        return request

    probe.on["Burn"] = probe.on["Unary"] = note
    probe.call("Burn")
    probe.call("Unary")

    assert names[0].startswith("compute-probe")
    assert names[1].startswith("worker-probe")


def test_a_foreign_handler_gets_the_context_of_grpc_and_its_code_is_counted(probe: ProbeServer) -> None:
    method = Method(descriptor_pool.Default().FindMethodByName("grpc.health.v1.Health.Check"))
    context = _Context()
    links = {**probe.chain.interceptors, "authentication": _Nobody()}
    chain = Chain(links)

    def check(_request: Any, given: Any) -> Any:
        assert given is context
        given.set_code(grpc.StatusCode.NOT_FOUND)
        return method.request_class()

    handler = chain.compose(method, grpc.unary_unary_rpc_method_handler(check))
    assert handler.unary_unary is not None
    handler.unary_unary(b"", context)

    assert probe.lines[-1]["code"] == "NOT_FOUND"


def test_a_refusal_leaves_nothing_for_the_collector(probe: ProbeServer) -> None:
    """A flood makes thousands a second, and a collection stops all threads for milliseconds."""
    method = Method(descriptor_pool.Default().FindMethodByName(f"{SERVICE}.Unary"))
    refusing = _Refusing()
    chain = Chain({**probe.chain.interceptors, "authentication": refusing})
    handler = chain.compose(method, grpc.unary_unary_rpc_method_handler(lambda request, _call: request))
    assert handler.unary_unary is not None
    gc.disable()
    try:
        with suppress(ConnectionAbortedError):
            handler.unary_unary(b"", _Context())
        assert refusing.seen is not None
        assert refusing.seen() is None
    finally:
        gc.enable()


class _Refusing:
    """Refuses every call, and knows whether that is forgotten."""

    seen: weakref.ref[Exception] | None = None

    def begin(self, _method: Method) -> Any:
        def begin(_call: Call) -> None:
            error = TeapotError(metadata={"vessel": "pot"})
            self.seen = weakref.ref(error)
            try:
                raise error
            finally:
                del error

        return begin

    def end(self, _method: Method) -> None: ...


class _Nobody:
    def begin(self, _method: Method) -> None: ...

    def end(self, _method: Method) -> None: ...


class _Context:
    def __init__(self) -> None:
        self._code: Any = None

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> float:
        return float("inf")

    def is_active(self) -> bool:
        return True

    def set_trailing_metadata(self, _metadata: object) -> None: ...

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> Any:
        return self._code

    def trailing_metadata(self) -> tuple[()]:
        return ()

    def abort_with_status(self, _status: object) -> None:
        raise ConnectionAbortedError


def test_handlers_outside_of_the_chain_say_so() -> None:
    with pytest.raises(TypeError, match="in the chain alone"):
        Call.of(object())


def test_the_registrar_keeps_handlers_by_method() -> None:
    registrar = Registrar()
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, _context: request)
    registrar.add_registered_method_handlers(SERVICE, {"Unary": handler})
    registrar.add_generic_rpc_handlers(())

    (method,) = registrar.handlers
    assert (method.path, method.domain, method.kind, method.ours) == (f"{SERVICE}/Unary", "probe", "unary", True)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_kinds_are_named_as_metrics_name_them(kind: str) -> None:
    method = Method(descriptor_pool.Default().FindMethodByName(f"{SERVICE}.{kind}"))

    assert method.kind == KIND_NAMES.get(kind, "server_stream")


def test_what_is_neither_guard_nor_filter_would_be_passed_over(probe: ProbeServer) -> None:
    assert all(isinstance(link, Guard | Filter) for link in probe.chain.interceptors.values())


def test_many_calls_of_all_kinds_at_once_are_all_counted(probe: ProbeServer) -> None:
    before = {kind: probe.counts(kind) for kind in ALL_KINDS}

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: probe.call(ALL_KINDS[number % 5], Probe(name=str(number))), range(200)))

    assert [result[0].name for result in results] == [str(number) for number in range(200)]
    eventually(lambda: len(probe.lines) == 200)
    for kind in ALL_KINDS:
        counted = probe.counts(kind) - before[kind]
        assert counted["started"] == counted["handled OK"] == 40
    eventually(lambda: probe.overload.running()["probe"] == 0)
