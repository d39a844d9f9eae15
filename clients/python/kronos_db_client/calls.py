"""What every call carries: the caller's token, a deadline, and the request id of a write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc

from kronos_db_client.credentials import Credential
from kronos_db_client.repeating import repeatable


class _Details(NamedTuple):
    """The details of a call as gRPC's interceptors hand them on."""

    method: str
    timeout: float | None
    metadata: Sequence[tuple[str, str | bytes]] | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: Any


class Calls(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds what is missing: what a call brings itself counts. `deadline` in seconds, of unary calls."""

    def __init__(self, credential: Credential | None, deadline: float | None) -> None:
        self._credential = credential
        self._deadline = deadline

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """Complete a unary call."""
        return continuation(self._completed(client_call_details, self._deadline), repeatable(request))

    def intercept_unary_stream(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """Complete a call that is answered by a stream."""
        return continuation(self._completed(client_call_details, None), request)

    def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        """Complete a call with a stream of requests."""
        return continuation(self._completed(client_call_details, None), request_iterator)

    def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        """Complete a call with streams both ways."""
        return continuation(self._completed(client_call_details, None), request_iterator)

    def _completed(self, details: Any, deadline: float | None) -> _Details:
        metadata = list(details.metadata or ())
        if self._credential is not None and all(name != "authorization" for name, _ in metadata):
            metadata.append(("authorization", f"Bearer {self._credential()}"))
        timeout = deadline if details.timeout is None else details.timeout
        credentials, waits = details.credentials, details.wait_for_ready
        return _Details(details.method, timeout, metadata, credentials, waits, details.compression)
