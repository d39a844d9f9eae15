"""TokensService, by real calls: issuing, registering, introspecting, reading and changing."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub

from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.tokens.population import (
    DAY,
    get,
    in_,
    introspect,
    introspect_jwt,
    is_active,
    issue,
    new,
    new_jwt,
    reason,
    refresh,
    register,
    rotate,
    sessions,
    unique,
)

FULL: dict[str, Any] = {
    "client_id": "web",
    "device_id": "device-1",
    "device_name": "Ann's phone",
    "ip_address": "2001:db8::1",
    "scopes": ["users:read", "logs"],
    "claims": {"tenant": "acme", "level": 3},
    "sensitive_claims": '{"email":"ann@example.org"}',
}


class TestIssue:
    """IssueToken."""

    def test_the_answer_is_the_whole_token(self, tokens: TokensServiceStub) -> None:
        wanted = new(**FULL)

        answer = tokens.IssueToken(pb.IssueTokenRequest(token=wanted))
        token = answer.issued.token

        assert UUID(token.id).version == UUID(token.family_id).version == 7
        assert answer.issued.id == token.id
        for name in ("kind", "subject_kind", "subject", "expire_time", *FULL):
            assert getattr(token, name) == getattr(wanted, name), name
        assert token.state == pb.TOKEN_STATE_ACTIVE
        assert token.grant_time == token.issue_time == token.last_seen_time
        assert token.etag == "1"
        assert answer.issued.secret.startswith("krs_")
        assert not answer.HasField("access")
        assert get(tokens, token.id) == token

    def test_a_refresh_token_comes_with_its_access_token(self, tokens: TokensServiceStub) -> None:
        answer = refresh(tokens, access_lifetime=Duration(seconds=60), rotation_grace=Duration(), **FULL)
        token, access = answer.issued.token, answer.access.token

        assert answer.issued.secret.startswith("krr_")
        assert answer.access.secret.startswith("kra_")
        assert access.family_id == token.family_id
        assert access.kind == pb.TOKEN_KIND_ACCESS
        assert 55 < access.expire_time.seconds - access.issue_time.seconds < 65
        assert (token.access_lifetime.seconds, token.rotation_grace.seconds) == (60, 0)
        assert not access.HasField("access_lifetime")
        # Sealed values belong to the family, so both show them.
        for name in ("subject", *FULL):
            assert getattr(access, name) == getattr(token, name)
        assert get(tokens, access.id) == access

    def test_defaults_of_a_refresh_token(self, tokens: TokensServiceStub) -> None:
        token = refresh(tokens).issued.token

        assert (token.access_lifetime.seconds, token.rotation_grace.seconds) == (600, 30)

    def test_an_access_token_does_not_outlive_its_family(self, tokens: TokensServiceStub) -> None:
        answer = refresh(tokens, expire_time=in_(60))

        assert answer.access.token.expire_time == answer.issued.token.expire_time

    def test_an_api_key_need_not_expire(self, tokens: TokensServiceStub) -> None:
        wanted = new(pb.TOKEN_KIND_API_KEY)
        wanted.ClearField("expire_time")

        answer = tokens.IssueToken(pb.IssueTokenRequest(token=wanted))

        assert answer.issued.secret.startswith("krk_")
        assert not answer.issued.token.HasField("expire_time")
        assert is_active(tokens, answer.issued.secret)

    def test_output_only_fields_are_ignored(self, tokens: TokensServiceStub) -> None:
        wanted = new(
            id=str(uuid4()),
            jwt_id="mine",
            state=pb.TOKEN_STATE_REVOKED,
            etag="77",
            revoke_time=in_(-5),
            grant_time=in_(-9),
        )

        token = tokens.IssueToken(pb.IssueTokenRequest(token=wanted)).issued.token

        assert token.id != wanted.id
        assert (token.jwt_id, token.state, token.etag) == ("", pb.TOKEN_STATE_ACTIVE, "1")
        assert not token.HasField("revoke_time")
        assert token.grant_time.seconds > wanted.grant_time.seconds

    def test_validate_only_writes_nothing_and_shows_no_secret(self, tokens: TokensServiceStub) -> None:
        request = pb.IssueTokenRequest(token=new(pb.TOKEN_KIND_REFRESH), validate_only=True)

        answer = tokens.IssueToken(request)

        assert answer.issued.token.state == pb.TOKEN_STATE_ACTIVE
        assert (answer.issued.secret, answer.access.secret) == ("", "")
        assert refused(lambda: get(tokens, answer.issued.id)).reason == "TOKEN_NOT_FOUND"

    def test_claims_come_back_whatever_numbers_they_hold(self, tokens: TokensServiceStub) -> None:
        numbers = [0, -1.5, 2**53, 1e19, 1e300, 5e-324]
        answer = issue(tokens, claims={"numbers": numbers, "text": "ä\u2028\U0001f600", "none": None})

        claims = introspect(tokens, answer.issued.secret).token.claims

        assert list(claims["numbers"]) == numbers
        assert claims["text"] == "ä\u2028\U0001f600"
        assert claims == answer.issued.token.claims


class TestJwts:
    """RegisterJwt and BatchRegisterJwts."""

    def test_it_is_introspected_by_its_jti(self, tokens: TokensServiceStub) -> None:
        wanted = new_jwt(**FULL, issue_time=in_(-30))

        jwt = tokens.RegisterJwt(pb.RegisterJwtRequest(jwt=wanted)).jwt

        assert (jwt.kind, jwt.jwt_id) == (pb.TOKEN_KIND_JWT, wanted.jwt_id)
        assert jwt.issue_time == jwt.grant_time == wanted.issue_time
        found = introspect_jwt(tokens, wanted.jwt_id)
        assert found.active
        assert found.token.sensitive_claims == FULL["sensitive_claims"]
        assert found.token.id == jwt.id
        assert tokens.GetToken(pb.GetTokenRequest(jwt_id=wanted.jwt_id)).token == get(tokens, jwt.id)

    def test_its_jti_is_no_secret_of_ours(self, tokens: TokensServiceStub) -> None:
        assert reason(tokens, register(tokens).jwt_id) == "MALFORMED"

    def test_one_jti_once(self, tokens: TokensServiceStub) -> None:
        jwt = register(tokens)

        found = refused(lambda: register(tokens, jwt_id=jwt.jwt_id))

        assert (found.code, found.reason, [*found.fields]) == ("ALREADY_EXISTS", "JWT_EXISTS", ["jwt.jwt_id"])

    def test_many_or_none(self, tokens: TokensServiceStub) -> None:
        there = register(tokens)
        batch = [new_jwt() for _ in range(20)]

        answer = tokens.BatchRegisterJwts(pb.BatchRegisterJwtsRequest(jwts=batch))
        assert [jwt.jwt_id for jwt in answer.jwts] == [jwt.jwt_id for jwt in batch]

        another = [new_jwt(), new_jwt(jwt_id=there.jwt_id)]
        found = refused(lambda: tokens.BatchRegisterJwts(pb.BatchRegisterJwtsRequest(jwts=another)))
        assert (found.reason, [*found.fields]) == ("JWT_EXISTS", ["jwts[1].jwt_id"])
        assert not introspect_jwt(tokens, another[0].jwt_id).active

    def test_one_jti_twice_in_a_batch(self, tokens: TokensServiceStub) -> None:
        twice = new_jwt()

        found = refused(lambda: tokens.BatchRegisterJwts(pb.BatchRegisterJwtsRequest(jwts=[twice, twice])))

        assert (found.reason, [*found.fields]) == ("JWT_EXISTS", ["jwts[1].jwt_id"])
        assert not introspect_jwt(tokens, twice.jwt_id).active


class TestIntrospect:
    """IntrospectToken and BatchIntrospectTokens."""

    def test_what_is_told(self, tokens: TokensServiceStub) -> None:
        answer = issue(tokens, **FULL)

        found = introspect(tokens, answer.issued.secret)

        assert found.active
        expected = pb.Token()
        expected.CopyFrom(answer.issued.token)
        for name in ("device_name", "ip_address", "state", "last_seen_time", "etag"):
            expected.ClearField(name)  # type: ignore[arg-type]  # names of fields
        assert found.token == expected
        # From the copy.
        assert introspect(tokens, answer.issued.secret) == found

    def test_a_stranger_is_not_told_why(self, serving: Serving, tokens: TokensServiceStub) -> None:
        gateway = TokensServiceStub(serving.channel_of("gateway"))
        secret = issue(tokens).issued.secret
        tokens.RevokeToken(pb.RevokeTokenRequest(token=secret))

        answers = [
            gateway.IntrospectToken(pb.IntrospectTokenRequest(token=text)).SerializeToString()
            for text in (secret, "junk", f"{secret[:-1]}x")
        ]

        assert answers == [pb.IntrospectTokenResponse(introspection=pb.Introspection()).SerializeToString()] * 3
        assert reason(tokens, secret) == "REVOKED"

    def test_another_secret_with_the_same_id_is_unknown(self, tokens: TokensServiceStub) -> None:
        secret = issue(tokens).issued.secret
        assert is_active(tokens, secret)
        body = f"{secret[:44]}{secret[44:-8][::-1]}"

        assert reason(tokens, f"{body}{zlib.crc32(body.encode()):08x}") == "UNKNOWN"

    def test_it_ends_by_time_while_a_copy_is_there(self, tokens: TokensServiceStub) -> None:
        secret = issue(tokens, expire_time=in_(0.7)).issued.secret
        assert is_active(tokens, secret)

        eventually(lambda: not is_active(tokens, secret), 5)

        assert reason(tokens, secret) == "EXPIRED"

    def test_many_at_once(self, tokens: TokensServiceStub) -> None:
        secrets = [issue(tokens).issued.secret for _ in range(3)]
        jwt = register(tokens)
        tokens.RevokeToken(pb.RevokeTokenRequest(token=secrets[1]))
        requests = [pb.IntrospectTokenRequest(token=text) for text in (*secrets, "junk", secrets[0])]
        requests.append(pb.IntrospectTokenRequest(jwt_id=jwt.jwt_id))

        for _ in range(2):
            found = tokens.BatchIntrospectTokens(pb.BatchIntrospectTokensRequest(requests=requests)).introspections
            assert [each.active for each in found] == [True, False, True, False, True, True]
            assert [each.reason for each in found[1:4:2]] == [
                pb.INACTIVE_REASON_REVOKED,
                pb.INACTIVE_REASON_MALFORMED,
            ]
            assert found[0] == introspect(tokens, secrets[0])
            assert found[5].token.jwt_id == jwt.jwt_id


class TestChange:
    """UpdateToken."""

    def _update(self, tokens: TokensServiceStub, token: pb.Token, *paths: str) -> pb.Token:
        mask = FieldMask(paths=paths) if paths else None
        return tokens.UpdateToken(pb.UpdateTokenRequest(token=token, update_mask=mask)).token

    def test_claims_and_expiry(self, tokens: TokensServiceStub) -> None:
        answer = issue(tokens, **FULL)
        assert is_active(tokens, answer.issued.secret)
        change = pb.Token(
            id=answer.issued.id,
            family_id=answer.issued.token.family_id,
            claims={"level": 4},
            sensitive_claims="{}",
            expire_time=in_(2 * DAY),
            etag="1",
        )

        changed = self._update(tokens, change)

        for name in ("claims", "sensitive_claims", "expire_time"):
            assert getattr(changed, name) == getattr(change, name)
        assert changed.etag == "2"
        assert changed.subject == answer.issued.token.subject
        assert introspect(tokens, answer.issued.secret).token.claims == change.claims
        assert get(tokens, changed.id) == changed

    def test_it_can_be_ended_sooner(self, tokens: TokensServiceStub) -> None:
        answer = issue(tokens)
        assert is_active(tokens, answer.issued.secret)

        self._update(tokens, pb.Token(id=answer.issued.id, expire_time=in_(0.5)))

        eventually(lambda: not is_active(tokens, answer.issued.secret), 5)

    def test_an_api_key_can_lose_its_end(self, tokens: TokensServiceStub) -> None:
        answer = issue(tokens, pb.TOKEN_KIND_API_KEY)

        changed = self._update(tokens, pb.Token(id=answer.issued.id), "expire_time")

        assert not changed.HasField("expire_time")
        assert is_active(tokens, answer.issued.secret)

    @pytest.mark.parametrize(
        ("token", "paths", "field"),
        [
            ({}, [], "update_mask"),
            ({"scopes": ["x"]}, ["scopes"], "update_mask.paths[0]"),
            ({"expire_time": in_(-1)}, [], "token.expire_time"),
            ({}, ["expire_time"], "token.expire_time"),
            ({"sensitive_claims": "{}"}, [], "token.family_id"),
            ({"sensitive_claims": "{}", "family_id": str(uuid4())}, [], "token.family_id"),
            ({"claims": {"x": "y" * 9000}}, [], "token.claims"),
            ({"claims": {}, "etag": "x"}, ["claims"], "token.etag"),
        ],
    )
    def test_what_is_refused(
        self, tokens: TokensServiceStub, token: dict[str, Any], paths: list[str], field: str
    ) -> None:
        there = issue(tokens).issued.token

        found = refused(lambda: self._update(tokens, pb.Token(id=there.id, **token), *paths))

        assert (found.code, [*found.fields]) == ("INVALID_ARGUMENT", [field])
        assert get(tokens, there.id) == there

    def test_an_old_etag(self, tokens: TokensServiceStub) -> None:
        token = issue(tokens).issued.token
        self._update(tokens, pb.Token(id=token.id, claims={"x": 1}))

        found = refused(lambda: self._update(tokens, pb.Token(id=token.id, claims={"x": 2}, etag="1")))

        assert (found.code, found.reason) == ("ABORTED", "TOKEN_ETAG_MISMATCH")

    def test_what_is_over_stays_as_it_is(self, tokens: TokensServiceStub) -> None:
        revoked = issue(tokens).issued
        tokens.RevokeToken(pb.RevokeTokenRequest(token=revoked.secret))
        used = refresh(tokens).issued
        rotate(tokens, used.secret)
        expired = issue(tokens, expire_time=in_(0.2)).issued
        eventually(lambda: not is_active(tokens, expired.secret), 5)

        for token_id, state in ((revoked.id, "revoked"), (used.id, "used"), (expired.id, "expired")):
            change = pb.Token(id=token_id, expire_time=in_(DAY))
            found = refused(lambda: self._update(tokens, change))  # noqa: B023
            assert (found.code, found.reason, found.metadata) == (
                "FAILED_PRECONDITION",
                "TOKEN_STATE",
                {"state": state},
            )
        assert refused(lambda: self._update(tokens, pb.Token(id=str(uuid4()), claims={}), "claims")).code == "NOT_FOUND"


class TestSessions:
    """ListSessions."""

    def test_one_for_each_family_newest_first_page_by_page(self, tokens: TokensServiceStub) -> None:
        subject = unique()
        kept = [issue(tokens, subject=subject).issued.id for _ in range(4)]
        first = refresh(tokens, subject=subject)
        successor = rotate(tokens, first.issued.secret).refresh.id
        gone = issue(tokens, subject=subject).issued
        tokens.RevokeToken(pb.RevokeTokenRequest(token=gone.secret))
        issue(tokens, pb.TOKEN_KIND_API_KEY, subject=subject)
        issue(tokens)

        found, token = [], ""
        while True:
            request = pb.ListSessionsRequest(subject=subject, page_size=2, page_token=token)
            page = tokens.ListSessions(request)
            found += [session.id for session in page.sessions]
            token = page.next_page_token
            if not token:
                break
            assert len(page.sessions) == 2

        assert found == [successor, *reversed(kept)]

    def test_other_kinds(self, tokens: TokensServiceStub) -> None:
        subject = unique()
        key = issue(tokens, pb.TOKEN_KIND_API_KEY, subject=subject, **FULL).issued.token
        issue(tokens, subject=subject)

        assert sessions(tokens, subject, kinds=[pb.TOKEN_KIND_API_KEY]) == [key]

    def test_a_page_token_of_another_subject(self, tokens: TokensServiceStub) -> None:
        subject = unique()
        for _ in range(2):
            issue(tokens, subject=subject)
        page = tokens.ListSessions(pb.ListSessionsRequest(subject=subject, page_size=1))

        request = pb.ListSessionsRequest(subject=unique(), page_size=1, page_token=page.next_page_token)

        assert refused(lambda: tokens.ListSessions(request)).reason == "PAGE_TOKEN_INVALID"


@pytest.mark.parametrize("key", [{"id": str(uuid4())}, {"jwt_id": "nobody's"}])
def test_an_unknown_token(tokens: TokensServiceStub, key: dict[str, Any]) -> None:
    found = refused(lambda: tokens.GetToken(pb.GetTokenRequest(**key)))

    assert (found.code, found.reason) == ("NOT_FOUND", "TOKEN_NOT_FOUND")


@pytest.mark.parametrize("spelling", [str.upper, str.lower])
def test_ids_in_any_case(tokens: TokensServiceStub, spelling: Callable[[str], str]) -> None:
    token = issue(tokens).issued.token

    assert get(tokens, spelling(token.id)) == token
    change = pb.Token(id=spelling(token.id), claims={"x": 1})
    assert tokens.UpdateToken(pb.UpdateTokenRequest(token=change)).token.claims == change.claims
