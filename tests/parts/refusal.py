"""Reads what a refused call says: status, reason, fields, delay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass(frozen=True)
class Refusal:
    """A status with its details. `everything` is all that left the server, as bytes."""

    code: str
    reason: str
    domain: str
    metadata: dict[str, str]
    message: str
    fields: dict[str, str]
    retry: float | None
    request_id: str
    trailers: dict[str, Any]
    everything: bytes


def refused(call: Callable[[], Any]) -> Refusal:
    """Make `call`, which must be refused, and return how."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return read(caught.value)


def read(error: Any) -> Refusal:
    """Return what the status of a failed call says."""
    status = rpc_status.from_call(error)
    trailers = [(key, value) for key, value in error.trailing_metadata() or ()]
    everything = error.details().encode() + b"".join(
        key.encode() + b"=" + (value if isinstance(value, bytes) else value.encode()) for key, value in trailers
    )
    info, bad, retry, request = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.RequestInfo(),
    )
    delay = None
    for detail in status.details if status else ():
        for part in (info, bad, request):
            detail.Unpack(part)
        if detail.Unpack(retry):
            delay = retry.retry_delay.ToMilliseconds() / 1000
    return Refusal(
        error.code().name,
        info.reason,
        info.domain,
        dict(info.metadata),
        error.details(),
        {violation.field: violation.description for violation in bad.field_violations},
        delay,
        request.request_id,
        dict(trailers),
        everything,
    )
