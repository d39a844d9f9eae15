"""The ops port: its routes, its bounds, and that nothing of a failure leaves it."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from structlog.testing import capture_logs

from kronos_db.runtime.ops import http as ops
from kronos_db.runtime.ops.http import OpsAddressError, OpsServer, ProblemError, Request, Response, Route
from kronos_db.runtime.ops.readiness import Readiness


class Port:
    """A running ops port, and what can be done to the parts behind it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.readiness = Readiness(timeout=5)
        self.fault: str | None = None
        self.readiness.add("users database", lambda: self.fault)
        registry = CollectorRegistry()
        Counter("calls_total", "Calls.", registry=registry).inc()
        self.gate = threading.Event()
        routes = [
            *ops.standard_routes(registry, self.readiness),
            Route("POST", "/echo", lambda request: Response.of_json(request.json())),
            Route("GET", "/query", lambda request: Response.of_json(dict(request.query))),
            Route("GET", "/held", self.held),
            Route("GET", "/broken", self.broken),
            Route("GET", "/refused", self.refused),
        ]
        self.server = OpsServer(f"{host}:0", routes)
        self.server.start()
        self.place = (host.strip("[]"), int(self.server.address.rpartition(":")[2]))

    def held(self, _request: Request) -> Response:
        self.gate.wait(30)
        return Response()

    def broken(self, _request: Request) -> Response:
        raise RuntimeError("password=sesame")

    def refused(self, _request: Request) -> Response:
        raise ProblemError(HTTPStatus.CONFLICT, "Not now.", headers={"Retry-After": "1"})

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(*self.place, timeout=30)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer, answer.read()

    def raw(self, data: bytes) -> bytes:
        with socket.create_connection(self.place, timeout=30) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    port.gate.set()
    port.server.stop()


def problem(answer: http.client.HTTPResponse, body: bytes) -> dict[str, Any]:
    assert answer.getheader("Content-Type") == "application/problem+json"
    document: dict[str, Any] = json.loads(body)
    assert document["status"] == answer.status
    assert document["title"] == HTTPStatus(answer.status).phrase
    return document


def test_metrics_in_the_classic_format(port: Port) -> None:
    answer, body = port.ask("GET", "/metrics")
    assert answer.status == 200
    assert (answer.getheader("Content-Type") or "").startswith("text/plain; version=0.0.4")
    assert b"\ncalls_total 1.0\n" in body


def test_metrics_as_openmetrics_and_compressed(port: Port) -> None:
    headers = {"Accept": "application/openmetrics-text; version=1.0.0", "Accept-Encoding": "gzip"}
    answer, body = port.ask("GET", "/metrics", headers=headers)
    assert (answer.getheader("Content-Type") or "").startswith("application/openmetrics-text; version=1.0.0")
    assert answer.getheader("Content-Encoding") == "gzip"
    lines = gzip.decompress(body).decode().splitlines()
    assert "calls_total 1.0" in lines
    assert lines[-1] == "# EOF"


def test_livez_is_about_the_process_alone(port: Port) -> None:
    port.fault = "away"
    port.readiness.drain()
    answer, body = port.ask("GET", "/livez")
    assert (answer.status, json.loads(body)) == (200, {"status": "ok"})


def test_readyz_names_what_is_not_ready(port: Port) -> None:
    answer, body = port.ask("GET", "/readyz")
    assert (answer.status, json.loads(body)["parts"]) == (200, {"server": "ok", "users database": "ok"})
    port.fault = "no connection to the database"
    answer, body = port.ask("GET", "/readyz")
    assert answer.status == 503
    assert json.loads(body) == {
        "status": "not ready",
        "parts": {"server": "ok", "users database": "no connection to the database"},
    }


def test_readyz_fails_while_draining(port: Port) -> None:
    port.readiness.drain()
    answer, body = port.ask("GET", "/readyz")
    assert answer.status == 503
    assert json.loads(body)["parts"]["server"] == "draining: takes no new work"


def test_head_is_get_without_the_body(port: Port) -> None:
    answer, body = port.ask("HEAD", "/livez")
    assert (answer.status, answer.getheader("Content-Length"), body) == (200, "17", b"")
    assert port.ask("HEAD", "/nothing")[0].status == 404


def test_an_unknown_path_is_404(port: Port) -> None:
    assert problem(*port.ask("GET", "/nothing?x=1"))["detail"] == "Nothing is at /nothing."


@pytest.mark.parametrize(
    ("method", "path", "allow"), [("POST", "/livez", "GET, HEAD"), ("GET", "/echo", "POST"), ("BREW", "/echo", "POST")]
)
def test_a_wrong_method_is_405_with_the_right_ones(port: Port, method: str, path: str, allow: str) -> None:
    answer, body = port.ask(method, path)
    assert (answer.status, answer.getheader("Allow")) == (405, allow)
    assert problem(answer, body)["detail"] == f"{path} answers {allow} only."


