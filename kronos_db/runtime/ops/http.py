"""The ops port: a small, bounded HTTP server for metrics, probes and the platform's HTTP endpoints."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from kronos_db.runtime.errors import KronosError
from kronos_db.runtime.ops.readiness import OK, Readiness, State

HEAD_LIMIT = 16 * 1024
BODY_LIMIT = 1024 * 1024
# Requests in work at once: probes, a scraper or two and an operator.
THREADS = 16
# Seconds in which a request must have arrived, and in which each part of its answer must be taken.
REQUEST_TIMEOUT = 10.0

log = structlog.get_logger(__name__)


class OpsAddressError(KronosError):
    """The address of the ops port cannot be listened on."""


class ProblemError(KronosError):
    """A handler answers with a problem (RFC 9457).

    `detail` is one sentence that may be shown; `members` are what the document has beside it.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = dict(members or {})


@dataclass(frozen=True, slots=True)
class Request:
    """A request as a handler sees it; the names of headers are in lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes = b""

    def json(self) -> Any:
        """Return the body read as JSON; a problem 415 or 400 when it is none."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body must be application/json.")
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise ProblemError(HTTPStatus.BAD_REQUEST, "The body is not JSON.") from None


@dataclass(frozen=True, slots=True)
class Response:
    """What a handler answers."""

    status: HTTPStatus = HTTPStatus.OK
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, value: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
        """Return `value` as JSON."""
        return cls(status, json.dumps(value).encode() + b"\n", "application/json")

    @classmethod
    def of_problem(cls, problem: ProblemError) -> Response:
        """Return a problem document (RFC 9457); its type is the status alone."""
        document = {
            "title": problem.status.phrase,
            "status": problem.status.value,
            "detail": problem.detail,
            **problem.members,
        }
        return cls(problem.status, json.dumps(document).encode() + b"\n", "application/problem+json", problem.headers)


Handler = Callable[[Request], Response]


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers one method on one path. A GET route answers HEAD too."""

    method: str
    path: str
    handler: Handler


def standard_routes(registry: CollectorRegistry, readiness: Readiness) -> list[Route]:
    """Return /metrics, /livez (the process answers) and /readyz (its parts can do their work)."""

    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        body = encode(registry)
        headers = {"Vary": "Accept, Accept-Encoding"}
        if gzip_accepted(request.headers.get("accept-encoding", "")):
            # Level 1: the link is short, the processor is shared with the calls.
            body, headers["Content-Encoding"] = gzip.compress(body, compresslevel=1), "gzip"
        return Response(body=body, content_type=content_type, headers=headers)

    def livez(_request: Request) -> Response:
        return Response.of_json({"status": OK})

    def readyz(_request: Request) -> Response:
        parts = readiness.report()
        state = readiness.state_of(parts)
        # What is degraded still answers on its port: it is not to be taken out of the load balancer.
        status = HTTPStatus.SERVICE_UNAVAILABLE if state is State.NOT_READY else HTTPStatus.OK
        return Response.of_json({"status": state.value, "parts": parts}, status)

    return [Route("GET", "/metrics", metrics), Route("GET", "/livez", livez), Route("GET", "/readyz", readyz)]


class OpsServer:
    """Serves `routes` on `address`, HOST:PORT or [IPv6]:PORT, from a daemon thread; port 0 takes a free one.

    `below` has handlers for all methods on all paths that begin with a text.
    """

    def __init__(self, address: str, routes: Iterable[Route], below: Mapping[str, Handler] | None = None) -> None:
        self._configured = address
        self._below = dict(below or {})
        self._table: dict[str, dict[str, Handler]] = {}
        for route in routes:
            methods = self._table.setdefault(route.path, {})
            if route.method in methods:
                raise ValueError(f"{route.method} {route.path} has two handlers")
            methods[route.method] = route.handler
        self._server: _Server | None = None

    @property
    def address(self) -> str:
        """Where the server listens, with the port that it got."""
        if self._server is None:
            return self._configured
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def start(self) -> None:
        """Listen and serve; raises OpsAddressError when the address cannot be had."""
        try:
            self._server = _Server(self._configured, self.answer)
        except OSError as error:
            raise OpsAddressError(f"The ops port {self._configured} cannot be opened: {error.strerror}.") from error
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="ops", daemon=True).start()

    def stop(self) -> None:
        """Stop listening; requests in work run out by themselves."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def answer(self, request: Request) -> Response:
        """Return the answer of the route, or a problem; nothing of an exception leaves."""
        try:
            return self._route(request)(request)
        except ProblemError as problem:
            return Response.of_problem(problem)
        except Exception:
            log.exception("ops request failed", method=request.method, path=request.path)
            return Response.of_problem(
                ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed; its log has the detail.")
            )

    def _route(self, request: Request) -> Handler:
        methods = self._table.get(request.path)
        if methods is None:
            for prefix, below in self._below.items():
                if request.path.startswith(prefix):
                    return below
            raise ProblemError(HTTPStatus.NOT_FOUND, f"Nothing is at {request.path}.")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = sorted({*methods, "HEAD"} if "GET" in methods else methods)
            detail = f"{request.path} answers {', '.join(allowed)} only."
            raise ProblemError(HTTPStatus.METHOD_NOT_ALLOWED, detail, headers={"Allow": ", ".join(allowed)})
        return handler


