"""The handlers of quotas, which RoutesService inherits: their life, consuming, and what is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from kronos.routes.v1 import routes_pb2 as pb

from kronos_db.routes import messages, model
from kronos_db.routes.authorization import memory
from kronos_db.routes.demands import Demand, Outcome
from kronos_db.routes.limiter import Limiter
from kronos_db.routes.quotas import Rule, Subject
from kronos_db.routes.store import RoutesStore
from kronos_db.routes.table import Snapshot, Table
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.etags import version_of
from kronos_db.runtime.identifiers import uuid7
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.paging import PageTokens, page_size
from kronos_db.runtime.update_masks import masked_fields

_NOBODY = Subject()


class QuotaMethods:
    """Handlers; `secret` keys the names of counters."""

    def __init__(
        self, store: RoutesStore, table: Table, limiter: Limiter, page_tokens: PageTokens, secret: bytes
    ) -> None:
        self._store = store
        self._table = table
        self._limiter = limiter
        self._page_tokens = page_tokens
        self._secret = secret

    def CreateQuota(self, request: pb.CreateQuotaRequest, context: object) -> pb.CreateQuotaResponse:
        """Create one quota."""
        new = messages.quota_spec(request.quota)
        if not new.name:
            raise BadRequestError.of("quota.name", "is required")
        if new.kind is None:
            raise BadRequestError.of("quota.rule", "is required")
        mutation: Mutation[model.Quota, pb.CreateQuotaResponse] = Call.of(context).mutation(
            pb.CreateQuotaResponse, lambda created: pb.CreateQuotaResponse(quota=messages.quota_message(created))
        )
        return self._store.create_quota(new, mutation)

    def GetQuota(self, request: pb.GetQuotaRequest, context: object) -> pb.GetQuotaResponse:
        """Return one quota."""
        by_id = request.HasField("id")
        quota = self._store.get_quota("id" if by_id else "name", request.id.lower() if by_id else request.name)
        if quota is None:
            raise model.QuotaNotFoundError
        return pb.GetQuotaResponse(quota=messages.quota_message(quota))

    def ListQuotas(self, request: pb.ListQuotasRequest, context: object) -> pb.ListQuotasResponse:
        """Return one page."""
        size = page_size(request.page_size)
        after = self._page_tokens.read(request)
        quotas = self._store.list_quotas(model.Listing(size + 1, request.name_prefix, after[0] if after else ""))
        more = len(quotas) > size
        token = self._page_tokens.make(request, [quotas[size - 1].name]) if more else ""
        found = [messages.quota_message(quota) for quota in quotas[:size]]
        return pb.ListQuotasResponse(quotas=found, next_page_token=token)

    def UpdateQuota(self, request: pb.UpdateQuotaRequest, context: object) -> pb.UpdateQuotaResponse:
        """Change the fields that the mask names."""
        quota = request.quota
        fields = masked_fields(request.update_mask, quota, "quota", messages.QUOTA_FIELDS)
        values = messages.quota_spec(quota)
        with_rule = any(field in fields for field in messages.RULES)
        if with_rule and (values.kind is None or quota.WhichOneof("rule") not in fields):
            raise BadRequestError.of("quota.rule", "must be the one that the mask names")

        def change(current: model.Quota) -> model.NewQuota:
            return model.NewQuota(
                current.id,
                current.name,
                values.kind if with_rule else current.kind,
                values.rule if with_rule else current.rule,
                values.keys if "keys" in fields else current.keys,
                values.shadow if "shadow" in fields else current.shadow,
                values.failure if "failure_mode" in fields else current.failure,
            )

        mutation: Mutation[model.Quota, pb.UpdateQuotaResponse] = Call.of(context).mutation(
            pb.UpdateQuotaResponse, lambda updated: pb.UpdateQuotaResponse(quota=messages.quota_message(updated))
        )
        etag = version_of(quota.etag, "quota.etag")
        return self._store.update_quota(quota.id.lower(), etag, change, mutation)

    def DeleteQuota(self, request: pb.DeleteQuotaRequest, context: object) -> pb.DeleteQuotaResponse:
        """Remove a quota."""
        mutation: Mutation[model.Quota, pb.DeleteQuotaResponse] = Call.of(context).mutation(
            pb.DeleteQuotaResponse, lambda _deleted: pb.DeleteQuotaResponse()
        )
        return self._store.delete_quota(request.id.lower(), version_of(request.etag, "etag"), mutation)

    def ConsumeQuota(self, request: pb.ConsumeQuotaRequest, context: object) -> pb.ConsumeQuotaResponse:
        """Consume of one quota."""
        rule = _rule(self._table.current(), request.quota, "quota")
        call = Call.of(context)
        demand = self._demand(rule, request, memory(call, self._secret), call.fingerprint[:16].hex())
        outcome = self._limiter.decide([demand], dry=request.validate_only)[0]
        response = pb.ConsumeQuotaResponse()
        _fill(response, outcome, time.time())
        return response

    def BatchConsumeQuotas(
        self, request: pb.BatchConsumeQuotasRequest, context: object
    ) -> pb.BatchConsumeQuotasResponse:
        """Consume of several quotas, each by itself."""
        rules, call = self._table.current().rules, Call.of(context)
        shown = call.fingerprint[:16].hex()
        demands = []
        for index, each in enumerate(request.consumptions):
            rule = rules.get(each.quota)
            if rule is None:
                raise model.unknown_quota(each.quota, f"consumptions[{index}].quota")
            demands.append(self._demand(rule, each, memory(call, self._secret, index), shown))
        response = pb.BatchConsumeQuotasResponse()
        now, add = time.time(), response.results.add
        for outcome in self._limiter.decide(demands, dry=request.validate_only):
            _fill(add(), outcome, now)
        return response

    def ReleaseQuota(self, request: pb.ReleaseQuotaRequest, context: object) -> pb.ReleaseQuotaResponse:
        """Give places back. Needs no memory of its own: a place is given back once."""
        return pb.ReleaseQuotaResponse(released_count=self._limiter.release(request.lease, dry=request.validate_only))

    def GetQuotaUsage(self, request: pb.GetQuotaUsageRequest, context: object) -> pb.GetQuotaUsageResponse:
        """Tell what one subject has used."""
        rule = _rule(self._table.current(), request.quota, "quota")
        demand = Demand((rule,), (rule.key(_subject(request), self._secret),), cost=0)
        state = self._limiter.decide([demand], dry=True)[0].states[0]
        response = pb.GetQuotaUsageResponse(
            limit=rule.size,
            used=state.used,
            remaining=state.remaining if state.counted else 0,
            degraded=self._limiter.is_degraded(rule, demand.keys[0]),
        )
        if state.counted and state.reset is not None:
            messages.set_time(response.reset_time, time.time() + state.reset)
        return response

    def ResetQuota(self, request: pb.ResetQuotaRequest, context: object) -> pb.ResetQuotaResponse:
        """Forget what one subject has used, or what all have."""
        rule = _rule(self._table.current(), request.quota, "quota")
        answer: Callable[[Any], pb.ResetQuotaResponse] = lambda _: pb.ResetQuotaResponse()  # noqa: E731
        mutation = Call.of(context).mutation(pb.ResetQuotaResponse, answer)
        if not request.HasField("subject"):
            return self._store.reset_quota(rule.quota.id, mutation)
        key = rule.key(_subject(request), self._secret)
        response = self._store.reset_usage(key, mutation)
        if not request.validate_only and rule.kind is not model.Kind.CALENDAR:
            self._limiter.reset(key, (mutation.request_id or uuid7()).hex)
        return response

    def _demand(self, rule: Rule, consumption: Any, remembered: str, shown: str) -> Demand:
        key = rule.key(_subject(consumption), self._secret)
        return Demand((rule,), (key,), consumption.cost if consumption.HasField("cost") else 1, remembered, shown)


def _rule(snapshot: Snapshot, name: str, field: str) -> Rule:
    rule = snapshot.rules.get(name)
    if rule is None:
        raise model.unknown_quota(name, field)
    return rule


def _subject(request: Any) -> Subject:
    if not request.HasField("subject"):
        return _NOBODY
    subject = request.subject
    return Subject(subject.user_id, subject.client_id, subject.client_ip, subject.route_id.lower(), subject.key)


def _fill(message: Any, outcome: Outcome, now: float) -> None:
    """Write what was decided about one quota into an empty message."""
    if outcome.allowed:
        message.allowed = True
    if outcome.lease:
        message.lease = outcome.lease
    states: Sequence[Any] = outcome.states
    messages.fill_decision(message.decision, states[0], now)
