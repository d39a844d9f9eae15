"""What the RFCs ask of a server that keeps tokens, section by section."""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc
from google.protobuf.duration_pb2 import Duration
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub

from kronos_db.server import Server
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.tokens.population import (
    in_,
    introspect,
    introspect_jwt,
    is_active,
    issue,
    outcome,
    reason,
    refresh,
    register,
    rotate,
    sessions,
    unique,
)


def revoke(tokens: TokensServiceStub, text: str) -> None:
    assert tokens.RevokeToken(pb.RevokeTokenRequest(token=text)) == pb.RevokeTokenResponse()


class TestRfc6749:
    """OAuth 2.0."""

    def test_1_5_a_refresh_token_is_issued_with_an_access_token(self, tokens: TokensServiceStub) -> None:
        answer = refresh(tokens)

        assert answer.issued.secret != answer.access.secret
        assert is_active(tokens, answer.access.secret)

    def test_3_3_scopes_are_case_sensitive_and_of_certain_characters(self, tokens: TokensServiceStub) -> None:
        scopes = ["read", "Read", "!#[]~", "https://example.org/scope"]

        token = introspect(tokens, issue(tokens, scopes=scopes).issued.secret).token

        assert token.scopes == scopes
        for bad in ("a b", '"', "\\", "é", "a\n"):
            found = refused(lambda: issue(tokens, scopes=[bad]))  # noqa: B023
            assert [*found.fields] == ["token.scopes[0]"]

    def test_5_1_an_access_token_says_how_long_it_lasts(self, tokens: TokensServiceStub) -> None:
        access = refresh(tokens, access_lifetime=Duration(seconds=3600)).access.token

        assert abs(access.expire_time.seconds - access.issue_time.seconds - 3600) <= 5

    def test_5_2_an_invalid_grant_is_told_from_a_failure(self, tokens: TokensServiceStub) -> None:
        """Invalid, expired, revoked and another client's are one outcome, and no error of the server."""
        revoked = refresh(tokens).issued.secret
        revoke(tokens, revoked)

        assert [outcome(rotate(tokens, text)) for text in ("invalid", revoked)] == ["REJECTED"] * 2

    def test_6_a_new_refresh_token_has_the_scope_of_the_old_one(self, tokens: TokensServiceStub) -> None:
        first = refresh(tokens, scopes=["b", "a"], client_id="web")

        answer = rotate(tokens, first.issued.secret)

        assert answer.refresh.token.scopes == answer.access.token.scopes == ["b", "a"]

    def test_6_the_old_refresh_token_must_not_be_used_again(self, tokens: TokensServiceStub) -> None:
        first = refresh(tokens)
        rotate(tokens, first.issued.secret)

        assert reason(tokens, first.issued.secret) == "USED"

    def test_10_4_a_refresh_token_stays_with_its_client(self, tokens: TokensServiceStub) -> None:
        first = refresh(tokens, client_id="web")

        assert rotate(tokens, first.issued.secret).refresh.token.client_id == "web"

    def test_10_10_tokens_cannot_be_guessed(self, tokens: TokensServiceStub) -> None:
        """Of two of one second nothing but the mark and the time is the same, and a guess at one is refused."""
        one, two = (issue(tokens).issued.secret for _ in range(2))
        same = sum(a == b for a, b in zip(one[44:-8], two[44:-8], strict=True))

        assert same < 12
        assert not is_active(tokens, one[:44] + two[44:])


