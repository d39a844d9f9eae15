"""The handlers of the audit log: part of AdminService."""

from __future__ import annotations

from uuid import UUID

from kronos.admin.v1 import audit_pb2 as pb

from kronos_db.admin.audit import BEGINNING, Break, Event, Fault, HashChain, Link, Listing, Phase
from kronos_db.admin.audit_store import AuditStore
from kronos_db.admin.contract import SERVICE
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.paging import PageTokens, page_size
from kronos_db.runtime.timestamps import from_timestamp, set_timestamp

_SERVICE = SERVICE.full_name
# Events that one call verifies at most, and those read at once meanwhile.
_MOST_VERIFIED = 100_000
_READ_AT_ONCE = 2_000
_PHASES = {phase.value: pb.AuditPhase.Value(f"AUDIT_PHASE_{phase.name}") for phase in Phase}
_FAULTS = {fault: pb.AuditFault.Value(f"AUDIT_FAULT_{fault.name}") for fault in Fault}


class AuditHandlers:
    """What was done, and whether the log of it is whole."""

    def __init__(self, audit: AuditStore, chain: HashChain, page_tokens: PageTokens) -> None:
        self._audit = audit
        self._chain = chain
        self._audit_page_tokens = page_tokens

    def ListAuditEvents(self, request: pb.ListAuditEventsRequest, context: object) -> pb.ListAuditEventsResponse:
        """Return one page."""
        size = page_size(request.page_size)
        after = self._audit_page_tokens.read(request)
        # One more than the page tells whether another page follows.
        events = self._audit.list_page(_listing(request, int(after[0]) if after else None, size + 1))
        page = pb.ListAuditEventsResponse()
        for event in events[:size]:
            _fill(page.events.add(), event)
        if len(events) > size:
            page.next_page_token = self._audit_page_tokens.make(request, [str(events[size - 1].sequence)])
        return page

    def VerifyAuditLog(self, request: pb.VerifyAuditLogRequest, context: object) -> pb.VerifyAuditLogResponse:
        """Read a stretch of the log and say where it is broken."""
        answer = pb.VerifyAuditLogResponse()
        found = self._anchor_break(request) or self._verify(max(1, request.from_sequence), answer)
        if found is not None:
            answer.next_sequence = 0
            answer.first_break.sequence = found.sequence
            answer.first_break.fault = _FAULTS[found.fault]
        return answer

    def _verify(self, start: int, answer: pb.VerifyAuditLogResponse) -> Break | None:
        last = self._link_before(start)
        if last is None:
            return Break(start - 1, Fault.MISSING)
        while answer.events < _MOST_VERIFIED:
            events = self._audit.read(last.sequence + 1, _READ_AT_ONCE)
            found = self._chain.first_break(events, last)
            if found is not None or not events:
                return found
            last = Link(events[-1].sequence, events[-1].hash)
            answer.events += len(events)
            answer.last_sequence, answer.last_hash = last
        answer.next_sequence = last.sequence + 1
        return None

    def _link_before(self, start: int) -> Link | None:
        if start == 1:
            return Link(0, BEGINNING)
        before = self._audit.read(start - 1, 1)
        return Link(before[0].sequence, before[0].hash) if before and before[0].sequence == start - 1 else None

    def _anchor_break(self, request: pb.VerifyAuditLogRequest) -> Break | None:
        sequence = request.anchor_sequence
        if bool(sequence) != bool(request.anchor_hash):
            raise BadRequestError.of("anchor_hash", "must come together with anchor_sequence")
        if not sequence:
            return None
        found = self._audit.read(sequence, 1)
        if not found or found[0].sequence != sequence:
            return Break(sequence, Fault.MISSING)
        return None if found[0].hash == request.anchor_hash else Break(sequence, Fault.REPLACED)


def _listing(request: pb.ListAuditEventsRequest, after: int | None, limit: int) -> Listing:
    method = request.method
    return Listing(
        limit=limit,
        after=after,
        time_from=from_timestamp(request, "event_time_from"),
        time_until=from_timestamp(request, "event_time_until"),
        caller=request.caller or None,
        method=(method if "/" in method else f"{_SERVICE}/{method}") if method else None,
        phase=request.phase or None,
        code=request.code or None,
        call_id=UUID(request.call_id) if request.call_id else None,
    )


def _fill(message: pb.AuditEvent, event: Event) -> None:
    message.sequence = event.sequence
    message.id = str(event.id)
    message.call_id = str(event.call_id)
    message.phase = _PHASES[event.phase]
    set_timestamp(message.event_time, event.event_time)
    message.caller = event.caller
    message.method = event.method
    message.request = event.request
    message.detail = event.detail
    message.code = event.code
    message.reason = event.reason
    message.request_id = event.request_id
    message.call_count = event.call_count
    message.previous_hash = event.previous_hash
    message.hash = event.hash
