"""First in the chain: names every call with a request id and logs one line about its outcome."""

from __future__ import annotations

import re
import time

from kronos_db.runtime.identifiers import uuid7
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.chain import Begin, End
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.ops.logs import LineMaker, info_line

REQUEST_ID_HEADER = "x-request-id"
# What a caller may name its call: enough for UUIDs and trace ids, nothing that could forge a log line.
_ACCEPTED = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class AccessLog:
    """Takes the caller's `x-request-id`, or makes one, and returns it in the trailing metadata."""

    def __init__(self, line: LineMaker = info_line) -> None:
        self._line = line

    def begin(self, _method: Method) -> Begin:
        """Name the call."""

        def begin(call: Call) -> None:
            given = call.metadata.get(REQUEST_ID_HEADER, "")
            accepted = isinstance(given, str) and _ACCEPTED.fullmatch(given)
            call.request_id = str(given) if accepted else uuid7.text()
            call.context.set_trailing_metadata(((REQUEST_ID_HEADER, call.request_id),))

        return begin

    def end(self, method: Method) -> End:
        """Log the outcome: never a message, never a detail of an error."""
        log = self._line("call", method=method.path)

        def end(call: Call, _error: BaseException | None) -> None:
            milliseconds = round((time.perf_counter() - call.started) * 1000, 3)
            log(code=call.code, caller=call.caller, request_id=call.request_id, ms=milliseconds)

        return end