class TestRfc7009:
    """Revocation."""

    def test_2_it_takes_place_at_once_in_every_process(self, serving: Serving, tokens: TokensServiceStub) -> None:
        other = Server(serving.settings)
        assert other.start(threading.Event())
        channel = grpc.insecure_channel(other.grpc_address)
        metadata = (("authorization", f"Bearer {serving.tokens['operator']}"),)
        try:
            for _ in range(20):
                secret = issue(tokens).issued.secret
                request = pb.IntrospectTokenRequest(token=secret)
                ask = TokensServiceStub(channel).IntrospectToken
                assert ask(request, metadata=metadata).introspection.active
                revoke(tokens, secret)
                assert not ask(request, metadata=metadata).introspection.active
        finally:
            channel.close()
            other.stop()

    def test_2_1_with_a_refresh_token_go_the_access_tokens_of_its_grant(self, tokens: TokensServiceStub) -> None:
        first = refresh(tokens)
        second = rotate(tokens, first.issued.secret)

        revoke(tokens, second.refresh.secret)

        for text in (first.access.secret, second.access.secret, second.refresh.secret):
            assert reason(tokens, text) == "REVOKED"

    def test_2_1_with_a_refresh_token_that_was_used_too(self, tokens: TokensServiceStub) -> None:
        first = refresh(tokens)
        second = rotate(tokens, first.issued.secret)

        revoke(tokens, first.issued.secret)

        assert reason(tokens, second.refresh.secret) == "REVOKED"

    def test_2_1_an_access_token_goes_alone(self, tokens: TokensServiceStub) -> None:
        first = refresh(tokens)

        revoke(tokens, first.access.secret)

        assert is_active(tokens, first.issued.secret)
        assert outcome(rotate(tokens, first.issued.secret)) == "ROTATED"

    def test_2_2_an_invalid_token_is_no_error(self, tokens: TokensServiceStub) -> None:
        secret = issue(tokens).issued.secret
        revoke(tokens, secret)

        for text in (secret, "never issued", secret[:-1]):
            revoke(tokens, text)

    def test_5_who_may_not_revoke_is_refused_before_anything_is_told(self, serving: Serving) -> None:
        gateway = TokensServiceStub(serving.channel_of("gateway"))

        assert refused(lambda: revoke(gateway, "x")).code == "PERMISSION_DENIED"


class TestRfc7662:
    """Introspection."""

    def test_2_1_callers_must_be_known(self, serving: Serving) -> None:
        stranger = TokensServiceStub(serving.channel)

        assert refused(lambda: introspect(stranger, "x")).code == "UNAUTHENTICATED"

    def test_2_2_what_an_active_token_is_for(self, tokens: TokensServiceStub) -> None:
        subject = unique()
        issued = issue(tokens, subject=subject, client_id="web", scopes=["a"], claims={"aud": "api"}).issued

        found = introspect(tokens, issued.secret)

        assert found.active
        told = found.token
        assert (told.subject, told.client_id, [*told.scopes], told.claims["aud"]) == (subject, "web", ["a"], "api")
        assert (told.expire_time, told.issue_time) == (issued.token.expire_time, issued.token.issue_time)
        assert told.kind == pb.TOKEN_KIND_SESSION

    def test_2_2_of_an_inactive_one_nothing_is_told(self, serving: Serving, tokens: TokensServiceStub) -> None:
        gateway = TokensServiceStub(serving.channel_of("gateway"))
        revoked = issue(tokens, subject=unique()).issued.secret
        revoke(tokens, revoked)

        for text in (revoked, "unknown"):
            assert introspect(gateway, text) == pb.Introspection()

    def test_2_2_an_unknown_token_is_not_an_error(self, tokens: TokensServiceStub) -> None:
        assert not introspect(tokens, "unknown").active
        assert not introspect_jwt(tokens, "unknown").active

    def test_4_every_reason_for_which_a_token_is_not_valid_is_checked(
        self, tokens: TokensServiceStub, sql: Callable[..., object]
    ) -> None:
        expired, revoked, idle = (issue(tokens, idle_timeout=Duration(seconds=60)).issued for _ in range(3))
        sql("UPDATE tokens.token SET expire_time = now() - interval '1 s' WHERE id = %s", expired.id)
        sql("UPDATE tokens.token SET seen_time = now() - interval '151 s' WHERE id = %s", idle.id)
        revoke(tokens, revoked.secret)

        assert [reason(tokens, each.secret) for each in (expired, idle, revoked)] == ["EXPIRED", "IDLE", "REVOKED"]

    def test_4_a_remembered_answer_does_not_outlive_the_token(self, tokens: TokensServiceStub) -> None:
        secret = issue(tokens, expire_time=in_(0.5)).issued.secret
        assert is_active(tokens, secret)

        eventually(lambda: reason(tokens, secret) == "EXPIRED" if not is_active(tokens, secret) else False)


