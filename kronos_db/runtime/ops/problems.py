"""Says the status of a call in the words of HTTP: a problem document (RFC 9457) with what google.rpc.Status says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from google.rpc import error_details_pb2, status_pb2

from kronos_db.runtime.errors import Code
from kronos_db.runtime.ops.http import ProblemError

# As google.rpc.Code says it of HTTP, but for what is well-formed and breaks a rule, which has a status of its own.
STATUSES: Mapping[int, HTTPStatus] = {
    Code.CANCELLED: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.INVALID_ARGUMENT: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.OUT_OF_RANGE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    Code.ABORTED: HTTPStatus.CONFLICT,
    Code.FAILED_PRECONDITION: HTTPStatus.CONFLICT,
    Code.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}
# Reasons that HTTP has a more exact status for than their code.
_BY_REASON = {"MESSAGE_TOO_LARGE": HTTPStatus.REQUEST_ENTITY_TOO_LARGE}


def problem_of(status: status_pb2.Status) -> ProblemError:
    """Return the problem that a status is: its reason, metadata and violations are members of the document."""
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, request = error_details_pb2.RetryInfo(), error_details_pb2.RequestInfo()
    found = {type(part) for part in (info, bad, retry, request) for detail in status.details if detail.Unpack(part)}
    members: dict[str, Any] = {"code": Code(status.code).name, "reason": info.reason, "domain": info.domain}
    if info.metadata:
        members["metadata"] = dict(info.metadata)
    if bad.field_violations:
        members["violations"] = [
            {"field": each.field, "description": each.description} for each in bad.field_violations
        ]
    members["request_id"] = request.request_id
    http = _BY_REASON.get(info.reason) or STATUSES.get(status.code, HTTPStatus.INTERNAL_SERVER_ERROR)
    headers = {"WWW-Authenticate": "Bearer"} if http is HTTPStatus.UNAUTHORIZED else {}
    if type(retry) in found:
        headers["Retry-After"] = str(max(1, math.ceil(retry.retry_delay.ToTimedelta().total_seconds())))
    return ProblemError(http, status.message, headers=headers, members=members)
