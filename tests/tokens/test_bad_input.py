"""What is refused, where, and that nothing is written then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub

from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.tokens.population import DAY, in_, introspect, issue, new, new_jwt, reason, unique

BAD: list[tuple[dict[str, Any], str]] = [
    ({"subject": ""}, "subject"),
    ({"subject": "x" * 256}, "subject"),
    ({"subject": "x\0"}, "subject"),
    ({"subject_kind": 0}, "subject_kind"),
    ({"subject_kind": 9}, "subject_kind"),
    ({"subject_kind": 1, "subject": "not-a-uuid"}, "subject"),
    ({"family_id": "x"}, "family_id"),
    ({"client_id": "x" * 256}, "client_id"),
    ({"device_id": "x" * 256}, "device_id"),
    ({"device_name": "x" * 201}, "device_name"),
    ({"ip_address": "localhost"}, "ip_address"),
    ({"ip_address": "10.0.0.1/8"}, "ip_address"),
    ({"scopes": ["a"] * 2}, "scopes"),
    ({"scopes": [str(number) for number in range(101)]}, "scopes"),
    ({"scopes": ["a b"]}, "scopes[0]"),
    ({"scopes": ["a", ""]}, "scopes[1]"),
    ({"scopes": ['"']}, "scopes[0]"),
    ({"scopes": ["x" * 129]}, "scopes[0]"),
    ({"claims": {"x": "y" * 8192}}, "claims"),
    ({"claims": {"x": float("nan")}}, "claims"),
    ({"sensitive_claims": "x" * 8193}, "sensitive_claims"),
    ({"expire_time": None}, "expire_time"),
    ({"expire_time": in_(-1)}, "expire_time"),
    ({"expire_time": Timestamp(seconds=1 << 40)}, "expire_time"),
    ({"idle_timeout": Duration(seconds=59)}, "idle_timeout"),
    ({"idle_timeout": Duration(seconds=367 * 86_400)}, "idle_timeout"),
]
OF_ISSUING: list[tuple[dict[str, Any], str]] = [
    ({"kind": pb.TOKEN_KIND_UNSPECIFIED}, "kind"),
    ({"kind": pb.TOKEN_KIND_ACCESS}, "kind"),
    ({"kind": pb.TOKEN_KIND_JWT}, "kind"),
    ({"kind": 77}, "kind"),
    ({"kind": pb.TOKEN_KIND_REFRESH, "access_lifetime": Duration(nanos=1)}, "access_lifetime"),
    ({"kind": pb.TOKEN_KIND_REFRESH, "access_lifetime": Duration(seconds=5, nanos=1)}, "access_lifetime"),
    ({"kind": pb.TOKEN_KIND_REFRESH, "access_lifetime": Duration(seconds=86_401)}, "access_lifetime"),
    ({"kind": pb.TOKEN_KIND_REFRESH, "rotation_grace": Duration(seconds=301)}, "rotation_grace"),
    ({"kind": pb.TOKEN_KIND_REFRESH, "rotation_grace": Duration(seconds=-1)}, "rotation_grace"),
]
OF_JWTS: list[tuple[dict[str, Any], str]] = [
    ({"jwt_id": ""}, "jwt_id"),
    ({"jwt_id": "x" * 256}, "jwt_id"),
    ({"issue_time": in_(DAY)}, "issue_time"),
    ({"issue_time": Timestamp(seconds=-(1 << 40))}, "issue_time"),
]


@pytest.fixture
def count(sql: Callable[..., object]) -> Callable[[], object]:
    return lambda: sql("SELECT count(*) FROM tokens.token")


@pytest.mark.parametrize(("changes", "path"), BAD + OF_ISSUING)
def test_no_such_token_is_issued(
    tokens: TokensServiceStub, count: Callable[[], object], changes: dict[str, Any], path: str
) -> None:
    before = count()

    found = refused(lambda: issue(tokens, **changes))

    assert (found.code, found.reason, [*found.fields]) == ("INVALID_ARGUMENT", "BAD_REQUEST", [f"token.{path}"])
    assert count() == before


@pytest.mark.parametrize(("changes", "path"), BAD + OF_JWTS)
def test_no_such_jwt_is_registered(
    tokens: TokensServiceStub, count: Callable[[], object], changes: dict[str, Any], path: str
) -> None:
    before = count()
    batch = pb.BatchRegisterJwtsRequest(jwts=[new_jwt(), new_jwt(**changes)])

    alone = refused(lambda: tokens.RegisterJwt(pb.RegisterJwtRequest(jwt=new_jwt(**changes))))
    together = refused(lambda: tokens.BatchRegisterJwts(batch))

    assert (alone.code, [*alone.fields]) == ("INVALID_ARGUMENT", [f"jwt.{path}"])
    assert (together.code, [*together.fields]) == ("INVALID_ARGUMENT", [f"jwts[1].{path}"])
    assert count() == before


def test_refusals_show_nothing_of_what_was_sent(tokens: TokensServiceStub) -> None:
    secret = unique("secret")

    found = refused(lambda: issue(tokens, sensitive_claims=secret * 300, ip_address=secret, device_name=secret * 9))

    assert len(found.fields) == 3
    assert secret.encode() not in found.everything


class TestTexts:
    """What is presented and is no token of ours: RFC 7662 knows no error for it."""

    @pytest.mark.parametrize(
        "junk", ["x", "krs_", "é" * 95, "krs_" + "0" * 91, " " * 95, "Bearer x", "x" * 8192, "eyJhbGciOiJub25lIn0.e30."]
    )
    def test_junk(self, tokens: TokensServiceStub, junk: str) -> None:
        assert reason(tokens, junk) == "MALFORMED"

    def test_cut_off_altered_and_wrong_checksum(self, tokens: TokensServiceStub) -> None:
        secret = issue(tokens).issued.secret
        wrong = "0" if secret[-1] != "0" else "1"

        for text in (secret[:-1], secret[1:], secret[:-1] + wrong, secret.upper(), secret + secret):
            assert reason(tokens, text) == "MALFORMED"

    def test_another_deployments_token(self, tokens: TokensServiceStub, fresh_serving: Serving) -> None:
        secret = issue(TokensServiceStub(fresh_serving.channel_of("operator"))).issued.secret

        assert reason(tokens, secret) == "FOREIGN"

    def test_junk_is_not_looked_up(self, serving: Serving, tokens: TokensServiceStub) -> None:
        def looked_up() -> list[float | None]:
            labels = {"domain": "tokens", "kind": "tokens"}
            return [
                serving.server.registry.get_sample_value(f"kronos_db_cache_{name}_total", labels)
                for name in ("hits", "misses")
            ]

        before = looked_up()
        for junk in ("x", "krs_" + "0" * 91):
            assert not introspect(tokens, junk).active

        assert looked_up() == before
        assert not introspect(tokens, issue(tokens).issued.secret[:-1]).active

    @pytest.mark.parametrize(("named", "path"), [({}, "key"), ({"token": ""}, "token"), ({"jwt_id": ""}, "jwt_id")])
    def test_nothing_at_all(self, tokens: TokensServiceStub, named: dict[str, Any], path: str) -> None:
        found = refused(lambda: tokens.IntrospectToken(pb.IntrospectTokenRequest(**named)))
        batch = pb.BatchIntrospectTokensRequest(requests=[pb.IntrospectTokenRequest(**named)])
        of_many = refused(lambda: tokens.BatchIntrospectTokens(batch))

        assert (found.code, [*found.fields]) == ("INVALID_ARGUMENT", [path])
        assert (of_many.code, [*of_many.fields]) == ("INVALID_ARGUMENT", [f"requests[0].{path}"])

    def test_too_long(self, tokens: TokensServiceStub) -> None:
        found = refused(lambda: introspect(tokens, "x" * 8193))

        assert (found.code, [*found.fields]) == ("INVALID_ARGUMENT", ["token"])

    @pytest.mark.parametrize("number", [0, 1001])
    def test_none_or_too_many(self, tokens: TokensServiceStub, number: int) -> None:
        requests = [pb.IntrospectTokenRequest(token="x")] * number

        found = refused(lambda: tokens.BatchIntrospectTokens(pb.BatchIntrospectTokensRequest(requests=requests)))

        assert (found.code, [*found.fields]) == ("INVALID_ARGUMENT", ["requests"])


def test_a_listing_of_nobody(tokens: TokensServiceStub) -> None:
    for named, path in (
        ({"subject": ""}, "subject"),
        ({"subject": "x", "page_size": -1}, "page_size"),
        ({"subject": "x", "kinds": [0]}, "kinds[0]"),
        ({"subject": "x", "kinds": [99]}, "kinds[0]"),
    ):
        found = refused(lambda: tokens.ListSessions(pb.ListSessionsRequest(**named)))  # type: ignore[arg-type]  # noqa: B023
        assert (found.code, [*found.fields]) == ("INVALID_ARGUMENT", [path])


def test_claims_of_any_shape_come_back(tokens: TokensServiceStub) -> None:
    shapes = {"a": None, "b": [1, 2.5, "x", {"y": True}], "é": {}, "n": 10**15}

    token = issue(tokens, claims=shapes).issued.token

    assert token == tokens.GetToken(pb.GetTokenRequest(id=token.id)).token
    assert new(claims=shapes).claims == token.claims
