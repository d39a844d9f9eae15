"""Tokens of users: active while the user is, and what CheckToken says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub

from kronos_db.tokens.identity import Identities, Identity
from tests.parts.refusal import refused
from tests.tokens.population import (
    People,
    introspect,
    introspect_jwt,
    is_active,
    issue,
    outcome,
    reason,
    refresh,
    register,
    rotate,
)


def of(user_id: str, **named: Any) -> dict[str, Any]:
    return {"subject_kind": pb.SUBJECT_KIND_USER, "subject": user_id, **named}


def check(tokens: TokensServiceStub, text: str, permission: str = "doc:read", **named: Any) -> pb.CheckTokenResponse:
    return tokens.CheckToken(pb.CheckTokenRequest(token=text, permission=permission, **named))


def verdict(answer: pb.CheckTokenResponse) -> str:
    return pb.CheckOutcome.Name(answer.outcome).removeprefix("CHECK_OUTCOME_")


class TestUsers:
    """A token of a suspended or deleted user is not active, and is again when the user is."""

    def test_each_way_of_asking(self, with_people: TokensServiceStub, people: People) -> None:
        user = people.new()
        answer = refresh(with_people, **of(user.upper()))
        jwt = register(with_people, **of(user))
        other = issue(with_people).issued.secret
        texts = [answer.issued.secret, answer.access.secret]
        requests = [pb.IntrospectTokenRequest(token=text) for text in (*texts, other)]
        requests.append(pb.IntrospectTokenRequest(jwt_id=jwt.jwt_id))
        batch = pb.BatchIntrospectTokensRequest(requests=requests)

        for expected in (True, False, True):
            (people.active_ids.add if expected else people.active_ids.discard)(user)
            assert [is_active(with_people, text) for text in texts] == [expected] * 2
            assert introspect_jwt(with_people, jwt.jwt_id).active is expected
            found = with_people.BatchIntrospectTokens(batch).introspections
            assert [each.active for each in found] == [expected, expected, True, expected]
            if not expected:
                assert reason(with_people, texts[0]) == "SUBJECT_INACTIVE"
                assert found[3].reason == pb.INACTIVE_REASON_SUBJECT_INACTIVE
        assert introspect(with_people, texts[0]).token.subject == user

    def test_no_exchange_for_a_suspended_user(self, with_people: TokensServiceStub, people: People) -> None:
        user = people.new()
        secret = refresh(with_people, **of(user)).issued.secret
        people.active_ids.discard(user)

        assert outcome(rotate(with_people, secret)) == "REJECTED"

        people.active_ids.add(user)
        first = rotate(with_people, secret)
        assert outcome(first) == "ROTATED"
        people.active_ids.discard(user)
        assert outcome(rotate(with_people, secret)) == "REJECTED"
        people.active_ids.add(user)
        assert outcome(rotate(with_people, secret)) == "REPLAYED"

    def test_a_user_is_named_by_a_uuid(self, with_people: TokensServiceStub) -> None:
        found = refused(lambda: issue(with_people, **of("ann")))

        assert (found.code, [*found.fields]) == ("INVALID_ARGUMENT", ["token.subject"])


class TestCheck:
    """CheckToken."""

    def test_what_comes_of_it(self, with_people: TokensServiceStub, people: People) -> None:
        user = people.new()
        secret = issue(with_people, **of(user, scopes=["a", "b"])).issued.secret
        people.allowed.add((user, "doc:read", ""))
        people.allowed.add((user, "doc:write", "tenant/acme"))

        assert verdict(check(with_people, secret)) == "ALLOWED"
        assert verdict(check(with_people, secret, "doc:write")) == "PERMISSION_DENIED"
        assert verdict(check(with_people, secret, "doc:write", scope_path="tenant/acme")) == "ALLOWED"
        assert verdict(check(with_people, secret, required_scopes=["b", "a"])) == "ALLOWED"
        missing = check(with_people, secret, required_scopes=["a", "c"])
        assert verdict(missing) == "SCOPE_MISSING"
        assert missing.introspection == introspect(with_people, secret)

        people.active_ids.discard(user)
        denied = check(with_people, secret)
        assert verdict(denied) == "NOT_ACTIVE"
        assert denied.introspection == pb.Introspection(reason=pb.INACTIVE_REASON_SUBJECT_INACTIVE)

    def test_a_subject_that_is_no_user_may_nothing(self, with_people: TokensServiceStub) -> None:
        assert verdict(check(with_people, issue(with_people).issued.secret)) == "PERMISSION_DENIED"

    def test_a_jwt(self, with_people: TokensServiceStub, people: People) -> None:
        user = people.new()
        jwt = register(with_people, **of(user))
        people.allowed.add((user, "doc:read", ""))
        request = pb.CheckTokenRequest(jwt_id=jwt.jwt_id, permission="doc:read")

        assert verdict(with_people.CheckToken(request)) == "ALLOWED"
        with_people.RevokeToken(pb.RevokeTokenRequest(jwt_id=jwt.jwt_id))
        assert verdict(with_people.CheckToken(request)) == "NOT_ACTIVE"

    @pytest.mark.parametrize("change", ["revoke", "suspend"])
    def test_the_answer_is_of_one_moment(self, with_people: TokensServiceStub, people: People, change: str) -> None:
        """The token ends, and then the permission is given: there was no moment at which both were there."""
        user = people.new()
        secret = issue(with_people, **of(user)).issued.secret

        def meanwhile() -> None:
            if change == "revoke":
                with_people.RevokeToken(pb.RevokeTokenRequest(token=secret))
            else:
                people.active_ids.discard(user)
            people.allowed.add((user, "doc:read", ""))

        people.meanwhile = meanwhile
        try:
            answer = check(with_people, secret)
        finally:
            people.meanwhile = lambda: None

        assert verdict(answer) == "NOT_ACTIVE"
        assert not answer.introspection.active

    @pytest.mark.parametrize("permission", ["", "doc", "doc:", ":read", "a:b:c", "a b:c", "x:" + "y" * 254])
    def test_a_permission_that_is_none(self, with_people: TokensServiceStub, permission: str) -> None:
        found = refused(lambda: check(with_people, "x", permission))

        assert (found.code, [*found.fields]) == ("INVALID_ARGUMENT", ["permission"])


class TestIdentities:
    """What other domains ask."""

    def test_whose_a_token_is(
        self, with_people: TokensServiceStub, people: People, identities: Callable[[], Identities]
    ) -> None:
        user = people.new()
        issued = issue(with_people, **of(user, client_id="web", scopes=["a", "b"])).issued
        service = issue(with_people, subject="reports").issued
        texts = [issued.secret, "junk", service.secret, issued.secret]
        ours = Identity(user, "web", ("a", "b"), issued.id)

        assert identities().identify(texts) == [ours, None, Identity("reports", "", (), service.id), ours]
        people.active_ids.discard(user)
        assert identities().identify(texts)[0] is None
        with_people.RevokeToken(pb.RevokeTokenRequest(token=service.secret))
        assert identities().identify(texts) == [None] * 4
        assert identities().identify([]) == []
