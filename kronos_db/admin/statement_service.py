"""The handlers of statements: part of AdminService."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from kronos.admin.v1 import statements_pb2 as pb

from kronos_db.admin.reading import Reader
from kronos_db.admin.statement_store import Sources, StatementStore
from kronos_db.admin.statements import Cost, Period, Session, Source, Target, UnknownDomainError
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.queries import query_name
from kronos_db.runtime.errors import BadRequestError, UnavailableError
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.paging import PageTokens, page_size
from kronos_db.runtime.timestamps import from_timestamp, set_timestamp

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_LEAST = timedelta(microseconds=1)


class StatementHandlers:
    """What statements cost, and what runs."""

    def __init__(self, sources: Sources, store: StatementStore, reader: Reader, page_tokens: PageTokens) -> None:
        self._statement_sources = sources
        self._statements = store
        self._statement_reader = reader
        self._statement_page_tokens = page_tokens

    def ListSlowQueries(self, request: pb.ListSlowQueriesRequest, context: object) -> pb.ListSlowQueriesResponse:
        """Return one page of what was counted until the first page was asked for."""
        self._known_domain(request.domain)
        size = page_size(request.page_size)
        after = self._statement_page_tokens.read(request)
        until = datetime.fromisoformat(after[0]) if after else self._newest(request)
        period = Period(
            after=(from_timestamp(request, "start_time") or _BEGINNING + _LEAST) - _LEAST,
            until=until,
            order=request.order,
            domain=request.domain or None,
            method=request.method or None,
            last=(after[1], after[2], int(after[3])) if after else None,
            # One more than the page tells whether another page follows.
            limit=size + 1,
        )
        costs = self._statements.costs(period)
        page = pb.ListSlowQueriesResponse()
        for cost in costs[:size]:
            _fill(page.slow_queries.add(), cost)
        for source in self._statements.sources():
            _fill_source(page.sources.add(), source)
        if len(costs) > size:
            last = costs[size - 1]
            page.next_page_token = self._statement_page_tokens.make(
                request, [until.isoformat(), last.weight, last.domain, str(last.query_id)]
            )
        return page

    def ResetSlowQueries(self, request: pb.ResetSlowQueriesRequest, context: object) -> pb.ResetSlowQueriesResponse:
        """Forget what was counted."""
        self._known_domain(request.domain)
        mutation: Mutation[datetime, pb.ResetSlowQueriesResponse] = Call.of(context).mutation(
            pb.ResetSlowQueriesResponse, _reset_answer
        )
        return self._statements.reset(self._statement_sources.read(), request.domain or None, mutation)

    def ListActiveQueries(self, request: pb.ListActiveQueriesRequest, context: object) -> pb.ListActiveQueriesResponse:
        """Return what runs."""
        self._known_domain(request.domain)
        size = page_size(request.page_size)
        after = self._statement_page_tokens.read(request)
        answer = pb.ListActiveQueriesResponse()
        found = [(_place(domain, session), session) for domain, session in self._sessions(request.domain, answer)]
        following = sorted(
            (each for each in found if after is None or each[0] > tuple(after)), key=lambda each: each[0]
        )
        now = datetime.now(UTC)
        for (domain, *_), session in following[:size]:
            _fill_session(answer.active_queries.add(domain=domain), session, now)
        if len(following) > size:
            answer.next_page_token = self._statement_page_tokens.make(request, following[size - 1][0])
        self._add_methods(answer)
        return answer

    def _sessions(self, domain: str, answer: pb.ListActiveQueriesResponse) -> Iterator[tuple[str, Session]]:
        for each in [domain] if domain else self._statement_sources.domains:
            try:
                sessions = self._statement_sources.sessions(each)
            except UnavailableError:
                answer.unreachable_domains.append(each)
                continue
            for session in sessions:
                yield each, session

    def _add_methods(self, answer: pb.ListActiveQueriesResponse) -> None:
        names = {active.query_name for active in answer.active_queries if active.query_name}
        methods = self._statements.methods_of(sorted(names)) if names else {}
        for active in answer.active_queries:
            active.methods.extend(methods.get(active.query_name, []))

    def CancelQuery(self, request: pb.CancelQueryRequest, context: object) -> pb.CancelQueryResponse:
        """Cancel what a session does."""
        self._known_domain(request.domain)
        call = Call.of(context)
        begin = from_timestamp(request, "backend_start_time")
        if begin is None:
            raise BadRequestError.of("backend_start_time", "is required")
        target = Target(
            request.domain,
            request.pid,
            begin,
            from_timestamp(request, "query_start_time"),
            end=request.terminate,
            pretend=call.validate_only,
        )
        mutation: Mutation[None, pb.CancelQueryResponse] = call.mutation(
            pb.CancelQueryResponse, lambda _: pb.CancelQueryResponse()
        )
        return self._statements.once(lambda: self._statement_sources.cancel(target), mutation)

    def _newest(self, request: pb.ListSlowQueriesRequest) -> datetime:
        """Read the counters, and return until when what they said is listed."""
        self._statement_reader.refresh()
        taken = self._statements.last_taken() or _BEGINNING
        return min(taken, from_timestamp(request, "end_time") or taken)

    def _known_domain(self, domain: str) -> None:
        if domain and domain not in self._statement_sources.domains:
            raise UnknownDomainError(metadata={"domain": domain})


def _place(domain: str, session: Session) -> tuple[str, str, str]:
    """Return where a session stands in the list: no two have the same place, and it keeps it."""
    return domain, session.backend_start.astimezone(UTC).isoformat(timespec="microseconds"), str(session.pid)


def _reset_answer(at: datetime) -> pb.ResetSlowQueriesResponse:
    answer = pb.ResetSlowQueriesResponse()
    set_timestamp(answer.reset_time, at)
    return answer


def _fill(message: pb.SlowQuery, cost: Cost) -> None:
    message.id = f"{cost.domain}.{cost.query_id}"
    message.domain = cost.domain
    message.text = cost.text
    message.query_names.extend(cost.queries)
    message.methods.extend(cost.methods)
    message.calls = cost.calls
    _set_microseconds(message.total_time, cost.total_us)
    _set_microseconds(message.mean_time, cost.total_us // cost.calls)
    message.rows = cost.rows
    message.blocks_hit = cost.blocks_hit
    message.blocks_read = cost.blocks_read
    message.temp_bytes = cost.temp_bytes
    message.wal_bytes = cost.wal_bytes


def _fill_source(message: pb.StatementSource, source: Source) -> None:
    message.domain = source.domain
    message.state = pb.StatementSourceState.Value(f"STATEMENT_SOURCE_STATE_{source.state.name}")
    message.remedy = source.state.remedy
    if source.taken_at is not None:
        set_timestamp(message.read_time, source.taken_at)


def _fill_session(message: pb.ActiveQuery, session: Session, now: datetime) -> None:
    message.pid = session.pid
    set_timestamp(message.backend_start_time, session.backend_start)
    if session.transaction_start is not None:
        set_timestamp(message.transaction_start_time, session.transaction_start)
    if session.query_start is not None:
        set_timestamp(message.query_start_time, session.query_start)
        message.age.FromTimedelta(max(timedelta(0), now - session.query_start))
    message.state = session.state
    message.wait = f"{session.wait_type}:{session.wait}" if session.wait else ""
    message.blocking_pids.extend(session.blocked_by)
    message.text = session.text
    message.query_name = query_name(session.text)
    message.application_name = session.application


def _set_microseconds(duration: Duration, microseconds: int) -> None:
    duration.seconds, rest = divmod(microseconds, 1_000_000)
    duration.nanos = rest * 1000
