"""LogsService: checks what the contract cannot say, calls the store, converts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import grpc
from kronos.logs.v1 import logs_pb2 as pb
from kronos.logs.v1.logs_pb2_grpc import LogsServiceServicer

from kronos_db.logs import model
from kronos_db.logs.filters import Filters
from kronos_db.logs.intake import Intake, Taking, attributes_of, read_ours
from kronos_db.logs.messages import Origins, fill_origin, fill_record, fill_refusal, set_nanoseconds
from kronos_db.logs.store import RETENTION, LogsStore
from kronos_db.logs.tail import message_maker, tail_of
from kronos_db.logs.values import Reading, Spelling
from kronos_db.runtime.cache.engine import Cache, Loaded, Rules
from kronos_db.runtime.database.changes import tag
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.feed.feed import Feed
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.conversation import Conversation, Replies, converses
from kronos_db.runtime.interceptors.outlet import CallOutlet, pushes
from kronos_db.runtime.interceptors.terms import on_terms
from kronos_db.runtime.paging import PageTokens, page_size

_MOST_INTERVALS = 2_000
_MOST_COUNTS = 100_000
_MINUTE = 60
_GROUPINGS: Mapping[int, model.Grouping] = {
    pb.LOG_GROUPING_UNSPECIFIED: "nothing",
    pb.LOG_GROUPING_SEVERITY: "severity",
    pb.LOG_GROUPING_SERVICE: "service",
    pb.LOG_GROUPING_ATTRIBUTE: "attribute",
}


_SEVERITY_RANGES = pb.SeverityRange.values()
# Both calls that store batches answer alike.
Answer = TypeVar("Answer", pb.WriteLogsResponse, pb.IngestLogsResponse)


class RetentionCopy:
    """The rules of retention as a process holds them: never from before a change that was acknowledged."""

    def __init__(self, store: LogsStore, cache: Cache) -> None:
        self._store = store
        self._rules = cache.kind(Rules("retention of logs"), self._load)
        self._made: tuple[bytes, model.Retention] = (b"", model.Retention([]))

    def now(self) -> model.Retention:
        """Return the rules."""
        encoded = self._rules.get("all") or b"[]"
        made = self._made
        if made[0] is not encoded:
            made = self._made = (encoded, model.Retention([model.Rule(*rule) for rule in json.loads(encoded)]))
        return made[1]

    def _load(self, keys: Sequence[str]) -> Mapping[str, Loaded]:
        rules = Loaded(json.dumps(self._store.rules()).encode(), (tag(RETENTION),))
        return dict.fromkeys(keys, rules)


class LogsService(LogsServiceServicer):
    """The handlers of the contract `kronos.logs.v1`."""

    def __init__(  # noqa: PLR0917  # its collaborators, spelled out
        self,
        store: LogsStore,
        intake: Intake,
        retention: RetentionCopy,
        origins: Origins,
        page_tokens: PageTokens,
        feed: Feed,
    ) -> None:
        self._store = store
        self._intake = intake
        self._retention = retention
        self._origins = origins
        self._page_tokens = page_tokens
        self._feed = feed
        self._filters = Filters(intake.keys, intake.sealer)
        self._reading = Reading(intake.sealer)
        self._told = message_maker(self._reading)

    @on_terms(checks_text=True)
    def WriteLogs(self, request: pb.WriteLogsRequest, context: grpc.ServicerContext) -> pb.WriteLogsResponse:
        """Store a batch, except the records that break a rule."""
        mutation: Mutation[model.Batch, pb.WriteLogsResponse] = Call.of(context).mutation(
            pb.WriteLogsResponse, lambda batch: _filled(pb.WriteLogsResponse(), batch)
        )
        return self._stored(request, mutation)

    @on_terms(checks_text=True)
    @converses
    def IngestLogs(self, replies: Replies) -> Conversation:
        """Store one batch after the other, and acknowledge each."""
        return _Ingestion(self, replies)

    def QueryLogs(self, request: pb.QueryLogsRequest, context: grpc.ServicerContext) -> pb.QueryLogsResponse:
        """Return one page."""
        size = page_size(request.page_size)
        page = self._store.query(
            model.Listing(
                limit=size,
                direction="oldest" if request.order == pb.LOG_ORDER_TIME_ASC else "newest",
                time_from=_nanoseconds(request, "time_from", 0),
                time_until=_nanoseconds(request, "time_until", model.LATEST),
                filter=self._filters.read(request.filter),
                after=self._page_tokens.read(request),
            )
        )
        response = pb.QueryLogsResponse(
            next_page_token=self._page_tokens.make(request, page.records[-1].place) if page.more else ""
        )
        for record in page.records:
            fill_record(response.records.add(), record, self._reading)
        for origin in self._origins.of(page.records).values():
            fill_origin(response.origins.add(), origin, self._reading)
        return response

    @pushes
    def TailLogs(self, request: pb.TailLogsRequest, outlet: CallOutlet) -> None:
        """Push new records."""
        wanted = tail_of(self._filters.read(request.filter))
        self._feed.watch(outlet, request.resume_token, wanted, self._told)

    def AggregateLogs(
        self, request: pb.AggregateLogsRequest, context: grpc.ServicerContext
    ) -> pb.AggregateLogsResponse:
        """Count records by interval and group."""
        question = self._question(request)
        tally = self._store.tally(question)
        response = pb.AggregateLogsResponse(total=tally.total, more_groups=tally.all_groups - len(tally.groups))
        for number, name, count in tally.counts:
            found = response.counts.add(group=name, count=count)
            found.time.seconds = (question.minute_from + number * question.minutes) * _MINUTE
        for name, count in tally.groups:
            response.groups.add(group=name, count=count)
        return response

    def GetLogStats(self, request: pb.GetLogStatsRequest, context: grpc.ServicerContext) -> pb.GetLogStatsResponse:
        """Return how much there is."""
        stats = self._store.stats()
        response = pb.GetLogStatsResponse(records=stats.records, services=stats.services)
        for field, minute in (("oldest_time", stats.oldest), ("newest_time", stats.newest)):
            if minute is not None:
                set_nanoseconds(getattr(response, field), minute * model.MINUTE)
        for each in stats.classes:
            response.classes.add(**each._asdict())
        return response

    def SetRetention(self, request: pb.SetRetentionRequest, context: grpc.ServicerContext) -> pb.SetRetentionResponse:
        """Set or remove a rule."""
        mutation: Mutation[model.Rule, pb.SetRetentionResponse] = Call.of(context).mutation(
            pb.SetRetentionResponse, lambda rule: pb.SetRetentionResponse(rule=_rule(rule))
        )
        rule = request.rule
        return self._store.set_rule(model.Rule(rule.service, rule.severity, rule.keep_days), mutation)

    def ListRetention(
        self, request: pb.ListRetentionRequest, context: grpc.ServicerContext
    ) -> pb.ListRetentionResponse:
        """Return one page of rules."""
        size = page_size(request.page_size)
        rules = self._store.list_rules(size + 1, self._page_tokens.read(request))
        last = [rules[size - 1].service, str(rules[size - 1].severity)] if len(rules) > size else []
        return pb.ListRetentionResponse(
            rules=map(_rule, rules[:size]), next_page_token=self._page_tokens.make(request, last) if last else ""
        )

    def EraseLogs(self, request: pb.EraseLogsRequest, context: grpc.ServicerContext) -> pb.EraseLogsResponse:
        """Remove the records of a subject."""
        mutation: Mutation[int, pb.EraseLogsResponse] = Call.of(context).mutation(
            pb.EraseLogsResponse, lambda erased: pb.EraseLogsResponse(erased=erased)
        )
        return self._store.erase(request.subject, mutation)

    def ingest(self, request: pb.IngestLogsRequest, call: Call) -> pb.IngestLogsResponse:
        """Store one batch of a stream."""
        mutation: Mutation[model.Batch, pb.IngestLogsResponse] = call.mutation(
            pb.IngestLogsResponse,
            lambda batch: _filled(pb.IngestLogsResponse(request_id=request.request_id), batch),
        )
        return self._stored(request, mutation)

    def _stored(self, request: Any, mutation: Mutation[model.Batch, Answer]) -> Answer:
        """Take the records of a request in and return the reply."""
        taking = self._intake.begin(self._retention.now())
        taking.add(_origin(taking, request.origin), request.records, read_ours)
        batch = taking.done()
        reply = self._store.write(batch, mutation)
        if not mutation.validate_only:
            self._intake.noted(batch)
        return reply

    def _question(self, request: pb.AggregateLogsRequest) -> model.Question:
        minute_from, minute_until = _minute(request, "time_from"), _minute(request, "time_until")
        span = minute_until - minute_from
        if span <= 0:
            raise BadRequestError.of("time_until", "must be after time_from")
        minutes = span
        if request.HasField("interval"):
            seconds = request.interval.seconds
            if request.interval.nanos or seconds <= 0 or seconds % _MINUTE:
                raise BadRequestError.of("interval", "must be whole minutes, one at least")
            minutes = min(span, seconds // _MINUTE)
        intervals = -(-span // minutes)
        if intervals > _MOST_INTERVALS:
            raise BadRequestError.of("interval", f"must make {_MOST_INTERVALS} intervals of the range at most")
        grouping = _GROUPINGS[request.grouping]
        limit = page_size(request.group_limit)
        if grouping != "nothing" and intervals * limit > _MOST_COUNTS:
            raise BadRequestError.of("group_limit", f"times {intervals} intervals must not exceed {_MOST_COUNTS}")
        if grouping == "attribute":
            self._check_grouping(request.attribute_key)
        return model.Question(
            minute_from,
            minute_until,
            minutes,
            self._filters.read(request.filter),
            grouping,
            request.attribute_key,
            limit,
        )

    def _check_grouping(self, key: str) -> None:
        try:
            special = self._intake.keys.special(key)
        except model.RefusedError as refused:
            raise BadRequestError.of("attribute_key", refused.description) from None
        if special is not None and special.treatments & {"sealed", "redacted"}:
            raise BadRequestError.of("attribute_key", "is sealed or redacted")


class _Ingestion:
    """One stream of batches: see `runtime/interceptors/conversation.py`."""

    def __init__(self, service: LogsService, replies: Replies) -> None:
        self._service = service
        self._replies = replies

    def receive(self, message: pb.IngestLogsRequest) -> None:
        """Store a batch; the next one is not read before."""
        self._replies.send(self._service.ingest(message, self._replies.call))

    def finish(self) -> None:
        """End the stream: every batch is acknowledged."""
        self._replies.complete()

    def closed(self) -> None:
        """Nothing is held."""


def _origin(taking: Taking, origin: pb.Origin) -> Any:
    """Return the origin of a request. Raises BadRequestError."""
    content = pb.Origin()
    content.CopyFrom(origin)
    content.ClearField("id")

    def make(name: str, spelling: Spelling) -> model.Origin:
        for field in ("service", "scope_name", "scope_version"):
            if "\0" in getattr(origin, field):
                raise model.RefusedError("TEXT_HAS_NUL", f"origin.{field}", "must not contain U+0000")
        return model.Origin(
            name,
            origin.service,
            attributes_of(origin.attributes, spelling, "origin.attributes"),
            origin.scope_name,
            origin.scope_version,
            attributes_of(origin.scope_attributes, spelling, "origin.scope_attributes"),
        )

    try:
        return taking.origin((b"kronos", content.SerializeToString(deterministic=True)), make)
    except model.RefusedError as refused:
        raise BadRequestError.of(refused.where, refused.description) from None


def _filled(response: Answer, batch: model.Batch) -> Answer:
    response.batch_id = batch.id
    response.stored = len(batch.rows)
    for refusal in batch.refusals:
        fill_refusal(response.refusals.add(), refusal)
    return response


def _rule(rule: model.Rule) -> pb.RetentionRule:
    return pb.RetentionRule(service=rule.service, severity=_SEVERITY_RANGES[rule.severity], keep_days=rule.keep_days)


def _nanoseconds(request: Any, field: str, default: int) -> int:
    """Return a Timestamp of a request in nanoseconds since 1970, within what a record may have."""
    if not request.HasField(field):
        return default
    moment = getattr(request, field)
    if not 0 <= moment.nanos < model.SECOND:
        raise BadRequestError.of(field, "must have nanos of 0 to 999999999")
    return min(max(int(moment.seconds) * model.SECOND + int(moment.nanos), 0), model.LATEST)


def _minute(request: Any, field: str) -> int:
    moment = getattr(request, field)
    if moment.nanos or moment.seconds % _MINUTE or not 0 <= moment.seconds <= model.LATEST // model.SECOND:
        raise BadRequestError.of(field, "must be a whole minute from 1970 to 2262")
    return int(moment.seconds) // _MINUTE