class _Server(ThreadingHTTPServer):
    """Listens with a bounded number of handler threads; whoever comes beyond is told to come back."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: str, answer: Handler) -> None:
        host, _, port = address.rpartition(":")
        place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        self.address_family = place[0]
        self.answer = answer
        self._slots = threading.BoundedSemaphore(THREADS)
        super().__init__((str(place[4][0]), int(port)), _Connection)

    def server_bind(self) -> None:
        # Not HTTPServer's: it asks the name service for the host's name, which may take long.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.setblocking(False)
                request.send(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            # No thread could be started.
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            # A client that went away or was too slow: nothing is lost but its answer.
            log.debug("ops connection broken", error=str(error))
        else:
            log.error("ops connection failed", exc_info=error)


class _TooLongError(Exception):
    """More bytes came than are wanted."""


class _Incoming(io.RawIOBase):
    """The bytes of one request: no later than its deadline, no more than its budget."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.begin(seconds=REQUEST_TIMEOUT, budget=HEAD_LIMIT)

    def begin(self, *, seconds: float, budget: int) -> None:
        """Set the bounds of what is read from now on."""
        self._deadline = time.monotonic() + seconds
        self.budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.budget <= 0:
            raise _TooLongError
        # A timeout of the socket alone would start anew with every byte.
        self._connection.settimeout(max(0.001, self._deadline - time.monotonic()))
        count = self._connection.recv_into(buffer, min(len(buffer), self.budget))
        self.budget -= count
        return count


class _Connection(BaseHTTPRequestHandler):
    """One request on one connection, which is then closed: an idle client holds no thread."""

    server: _Server
    protocol_version = "HTTP/1.1"
    # Of a request line that cannot be read; 0.9, the default, has no status line to say so with.
    default_request_version = "HTTP/1.0"

    def setup(self) -> None:
        super().setup()
        self._incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming, buffer_size=4096)

    def handle(self) -> None:
        try:
            self.raw_requestline = self.rfile.readline(HEAD_LIMIT)
            if not self.raw_requestline or not self.parse_request():
                return
            request = self._request()
        except _TooLongError:
            self.requestline, self.request_version, self.command = "", self.protocol_version, ""
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except ProblemError as problem:
            self._send(Response.of_problem(problem), linger=True)
        else:
            self._send(self.server.answer(request))

    def _request(self) -> Request:
        try:
            url = urlsplit(self.path)
        except ValueError:
            raise ProblemError(HTTPStatus.BAD_REQUEST, "The request target is not a URL.") from None
        query = parse_qs(url.query, keep_blank_values=True)
        headers: dict[str, str] = {}
        for name, value in self.headers.items():
            headers[name.lower()] = f"{headers[name.lower()]}, {value}" if name.lower() in headers else value
        return Request(self.command, url.path, query, headers, self._body(headers))

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if "transfer-encoding" in headers:
            raise ProblemError(HTTPStatus.LENGTH_REQUIRED, "The body must come with a Content-Length.")
        given = headers.get("content-length", "0")
        if not (given.isascii() and given.isdigit()):
            raise ProblemError(HTTPStatus.BAD_REQUEST, "The Content-Length is not a number.")
        length = int(given[:20])
        if length > BODY_LIMIT:
            raise ProblemError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is longer than {BODY_LIMIT} bytes.")
        if length and headers.get("expect", "").lower() == "100-continue":
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()
        self._incoming.budget = length
        body = self.rfile.read(length) if length else b""
        if len(body) < length:
            raise ProblemError(HTTPStatus.BAD_REQUEST, "The body is shorter than its Content-Length.")
        return body

    def handle_expect_100(self) -> bool:
        # Only once the length is known to be fine: see `_body`.
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        del explain
        status = HTTPStatus(code)
        self._send(
            Response.of_problem(ProblemError(status, message or status.description or status.phrase)), linger=True
        )

    def _send(self, response: Response, *, linger: bool = False) -> None:
        self.connection.settimeout(REQUEST_TIMEOUT)
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)
        if linger:
            self._linger()

    def _linger(self) -> None:
        """Take what the client still sends: closing on unread bytes would reset the connection under the answer."""
        self.connection.shutdown(socket.SHUT_WR)
        self._incoming.begin(seconds=1.0, budget=BODY_LIMIT)
        with contextlib.suppress(OSError, _TooLongError):
            while self._incoming.read(65536):
                pass

    def version_string(self) -> str:
        return "kronos-db"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        del size
        # Without the query: it may hold what no log should.
        path = getattr(self, "path", "").partition("?")[0]
        log.debug("ops request", method=self.command, path=path, status=int(code))
