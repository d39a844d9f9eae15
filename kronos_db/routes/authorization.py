"""Decides whether a request may go on: who calls, what the caller may do, and last, since it costs, the quotas."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kronos.routes.v1 import routes_pb2 as pb

from kronos_db.routes.demands import Demand, Outcome
from kronos_db.routes.limiter import Limiter
from kronos_db.routes.messages import ANYONE
from kronos_db.routes.model import Access, Identities, Route
from kronos_db.routes.quotas import State, Subject, response_headers
from kronos_db.routes.table import Snapshot
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.interceptors.call import Call

_PARAMETER = re.compile(r"\{([^{}]*)\}")
_STATUS: Mapping[int, int] = {
    pb.DENIAL_UNSPECIFIED: 200,
    pb.DENIAL_UNAUTHENTICATED: 401,
    pb.DENIAL_INACTIVE: 403,
    pb.DENIAL_SCOPE: 403,
    pb.DENIAL_PERMISSION: 403,
    pb.DENIAL_QUOTA: 429,
    pb.DENIAL_QUOTA_UNAVAILABLE: 503,
}


class Request(NamedTuple):
    """A request to be decided, and the call that asks."""

    message: pb.AuthorizeRequestRequest
    call: Call


class Verdict(NamedTuple):
    """What was decided. `rule` is what denied it, by its name."""

    denial: pb.Denial.ValueType
    rule: str = ""
    subject: str = ""
    states: Sequence[State] = ()
    headers: Mapping[str, str] = {}
    lease: str = ""

    @property
    def http_status(self) -> int:
        """The status that HTTP has for it."""
        return _STATUS[self.denial]


class _Caller(NamedTuple):
    subject: str
    client: str


class Authorization:
    """Decides by what Users and Tokens know and the limiter counts. `secret` keys the names of counters."""

    def __init__(self, access: Access, identities: Identities, limiter: Limiter, secret: bytes) -> None:
        self._access = access
        self._identities = identities
        self._limiter = limiter
        self._secret = secret

    def decide(self, snapshot: Snapshot, request: Request, route: Route, parameters: Mapping[str, str]) -> Verdict:
        """Decide a request for `route`, whose path has `parameters`."""
        spec = route.spec
        caller = self._caller(request.message, spec)
        if isinstance(caller, Verdict):
            return caller
        if "permissions" in spec and (lacking := self._lacking(caller.subject, spec["permissions"], parameters)):
            return Verdict(pb.DENIAL_PERMISSION, lacking, caller.subject)
        if "quotas" not in spec:
            return Verdict(pb.DENIAL_UNSPECIFIED, subject=caller.subject)
        demand = self._demand(snapshot, request, route, caller)
        outcome = self._limiter.decide([demand], dry=request.message.validate_only)[0]
        return _of_quotas(outcome, caller.subject)

    def _caller(self, message: pb.AuthorizeRequestRequest, spec: Mapping[str, Any]) -> _Caller | Verdict:
        """Return who calls, "" for nobody known; or why the request may not go on."""
        anyone = spec.get("caller") == ANYONE
        given = message.WhichOneof("caller")
        if given == "token":
            identity = self._identities.identify([message.token])[0]
            if identity is None:
                return _Caller("", message.client_id) if anyone else Verdict(pb.DENIAL_UNAUTHENTICATED)
            for scope in spec.get("scopes", ()):
                if scope not in identity.scopes:
                    return Verdict(pb.DENIAL_SCOPE, scope, identity.subject)
            return _Caller(identity.subject, identity.client)
        if given is None:
            return _Caller("", message.client_id) if anyone else Verdict(pb.DENIAL_UNAUTHENTICATED)
        user_id = message.user_id.lower()
        if user_id not in self._access.active([user_id]):
            return Verdict(pb.DENIAL_INACTIVE, subject=user_id)
        return _Caller(user_id, message.client_id)

    def _lacking(
        self, subject: str, permissions: Sequence[tuple[str, str]], parameters: Mapping[str, str]
    ) -> str | None:
        """Return the first of `permissions` that the subject does not have."""
        questions = [
            (subject, permission, _PARAMETER.sub(lambda found: parameters[found[1]], scope) if scope else "")
            for permission, scope in permissions
        ]
        try:
            answers = self._access.may(questions)
        except BadRequestError:
            # A value of the path makes no scope: nobody has a permission there.
            return questions[0][1]
        return next((asked[1] for asked, answer in zip(questions, answers, strict=True) if not answer), None)

    def _demand(self, snapshot: Snapshot, request: Request, route: Route, caller: _Caller) -> Demand:
        message = request.message
        subject = Subject(caller.subject, caller.client, message.client_ip, route.id, message.quota_key)
        rules = [snapshot.rules[name] for name in route.spec["quotas"]]
        keys = [rule.key(subject, self._secret) for rule in rules]
        cost = message.cost if message.HasField("cost") else 1
        return Demand(rules, keys, cost, memory(request.call, self._secret), request.call.fingerprint[:16].hex())


def memory(call: Call, secret: bytes, part: int = 0) -> str:
    """Return what a consumption is remembered by, "" when the call has no request_id and so is not repeated."""
    if call.write_id is None:
        return ""
    named = f"{call.caller}\0{call.write_id}\0{part}".encode()
    return hashlib.blake2b(named, key=secret, digest_size=16).hexdigest()


def _of_quotas(outcome: Outcome, subject: str) -> Verdict:
    headers = response_headers(outcome.states, not outcome.allowed)
    if outcome.allowed:
        return Verdict(pb.DENIAL_UNSPECIFIED, "", subject, outcome.states, headers, outcome.lease)
    denied = next((state.rule.name for state in outcome.states if not state.fits and state.rule.denies), "")
    denial = pb.DENIAL_QUOTA_UNAVAILABLE if outcome.unavailable else pb.DENIAL_QUOTA
    return Verdict(denial, denied, subject, outcome.states, headers)
