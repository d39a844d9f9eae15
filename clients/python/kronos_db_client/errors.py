"""Reads what the server says with an error: reason, fields at fault, and how long to wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS = "grpc-status-details-bin"


class Violation(NamedTuple):
    """A field at fault, by its path in the request, and what is wrong with it."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that failed. Programs go by `code` and `reason`; docs/errors.md of the server lists them all.

    `retry_after` is the seconds after which it may be repeated, None when the server does not say. `request_id` is
    that under which the server's log has the call.
    """

    code: grpc.StatusCode
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[Violation] = ()
    retry_after: float | None = None
    request_id: str = ""

    @classmethod
    def of(cls, error: grpc.RpcError) -> Refusal:
        """Return what `error`, as a stub raises it, says."""
        call: Any = error
        found = {name: value for name, value in call.trailing_metadata() or () if name == _DETAILS}
        status = status_pb2.Status.FromString(found[_DETAILS]) if found else status_pb2.Status()
        said: dict[str, Any] = {}
        for detail in status.details:
            said |= _read(detail)
        return cls(call.code(), call.details() or "", **said)


def _read(detail: Any) -> dict[str, Any]:
    """Return what one detail says, by the names of Refusal's fields."""
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, request = error_details_pb2.RetryInfo(), error_details_pb2.RequestInfo()
    if detail.Unpack(info):
        return {"reason": info.reason, "metadata": dict(info.metadata)}
    if detail.Unpack(bad):
        return {"violations": [Violation(each.field, each.description) for each in bad.field_violations]}
    if detail.Unpack(retry):
        return {"retry_after": retry.retry_delay.ToTimedelta().total_seconds()}
    if detail.Unpack(request):
        return {"request_id": request.request_id}
    return {}