def test_a_json_body_and_a_query_reach_the_handler(port: Port) -> None:
    answer, body = port.ask("POST", "/echo", b'{"a": 1}', {"Content-Type": "application/json; charset=utf-8"})
    assert (answer.status, json.loads(body)) == (200, {"a": 1})
    assert json.loads(port.ask("GET", "/query?a=1&a=2&b=%20&c")[1]) == {"a": ["1", "2"], "b": [" "], "c": [""]}


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{", 400),
        ({"Content-Type": "application/json"}, b"[" * 100_000, 400),
        ({"Content-Type": "application/json"}, b'"\xff"', 400),
        ({"Content-Type": "text/plain"}, b"{}", 415),
        ({}, None, 415),
        ({"Content-Length": "x"}, None, 400),
        ({"Content-Length": "-1"}, None, 400),
        ({"Content-Length": "9" * 5000}, None, 413),
        ({"Content-Length": str(ops.BODY_LIMIT + 1)}, None, 413),
        ({"Transfer-Encoding": "chunked"}, None, 411),
    ],
)
def test_a_wrong_body_is_a_problem(port: Port, headers: dict[str, str], body: bytes | None, status: int) -> None:
    answer, text = port.ask("POST", "/echo", body, headers)
    assert answer.status == status
    problem(answer, text)


def test_a_body_is_asked_for_only_when_it_is_wanted(port: Port) -> None:
    head = "POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    assert port.raw(head.format(2).encode() + b"[]").startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert port.raw(head.format(ops.BODY_LIMIT + 1).encode()).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"garbage\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"505"),
        (b"GET http://[ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /" + b"a" * ops.HEAD_LIMIT * 10, b"431"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * ops.HEAD_LIMIT, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
    ],
)
def test_what_is_not_http_is_a_problem(port: Port, data: bytes, status: bytes) -> None:
    answer = port.raw(data)
    assert answer.split(b" ")[1] == status
    assert b"application/problem+json" in answer


def test_a_problem_of_a_handler_is_its_answer(port: Port) -> None:
    answer, body = port.ask("GET", "/refused")
    assert (answer.status, answer.getheader("Retry-After")) == (409, "1")
    assert problem(answer, body)["detail"] == "Not now."


def test_nothing_of_an_exception_leaves(port: Port, capfd: pytest.CaptureFixture[str]) -> None:
    with capture_logs() as logs:
        answer, body = port.ask("GET", "/broken")
        assert problem(answer, body)["detail"] == "The server failed; its log has the detail."
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["ops request failed"]
    assert capfd.readouterr().err == ""


def test_a_connection_is_closed_after_its_answer(port: Port) -> None:
    answer = port.raw(b"GET /livez HTTP/1.1\r\n\r\nGET /livez HTTP/1.1\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert b"\r\nConnection: close\r\n" in answer


def test_a_slow_request_is_given_up(
    port: Port, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ops, "REQUEST_TIMEOUT", 0.1)
    begin = time.monotonic()
    with capture_logs(), socket.create_connection(port.place, timeout=30) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX:")
        assert connection.recv(1) == b""
    assert time.monotonic() - begin < 10
    assert capfd.readouterr().err == ""


def test_whoever_comes_beyond_the_bound_is_sent_away_and_the_others_are_served(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [socket.create_connection(port.place, timeout=30) for _ in range(ops.THREADS)]
    for connection in held:
        connection.sendall(b"GET /held HTTP/1.1\r\n\r\n")
    deadline = time.monotonic() + 10
    # Connections are accepted in order, so this one finds all threads taken.
    assert port.raw(b"").startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    port.gate.set()
    for connection in held:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        connection.close()
    while True:
        assert time.monotonic() < deadline
        if port.ask("GET", "/livez")[0].status == 200:
            break


def test_an_address_in_use_is_one_sentence(port: Port) -> None:
    with pytest.raises(
        OpsAddressError, match=r"^The ops port 127.0.0.1:\d+ cannot be opened: Address already in use\.$"
    ):
        OpsServer(port.server.address, []).start()


def test_an_unknown_host_is_one_sentence() -> None:
    with pytest.raises(OpsAddressError, match=r"^The ops port nowhere.invalid:0 cannot be opened: .*\.$"):
        OpsServer("nowhere.invalid:0", []).start()


def test_ipv6() -> None:
    port = Port("[::1]")
    assert port.server.address.startswith("[::1]:")
    assert port.ask("GET", "/livez")[0].status == 200
    port.server.stop()


def test_a_route_has_one_handler() -> None:
    route = Route("GET", "/x", lambda _: Response())
    with pytest.raises(ValueError, match="GET /x has two handlers"):
        OpsServer("127.0.0.1:0", [route, route])


def test_a_stopped_port_refuses(port: Port) -> None:
    port.server.stop()
    with pytest.raises(ConnectionRefusedError):
        port.ask("GET", "/livez")