class TestRfc9700:
    """Best current practice for security."""

    def test_2_2_access_tokens_are_short_lived_and_narrow(self, tokens: TokensServiceStub) -> None:
        answer = refresh(tokens, scopes=["a"])

        assert answer.access.token.expire_time.seconds - answer.access.token.issue_time.seconds <= 600
        assert answer.access.token.scopes == ["a"]

    def test_4_14_2_a_new_refresh_token_with_every_exchange(self, tokens: TokensServiceStub) -> None:
        secret, seen = refresh(tokens).issued.secret, set()
        for _ in range(5):
            seen.add(secret)
            secret = rotate(tokens, secret).refresh.secret

        assert len({*seen, secret}) == 6

    def test_4_14_2_a_stolen_one_that_is_used_first_by_the_thief(self, tokens: TokensServiceStub) -> None:
        """Whoever comes second shows the theft, and what the first one got is worthless."""
        subject = unique()
        stolen = refresh(tokens, subject=subject).issued.secret
        of_the_thief = rotate(tokens, rotate(tokens, stolen).refresh.secret)

        assert outcome(rotate(tokens, stolen)) == "REUSE_DETECTED"

        assert reason(tokens, of_the_thief.refresh.secret) == "REVOKED"
        assert reason(tokens, of_the_thief.access.secret) == "REVOKED"
        assert sessions(tokens, subject) == []

    def test_4_14_2_a_stolen_one_that_is_used_first_by_its_owner(self, tokens: TokensServiceStub) -> None:
        stolen = refresh(tokens).issued.secret
        of_the_owner = rotate(tokens, rotate(tokens, stolen).refresh.secret)

        assert outcome(rotate(tokens, stolen)) == "REUSE_DETECTED"
        assert outcome(rotate(tokens, of_the_owner.refresh.secret)) == "REJECTED"

    def test_4_14_2_other_families_of_the_subject_go_on(self, tokens: TokensServiceStub) -> None:
        subject = unique()
        stolen, other = (refresh(tokens, subject=subject).issued.secret for _ in range(2))
        rotate(tokens, rotate(tokens, stolen).refresh.secret)
        rotate(tokens, stolen)

        assert outcome(rotate(tokens, other)) == "ROTATED"

    def test_4_14_2_refresh_tokens_end_when_they_are_not_used(
        self, tokens: TokensServiceStub, sql: Callable[..., object]
    ) -> None:
        issued = refresh(tokens, idle_timeout=Duration(seconds=3600)).issued
        sql("UPDATE tokens.token SET seen_time = now() - interval '3691 s' WHERE id = %s", issued.id)

        assert outcome(rotate(tokens, issued.secret)) == "REJECTED"
        assert reason(tokens, issued.secret) == "IDLE"

    def test_4_14_2_they_are_revoked_when_a_password_changes_or_a_user_signs_out(
        self, tokens: TokensServiceStub
    ) -> None:
        subject = unique()
        families = [refresh(tokens, subject=subject) for _ in range(3)]
        jwt = register(tokens, subject=subject)

        tokens.RevokeTokens(pb.RevokeTokensRequest(subject=subject))

        for family in families:
            assert outcome(rotate(tokens, family.issued.secret)) == "REJECTED"
        assert not introspect_jwt(tokens, jwt.jwt_id).active
