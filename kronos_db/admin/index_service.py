"""The handlers of index advice: part of AdminService."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from kronos.admin.v1 import indexes_pb2 as pb

from kronos_db.admin.advice import Advice, Measured
from kronos_db.admin.advising import Advisor
from kronos_db.admin.change_store import ChangeStore
from kronos_db.admin.changes import Change, ChangeRunningError, ChangeState, Progress
from kronos_db.admin.scratch import Scratch
from kronos_db.admin.statement_store import Sources
from kronos_db.admin.statements import UnknownDomainError
from kronos_db.runtime.identifiers import uuid7
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.paging import PageTokens, page_size
from kronos_db.runtime.timestamps import set_timestamp

# Seconds.
_LOCK_TIMEOUT = 30.0


class IndexHandlers:
    """Which indexes to make and to drop, and that it is done."""

    def __init__(
        self, sources: Sources, advisor: Advisor, scratch: Scratch, changes: ChangeStore, page_tokens: PageTokens
    ) -> None:
        self._index_sources = sources
        self._advisor = advisor
        self._scratch = scratch
        self._index_changes = changes
        self._index_page_tokens = page_tokens

    def AdviseIndexes(self, request: pb.AdviseIndexesRequest, context: object) -> pb.AdviseIndexesResponse:
        """Advise on one domain or all."""
        if request.domain and request.domain not in self._index_sources.domains:
            raise UnknownDomainError(metadata={"domain": request.domain})
        if request.measure:
            self._scratch.check()
        advices, skipped = self._advisor.advise(request.domain or None)
        if request.measure:
            advices = [(facts, self._scratch.measured(facts, advice)) for facts, advice in advices]
        answer = pb.AdviseIndexesResponse()
        for _facts, advice in advices:
            _fill(answer.advices.add(), advice)
        for domain, reason in skipped:
            answer.skipped_domains.add(domain=domain, reason=reason)
        return answer

    def ApplyIndexAdvice(
        self, request: pb.ApplyIndexAdviceRequest, context: object
    ) -> Iterator[pb.ApplyIndexAdviceResponse]:
        """Do what is advised, and tell how far it is."""
        call = Call.of(context)
        if call.write_id is not None:
            earlier = self._index_changes.earlier(call.write_id, request.advice_id)
            if earlier is not None:
                yield _repeated(earlier)
                return
        facts, advice = self._advisor.find(request.advice_id)
        if call.validate_only:
            self._index_changes.check(advice)
            yield _planned(advice, call.caller)
            return
        timeout = request.lock_timeout.ToTimedelta().total_seconds() if request.HasField("lock_timeout") else 0.0
        steps = self._index_changes.apply(
            call.write_id or uuid7(),
            advice,
            caller=call.caller,
            before=self._advisor.before(facts, advice),
            lock_timeout=timeout or _LOCK_TIMEOUT,
            active=call.context.is_active,
        )
        yield from map(_progress, steps)

    def ListIndexChanges(self, request: pb.ListIndexChangesRequest, context: object) -> pb.ListIndexChangesResponse:
        """Return one page."""
        size = page_size(request.page_size)
        after = self._index_page_tokens.read(request)
        # One more than the page tells whether another page follows.
        changes = self._index_changes.list_page(
            (datetime.fromisoformat(after[0]), str(UUID(after[1]))) if after else None, size + 1
        )
        page = pb.ListIndexChangesResponse(index_changes=[_change(change) for change in changes[:size]])
        if len(changes) > size:
            last = changes[size - 1]
            page.next_page_token = self._index_page_tokens.make(request, [last.create_time.isoformat(), last.id])
        return page


def _repeated(change: Change) -> pb.ApplyIndexAdviceResponse:
    if change.state is ChangeState.RUNNING:
        raise ChangeRunningError(metadata={"change": change.id})
    return pb.ApplyIndexAdviceResponse(change=_change(change), done_share=1.0)


def _planned(advice: Advice, caller: str) -> pb.ApplyIndexAdviceResponse:
    change = pb.IndexChange(
        advice_id=advice.id,
        kind=_kind(advice),
        domain=advice.domain,
        table=advice.table,
        index=advice.index,
        statement=advice.statement,
        undo_statement=advice.undo,
        caller=caller,
    )
    return pb.ApplyIndexAdviceResponse(change=change)


def _progress(progress: Progress) -> pb.ApplyIndexAdviceResponse:
    return pb.ApplyIndexAdviceResponse(
        change=None if progress.change is None else _change(progress.change),
        phase=progress.phase,
        done_share=progress.share,
        waiting_for=progress.waiting_for,
    )


def _change(change: Change) -> pb.IndexChange:
    message = pb.IndexChange(
        id=change.id,
        advice_id=change.advice_id,
        kind=_kind(change),
        domain=change.domain,
        table=change.table,
        index=change.index,
        statement=change.statement,
        undo_statement=change.undo,
        caller=change.caller,
        state=pb.IndexChangeState.Value(f"INDEX_CHANGE_STATE_{change.state.name}"),
        detail=change.detail,
    )
    set_timestamp(message.create_time, change.create_time)
    set_timestamp(message.update_time, change.update_time)
    return message


def _kind(of: Advice | Change) -> pb.IndexAdviceKind.ValueType:
    return pb.IndexAdviceKind.Value(f"INDEX_ADVICE_KIND_{of.kind.name}")


def _fill(message: pb.IndexAdvice, advice: Advice) -> None:
    message.id = advice.id
    message.kind = _kind(advice)
    message.domain = advice.domain
    message.table = advice.table
    message.index = advice.index
    message.statement = advice.statement
    message.undo_statement = advice.undo
    message.reason = advice.reason
    message.evidence.extend(advice.evidence)
    message.size_bytes = advice.size
    if advice.gain_ms:
        _set_ms(message.estimated_gain, advice.gain_ms)
    message.slow_query_ids.extend(f"{advice.domain}.{query}" for query in advice.queries)
    if advice.measured is not None:
        _fill_measurement(message.measurement, advice.measured)


def _fill_measurement(message: pb.IndexMeasurement, measured: Measured) -> None:
    _set_ms(message.time_before, measured.before_ms)
    _set_ms(message.time_after, measured.after_ms)
    message.used = measured.used
    message.size_bytes = measured.size
    _set_ms(message.write_cost, measured.write_us / 1000)
    message.sampled_rows = measured.sampled_rows


def _set_ms(duration: Duration, milliseconds: float) -> None:
    duration.FromNanoseconds(int(milliseconds * 1_000_000))
