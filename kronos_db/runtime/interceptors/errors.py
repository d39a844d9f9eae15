"""Third in the chain: turns exceptions into statuses, and is the only place that aborts a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from kronos_db.runtime.errors import ERROR_DOMAIN, UNKNOWN, Answer, Code, ErrorTable, FieldViolation, KronosError
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.chain import End
from kronos_db.runtime.interceptors.method import Method

_log = structlog.get_logger(__name__)


class Errors:
    """Answers with google.rpc.Status: ErrorInfo always, BadRequest for faulty fields, RetryInfo where waiting helps."""

    def __init__(self, table: ErrorTable) -> None:
        self._table = table

    def begin(self, _method: Method) -> None:
        """Nothing to do before a call."""

    def end(self, _method: Method) -> End:
        """Abort a call that failed."""

        def end(call: Call, error: BaseException | None) -> None:
            if error is None:
                return
            if isinstance(error, GeneratorExit | grpc.RpcError):
                # The caller is gone: nobody is left to be told.
                call.code = Code.CANCELLED.name
                return
            self._abort(call, error)

        return end

    def _abort(self, call: Call, error: BaseException) -> NoReturn:
        answer = self._table.answer(error)
        call.code = answer.code.name
        if answer is UNKNOWN:
            _log.error("call failed", request_id=call.request_id, method=call.method.path, exc_info=error)
        elif answer.code in {Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS}:
            _log.warning(
                "call failed",
                request_id=call.request_id,
                method=call.method.path,
                reason=answer.reason,
                detail=str(error),
            )
        status: Any = rpc_status.to_status(status_of(answer, error, call.request_id))
        # Aborting replaces the trailing metadata: what is there already, the request id, goes along.
        trailing = (*(call.context.trailing_metadata() or ()), *status.trailing_metadata)
        call.context.abort_with_status(status._replace(trailing_metadata=trailing))


# Callers refuse trailing metadata beyond 8 KiB, and base64 adds a third: more bytes of violations than this would cost
# the caller the whole answer.
_MOST_VIOLATION_BYTES = 4096
_MOST_CHARACTERS = 256


def status_of(answer: Answer, error: BaseException, request_id: str) -> status_pb2.Status:
    """Return the status that `answer` and what is public of `error` make (AIP-193).

    When there are more violations than fit, `violations` in the metadata of ErrorInfo says how many there are.
    """
    ours = error if isinstance(error, KronosError) and answer is not UNKNOWN else KronosError()
    info = error_details_pb2.ErrorInfo(reason=answer.reason, domain=ERROR_DOMAIN, metadata=ours.metadata)
    details: list[Any] = [info]
    if ours.violations:
        bad_request = _bad_request(ours.violations)
        details.append(bad_request)
        if len(bad_request.field_violations) < len(ours.violations):
            info.metadata["violations"] = str(len(ours.violations))
    if ours.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(int(ours.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    details.append(error_details_pb2.RequestInfo(request_id=request_id))
    sentence = answer.sentence.format_map(_Metadata(ours.metadata))
    return status_pb2.Status(code=answer.code, message=sentence, details=[_packed(detail) for detail in details])


def _bad_request(violations: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    """Return the violations, or the first of them when all are too many for an answer."""
    bad_request = error_details_pb2.BadRequest()
    for violation in violations:
        bad_request.field_violations.add(field=_cut(violation.field), description=_cut(violation.description))
        if bad_request.ByteSize() > _MOST_VIOLATION_BYTES:
            break
    return bad_request


def _cut(text: str) -> str:
    # Paths hold keys of maps, which may be of any length.
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"


class _Metadata(dict[str, str]):
    """Leaves a dash where an exception forgot what its sentence names: an answer must never fail."""

    def __missing__(self, key: str) -> str:
        return "-"


def _packed(detail: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
