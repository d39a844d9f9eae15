"""First in the chain: names every call by a request id and its place in a trace, and logs one line about its outcome.

The span of a call is its record in a trace, and begins and ends here, around all that is done for it.
"""

from __future__ import annotations

import re
import time

from kronos_db.runtime import tracing
from kronos_db.runtime.identifiers import uuid7_text
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.chain import Begin, End
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.ops.logs import LineMaker, info_line

REQUEST_ID_HEADER = "x-request-id"
# What a caller may name its call: enough for UUIDs and trace ids, nothing that could forge a log line.
_ACCEPTED = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_FIELDS = ("code", "caller", "request_id", "ms")
# Codes that are the server's fault, as OpenTelemetry's conventions for gRPC have it.
_FAILED = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class AccessLog:
    """Takes the caller's `x-request-id`, or makes one, and returns it in the trailing metadata.

    With a `tracer` calls of our methods are recorded; health checks and reflection would be noise.
    """

    def __init__(self, line: LineMaker = info_line, tracer: tracing.Tracer | None = None) -> None:
        self._line = line
        self._tracer = tracer

    def begin(self, method: Method) -> Begin:
        """Name the call."""
        tracer = self._tracer if method.ours else None
        path = method.path

        def begin(call: Call) -> None:
            given = call.metadata.get(REQUEST_ID_HEADER)
            accepted = isinstance(given, str) and _ACCEPTED.fullmatch(given)
            call.request_id = str(given) if accepted else uuid7_text()
            call.context.set_trailing_metadata(((REQUEST_ID_HEADER, call.request_id),))
            if tracer is not None:
                call.trace = tracer.start(path, tracing.read(call.metadata))
            elif tracing.TRACEPARENT in call.metadata:
                call.trace = tracing.of_caller(call.metadata)
            tracing.current.set(call)

        return begin

    def end(self, method: Method) -> End:
        """Log the outcome: never a message, never a detail of an error."""
        log = self._line("call", _FIELDS, method=method.path)
        log_traced = self._line("call", (*_FIELDS, "trace_id", "span_id"), method=method.path)

        def end(call: Call, _error: BaseException | None) -> None:
            tracing.current.set(None)
            # To the microsecond.
            milliseconds = int((time.perf_counter() - call.started) * 1e6) / 1000
            if call.trace is None:
                log(call.code, call.caller, call.request_id, milliseconds)
                return
            trace = call.trace
            _end(call)
            log_traced(call.code, call.caller, call.request_id, milliseconds, trace.trace_id, trace.span_id)

        return end


def _end(call: Call) -> None:
    """End the span of a call, if it has one."""
    if call.trace is None or call.trace.span is None:
        return
    span = call.trace.span
    span.set(
        {
            "rpc.response.status_code": call.code,
            "kronos.request_id": call.request_id,
            "kronos.caller": call.caller,
            "kronos.domain": call.method.domain,
        }
    )
    if call.taken:
        # On Linux both clocks are the same one.
        span.set({"kronos.wait_ms": round(max(0.0, call.taken - call.started) * 1000, 3)})
    if call.code in _FAILED:
        span.fail(call.code)
    span.end()
