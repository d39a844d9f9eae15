"""The HTTP endpoints: the same callers and the same policy as by gRPC, and every refusal a problem document."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kronos.admin.v1 import status_pb2

from kronos_db.admin.endpoints import ENDPOINTS
from kronos_db.runtime.errors import (
    RUNTIME_ERRORS,
    ConflictError,
    KronosError,
    OverloadedError,
    UnavailableError,
)
from kronos_db.runtime.ops import gateway as gateways
from kronos_db.runtime.ops.gateway import Endpoint, Gateway, last
from kronos_db.runtime.ops.http import BODY_LIMIT, OpsServer
from kronos_db.runtime.ops.openapi import description
from tests.parts.eventually import eventually
from tests.parts.fleet import Fleet
from tests.parts.serving import Serving
from tests.runtime.interceptors.probe import SERVICE, Probe, ProbeServer


class Client:
    """Sends requests to an ops port as a caller."""

    def __init__(self, address: str, token: str | None) -> None:
        self._address = address
        self._token = token

    def __call__(
        self, verb: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPResponse, Any]:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        sent = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if body is not None and not isinstance(body, bytes):
            body, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
        connection.request(verb, path, body, {**sent, **(headers or {})})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer, json.loads(text) if text else None


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProbeServer]:
    server = ProbeServer(tmp_path_factory.mktemp("probe"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def port(probe: ProbeServer) -> Iterator[OpsServer]:
    """The methods of the probe service on an ops port."""
    endpoints = (
        Endpoint("POST", "/probe", f"{SERVICE}/Unary", "Gives back what it got."),
        Endpoint("GET", "/probe", f"{SERVICE}/OtherWrite", "The same, by query."),
        Endpoint("POST", "/probes", f"{SERVICE}/ServerStream", "Twice.", lambda found: {"probes": list(found)}),
        Endpoint("POST", "/probes/last", f"{SERVICE}/ServerStream", "The last of two.", last),
        Endpoint("POST", "/denied", f"{SERVICE}/Burn", "For strangers alone."),
    )
    gateway = Gateway(endpoints)
    server = OpsServer("127.0.0.1:0", [*gateway.routes(), description(endpoints)])
    server.start()
    gateway.serve(probe.composed)
    yield server
    server.stop()


@pytest.fixture
def ask(probe: ProbeServer, port: OpsServer) -> Client:
    probe.reset()
    return Client(port.address, probe.tokens["friend"])


def problem(answered: tuple[http.client.HTTPResponse, Any], status: int) -> dict[str, Any]:
    answer, document = answered
    assert (answer.status, answer.getheader("Content-Type")) == (status, "application/problem+json")
    assert document["status"] == status
    return dict(document)


def test_a_call_goes_through_the_whole_chain(probe: ProbeServer, ask: Client) -> None:
    answer, document = ask("POST", "/probe", {"name": "n", "secret": "Plain"}, {"X-Request-Id": "by-http"})

    assert (answer.status, answer.getheader("X-Request-Id")) == (200, "by-http")
    assert (document["name"], document["secret"]) == ("n", "Plain")
    # Sealed for the handler, opened for the caller.
    assert probe.seen[0].secret.startswith("k1.")
    assert [line["caller"] for line in probe.lines if line["request_id"] == "by-http"] == ["friend"]
    assert [entry.phase.name for entry in probe.recorder.entries] == ["BEGUN", "ENDED"]
    assert probe.overload.running()["probe"] == 0


def test_fields_that_are_not_set_are_told_too(ask: Client) -> None:
    _, document = ask("POST", "/probe", {})
    assert document["name"] == ""
    assert document["tags"] == []


def test_an_empty_body_is_an_empty_request(ask: Client) -> None:
    assert ask("POST", "/probe")[0].status == 200


def test_a_get_takes_its_request_from_the_query(probe: ProbeServer, ask: Client) -> None:
    request_id = "5f1f3d7e-6b36-4b1c-8d51-7e2ff2d4c111"
    assert ask("GET", f"/probe?request_id={request_id}&validateOnly=true")[0].status == 200
    assert (probe.seen[0].request_id, probe.seen[0].validate_only) == (request_id, True)


def test_a_stream_is_one_document(ask: Client) -> None:
    _, document = ask("POST", "/probes", {"name": "n"})
    assert [each["name"] for each in document["probes"]] == ["n", "n"]
    _, document = ask("POST", "/probes/last", {"name": "n"})
    assert document["name"] == "n"


def raising(error: KronosError) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (OverloadedError(retry_after=0.2), 429, "1"),
        (UnavailableError(retry_after=2.5), 503, "3"),
        (ConflictError(), 409, None),
    ],
)
def test_a_refusal_of_a_handler_is_a_problem(
    probe: ProbeServer, ask: Client, error: KronosError, status: int, retry: str | None
) -> None:
    probe.on["Unary"] = raising(error)
    answered = ask("POST", "/probe", {}, {"X-Request-Id": "refused"})
    document = problem(answered, status)
    expected = (RUNTIME_ERRORS[type(error)].reason, "db.kronos", "refused")
    assert (document["reason"], document["domain"], document["request_id"]) == expected
    assert answered[0].getheader("Retry-After") == retry
    assert answered[0].getheader("X-Request-Id") == "refused"


def test_nothing_of_an_unknown_exception_leaves(probe: ProbeServer, ask: Client) -> None:
    probe.on["Unary"] = raising(ZeroDivisionError("sesame"))  # type: ignore[arg-type]
    document = problem(ask("POST", "/probe", {}), 500)
    assert document["reason"] == "INTERNAL"
    assert "sesame" not in json.dumps(document)


def test_a_stream_that_fails_half_way_is_a_problem(probe: ProbeServer, ask: Client) -> None:
    def half(request: Any, _call: Any) -> Iterator[Any]:
        yield Probe(name="one")
        raise ConflictError

    probe.on["ServerStream"] = half
    assert problem(ask("POST", "/probes", {}), 409)["reason"] == "CONFLICT"


@pytest.mark.parametrize("token", [None, "kdb_unknown"])
def test_whoever_is_not_known_is_401_before_anything_is_read(
    probe: ProbeServer, port: OpsServer, token: str | None
) -> None:
    probe.reset()
    answered = Client(port.address, token)("POST", "/probe", b"{", {"Content-Type": "text/plain"})
    document = problem(answered, 401)
    assert document["reason"] == "CREDENTIAL_INVALID"
    assert answered[0].getheader("WWW-Authenticate") == "Bearer"
    assert [(entry.phase.name, entry.reason) for entry in probe.recorder.entries] == [("REFUSED", "CREDENTIAL_INVALID")]


def test_what_the_policy_does_not_allow_is_403(probe: ProbeServer, port: OpsServer) -> None:
    probe.reset()
    stranger = Client(port.address, probe.tokens["stranger"])
    document = problem(stranger("POST", "/probe", {}), 403)
    assert (document["reason"], document["metadata"]["method"]) == ("METHOD_NOT_ALLOWED", f"{SERVICE}/Unary")
    assert stranger("POST", "/denied", {})[0].status == 200


def test_what_is_not_there_is_404_and_a_wrong_method_405(ask: Client) -> None:
    problem(ask("GET", "/nothing"), 404)
    answered = ask("PUT", "/probe", {})
    problem(answered, 405)
    assert answered[0].getheader("Allow") == "GET, HEAD, POST"


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"nonsense": 1}', "application/json", 400),
        (b'{"name": 1}', "application/json", 400),
        (b'{"attributes": 5}', "application/json", 400),
    ],
)
def test_a_body_that_is_no_request_is_refused_and_recorded(
    probe: ProbeServer, ask: Client, body: bytes, kind: str, status: int
) -> None:
    document = problem(ask("POST", "/probe", body, {"Content-Type": kind}), status)
    assert document["reason"] == "BAD_REQUEST"
    assert not probe.seen
    assert [(entry.phase.name, entry.caller) for entry in probe.recorder.entries] == [("REFUSED", "friend")]
    assert probe.overload.running()["probe"] == 0


def test_a_call_that_was_let_in_ends_whatever_becomes_of_its_body(
    probe: ProbeServer, ask: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "ParseDict", raising(ZeroDivisionError()))  # type: ignore[arg-type]
    assert problem(ask("POST", "/probe", {}), 500)["reason"] == "INTERNAL"
    assert probe.overload.running()["probe"] == 0


def test_a_body_that_is_too_long_is_413(ask: Client) -> None:
    # More than the method takes, and more than the port takes.
    assert problem(ask("POST", "/probe", {"word": "w" * 100_000}), 413)["reason"] == "MESSAGE_TOO_LARGE"
    problem(ask("POST", "/probe", {"word": "w" * BODY_LIMIT}), 413)


def test_a_request_that_breaks_a_rule_is_422_and_names_the_field(ask: Client) -> None:
    document = problem(ask("POST", "/probe", {"children": [{"name": "longer than ten"}]}), 422)
    assert [each["field"] for each in document["violations"]] == ["children[0].name"]
    document = problem(ask("GET", "/probe?nonsense=1"), 422)
    assert [each["field"] for each in document["violations"]] == ["nonsense"]
    document = problem(ask("GET", "/probe?request_id=1&request_id=2"), 422)
    assert [each["field"] for each in document["violations"]] == ["request_id"]


def test_a_deadline_that_cannot_be_met_is_504(probe: ProbeServer, ask: Client) -> None:
    assert problem(ask("POST", "/probe", {}, {"Request-Timeout": "0.0000001"}), 504)["reason"] == "DEADLINE_TOO_SHORT"


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan", "3601"])
def test_a_deadline_that_is_none_is_400(ask: Client, given: str) -> None:
    problem(ask("POST", "/probe", {}, {"Request-Timeout": given}), 400)


def test_calls_leave_threads_for_probes(probe: ProbeServer, ask: Client) -> None:
    gate, inside = threading.Event(), threading.Semaphore(0)

    def hold(request: Any, _call: Any) -> Any:
        inside.release()
        gate.wait(20)
        return request

    probe.on["Unary"] = hold
    threads = [threading.Thread(target=ask, args=("POST", "/probe", {})) for _ in range(gateways.MOST_CALLS)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert inside.acquire(timeout=10)
    try:
        answered = ask("POST", "/probe", {})
        assert problem(answered, 503)["detail"] == "As many requests are in work as may."
        assert answered[0].getheader("Retry-After") == "1"
        assert ask("GET", "/openapi.json")[0].status == 200
    finally:
        gate.set()
        for thread in threads:
            thread.join(10)


def test_before_calls_are_answered_it_is_503() -> None:
    gateway = Gateway(ENDPOINTS)
    server = OpsServer("127.0.0.1:0", gateway.routes())
    server.start()
    try:
        document = problem(Client(server.address, None)("GET", "/db/status"), 503)
        assert document["detail"] == "The server does not answer calls yet."
    finally:
        server.stop()


def test_an_endpoint_without_a_method_stops_the_start() -> None:
    with pytest.raises(ValueError, match="/db/status cannot be answered by"):
        Gateway(ENDPOINTS).serve({})


def references(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        yield from ([document["$ref"]] if "$ref" in document else [])
        document = list(document.values())
    if isinstance(document, list):
        for each in document:
            yield from references(each)


def test_the_description_has_all_endpoints_and_all_that_they_name(serving: Serving) -> None:
    answer, document = Client(serving.server.ops_address, None)("GET", "/openapi.json")
    assert answer.status == 200
    assert document["openapi"].startswith("3.1")
    assert {(path, verb.upper()) for path, verbs in document["paths"].items() for verb in verbs} == {
        (endpoint.path, endpoint.verb) for endpoint in ENDPOINTS
    }
    schemas = document["components"]["schemas"]
    assert {name.removeprefix("#/components/schemas/") for name in references(document)} == set(schemas)
    described = schemas["kronos.admin.v1.GetStatusResponse"]["properties"]
    assert set(described) == {field.json_name for field in status_pb2.GetStatusResponse.DESCRIPTOR.fields}
    assert schemas["kronos.admin.v1.PartState"]["enum"] == status_pb2.PartState.keys()


def test_status_by_http(serving: Serving) -> None:
    address = serving.server.ops_address
    answer, document = Client(address, serving.tokens["operator"])("GET", "/db/status")
    assert answer.status == 200
    assert document["domains"][0]["domain"] == "users"
    assert document["backup"]["health"]["state"] == "PART_STATE_UNKNOWN"
    assert problem(Client(address, serving.tokens["reader"])("GET", "/db/status"), 403)
    assert problem(Client(address, None)("GET", "/db/status"), 401)
    assert problem(Client(address, serving.tokens["operator"])("POST", "/db/status", {}), 405)


def test_a_fleet_answers_as_its_processes_do(fleet: Fleet) -> None:
    address = fleet.settings.ops_listen
    operator = Client(address, fleet.tokens["operator"])
    answer, _ = operator("GET", "/db/status", headers={"X-Request-Id": "by-supervisor"})
    assert (answer.status, answer.getheader("X-Request-Id")) == (200, "by-supervisor")

    def processes() -> list[dict[str, Any]]:
        return list(operator("GET", "/db/status")[1]["processes"])

    def healthy() -> bool:
        return {each["health"]["state"] for each in processes()} == {"PART_STATE_OK"}

    eventually(healthy)
    assert {each["pid"] for each in processes()} == {child.pid for child in fleet.children()}
    assert operator("GET", "/openapi.json")[0].status == 200
    answered = Client(address, None)("GET", "/db/status")
    assert problem(answered, 401)["reason"] == "CREDENTIAL_INVALID"
    assert answered[0].getheader("WWW-Authenticate") == "Bearer"
    assert problem(Client(address, fleet.tokens["reader"])("GET", "/db/status"), 403)
    assert problem(operator("GET", "/db/nothing"), 404)
    assert problem(operator("GET", "/db/status?nonsense=1"), 422)["violations"][0]["field"] == "nonsense"
    answered = operator("DELETE", "/db/status")
    assert problem(answered, 405)
    assert answered[0].getheader("Allow") == "GET, HEAD"

    # One process less: whoever is left answers.
    victim = fleet.children()[0]
    victim.kill()
    assert operator("GET", "/db/status")[0].status == 200

    eventually(lambda: healthy() and victim.pid not in {each["pid"] for each in processes()}, 20)
