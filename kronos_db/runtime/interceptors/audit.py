"""Two places in the chain for domains that record their calls: before one runs, and when it is over or was refused."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

import grpc

from kronos_db.runtime.crypto.marks import Marks, one_line
from kronos_db.runtime.errors import Code, ErrorTable
from kronos_db.runtime.identifiers import uuid7
from kronos_db.runtime.interceptors.call import Call, Step
from kronos_db.runtime.interceptors.chain import End, Message
from kronos_db.runtime.interceptors.method import Method

# Characters of a request that are recorded.
MOST_CHARACTERS = 8192


class Phase(enum.Enum):
    """What happened to a call."""

    BEGUN = enum.auto()
    ENDED = enum.auto()
    REFUSED = enum.auto()


@dataclass(frozen=True, slots=True)
class Entry:
    """What is recorded of a call: `request` is redacted, `code` and `reason` are empty while it runs."""

    call_id: UUID
    phase: Phase
    time: datetime
    caller: str
    method: str
    request_id: str
    request: str = ""
    detail: str = ""
    code: str = ""
    reason: str = ""


class Recorder(Protocol):
    """Keeps the record of a domain's calls."""

    def record(self, entry: Entry) -> None:
        """Return when `entry` is durable. Raises UnavailableError and the like when it cannot be."""

    def note(self, entry: Entry) -> None:
        """Record `entry` soon; neither waits nor raises."""


class AuditOutcome:
    """Records the outcome of calls that had begun, and of all others those that failed. `recorders` is by domain."""

    def __init__(self, recorders: Mapping[str, Recorder], table: ErrorTable) -> None:
        self._recorders = recorders
        self._table = table

    def begin(self, _method: Method) -> None:
        """Nothing to do when a call arrives."""

    def end(self, method: Method) -> End | None:
        """Record the outcome."""
        recorder = self._recorders.get(method.domain)
        if recorder is None:
            return None

        def end(call: Call, error: BaseException | None) -> None:
            begun = call.audit_id is not None
            if error is None and not begun:
                return
            code, reason = self._outcome(error)
            phase = Phase.ENDED if begun else Phase.REFUSED
            entry = _entry(call, phase, code=code, reason=reason)
            # Of what ran, the outcome is known before the answer leaves. On threads that may not wait, it comes soon.
            if begun and not method.pushed and not isinstance(error, grpc.RpcError):
                _record_if_possible(recorder, entry)
            else:
                recorder.note(entry)

        return end

    def _outcome(self, error: BaseException | None) -> tuple[str, str]:
        if error is None:
            return "OK", ""
        if isinstance(error, GeneratorExit | grpc.RpcError):
            return Code.CANCELLED.name, ""
        answer = self._table.answer(error)
        return answer.code.name, answer.reason


class AuditRequest:
    """Records a call that changes or runs something before it runs; it does not run when that is not possible."""

    def __init__(self, recorders: Mapping[str, Recorder], marks: Marks) -> None:
        self._recorders = recorders
        self._marks = marks

    def request(self, method: Method) -> Step | None:
        """Record the call as begun."""
        recorder = self._recorders.get(method.domain)
        if recorder is None or not method.audited:
            return None
        plan = self._marks.plan(method.request)
        text = plan.redacted if plan else one_line
        detail = method.terms.detail or _nothing

        def step(message: Message, call: Call) -> Message:
            # Of a stream of requests, and of a call that had stepped aside, the first time counts.
            if call.audit_id is None:
                entry = _entry(call, Phase.BEGUN, request=_cut(text(message)), detail=detail(message))
                recorder.record(entry)
                call.audit_id = entry.call_id
            return message

        return step

    def response(self, _method: Method) -> None:
        """Nothing to do: answers are not recorded."""


def _entry(call: Call, phase: Phase, *, request: str = "", detail: str = "", code: str = "", reason: str = "") -> Entry:
    return Entry(
        call_id=call.audit_id or uuid7(),
        phase=phase,
        time=datetime.now(UTC),
        caller=call.caller,
        method=call.method.path,
        request_id=call.request_id,
        request=request,
        detail=detail,
        code=code,
        reason=reason,
    )


def _record_if_possible(recorder: Recorder, entry: Entry) -> None:
    try:
        recorder.record(entry)
    except Exception:  # noqa: BLE001  # the answer of the call is not to be lost for it
        recorder.note(entry)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "…"


def _nothing(_message: Message) -> str:
    return ""
