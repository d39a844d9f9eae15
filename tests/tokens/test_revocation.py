"""RevokeToken and RevokeTokens: complete, counted, and seen at once."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub

from kronos_db.runtime.identifiers import uuid7_text
from tests.parts.refusal import refused
from tests.tokens.population import (
    DAY,
    get,
    in_,
    introspect_jwt,
    is_active,
    issue,
    outcome,
    reason,
    refresh,
    register,
    rotate,
    sessions,
    state,
    unique,
)


def revoke(tokens: TokensServiceStub, **named: Any) -> None:
    tokens.RevokeToken(pb.RevokeTokenRequest(**named))


def revoke_all(tokens: TokensServiceStub, **named: Any) -> int:
    return tokens.RevokeTokens(pb.RevokeTokensRequest(**named)).revoked_count


class TestOne:
    """RevokeToken."""

    @pytest.mark.parametrize("kind", [pb.TOKEN_KIND_SESSION, pb.TOKEN_KIND_API_KEY])
    @pytest.mark.parametrize("by", ["token", "id"])
    def test_it_is_not_active_any_more(self, tokens: TokensServiceStub, kind: Any, by: str) -> None:
        issued = issue(tokens, kind).issued
        assert is_active(tokens, issued.secret)

        revoke(tokens, **{by: issued.secret if by == "token" else issued.id.upper()})

        assert reason(tokens, issued.secret) == "REVOKED"
        token = get(tokens, issued.id)
        assert token.state == pb.TOKEN_STATE_REVOKED
        assert token.HasField("revoke_time")
        assert token.etag == "2"

    def test_a_jwt(self, tokens: TokensServiceStub) -> None:
        jwt = register(tokens)
        assert introspect_jwt(tokens, jwt.jwt_id).active

        revoke(tokens, jwt_id=jwt.jwt_id)

        assert not introspect_jwt(tokens, jwt.jwt_id).active

    def test_an_access_token_alone(self, tokens: TokensServiceStub) -> None:
        answer = refresh(tokens)

        revoke(tokens, token=answer.access.secret)

        assert reason(tokens, answer.access.secret) == "REVOKED"
        assert is_active(tokens, answer.issued.secret)

    def test_again_and_unknown_ones_are_fine(self, tokens: TokensServiceStub) -> None:
        issued = issue(tokens).issued
        for _ in range(2):
            revoke(tokens, token=issued.secret)
        before = get(tokens, issued.id)

        revoke(tokens, id=issued.id)
        for named in ({"token": "junk"}, {"id": str(uuid4())}, {"jwt_id": "nobody's"}):
            revoke(tokens, **named)

        assert get(tokens, issued.id) == before

    def test_it_takes_the_right_secret(self, tokens: TokensServiceStub) -> None:
        one, two = issue(tokens).issued, issue(tokens).issued
        # The id of one, the secret of the other: even with a right checksum.
        body = one.secret[:44] + two.secret[44:-8]
        revoke(tokens, token=f"{body}{zlib.crc32(body.encode()):08x}")

        assert is_active(tokens, one.secret)
        assert is_active(tokens, two.secret)

    def test_validate_only_revokes_nothing(self, tokens: TokensServiceStub) -> None:
        issued = issue(tokens).issued

        revoke(tokens, token=issued.secret, validate_only=True)

        assert is_active(tokens, issued.secret)


class TestMany:
    """RevokeTokens."""

    def _one_of_each(self, tokens: TokensServiceStub, **named: Any) -> list[Callable[[], bool]]:
        """Return for a token of each kind how to ask whether it is active."""
        family = refresh(tokens, **named)
        secrets = [
            issue(tokens, **named).issued.secret,
            issue(tokens, pb.TOKEN_KIND_API_KEY, **named).issued.secret,
            family.issued.secret,
            family.access.secret,
        ]
        jwt = register(tokens, **named)
        asks: list[Callable[[], bool]] = [lambda text=text: is_active(tokens, text) for text in secrets]  # type: ignore[misc]
        asks.append(lambda: introspect_jwt(tokens, jwt.jwt_id).active)
        # There is a copy of each.
        assert all(ask() for ask in asks)
        return asks

    @pytest.mark.parametrize("name", ["subject", "client_id", "device_id", "family_id"])
    def test_all_of_something(self, tokens: TokensServiceStub, name: str) -> None:
        value = uuid7_text()
        concerned = self._one_of_each(tokens, **{name: value})
        others = self._one_of_each(tokens, **{name: uuid7_text()}) + self._one_of_each(tokens)

        assert revoke_all(tokens, **{name: value}) == 5

        assert not any(ask() for ask in concerned)
        assert all(ask() for ask in others)
        assert revoke_all(tokens, **{name: value}) == 0
        # What is issued later is not concerned.
        assert all(ask() for ask in self._one_of_each(tokens, **{name: value}))

    def test_only_active_ones_are_counted(self, tokens: TokensServiceStub, sql: Callable[..., object]) -> None:
        subject, client = unique(), unique("client")
        issued = [issue(tokens, subject=subject).issued for _ in range(6)]
        revoke(tokens, token=issued[0].secret)
        sql("UPDATE tokens.token SET expire_time = now() - interval '1 s' WHERE id = %s", issued[1].id)
        other = issue(tokens, subject=subject, client_id=client).issued
        assert revoke_all(tokens, client_id=client) == 1
        rotate(tokens, refresh(tokens, subject=subject).issued.secret)

        # Four sessions, the successor, and two access tokens.
        assert revoke_all(tokens, subject=subject) == 4 + 1 + 2
        assert reason(tokens, other.secret) == "REVOKED"
        assert sessions(tokens, subject) == []

    def test_those_issued_before_a_time(self, tokens: TokensServiceStub) -> None:
        subject = unique()
        early = issue(tokens, subject=subject).issued
        late = issue(tokens, subject=subject).issued
        assert is_active(tokens, early.secret)
        assert is_active(tokens, late.secret)

        assert revoke_all(tokens, subject=subject, issued_before=late.token.issue_time) == 1

        assert reason(tokens, early.secret) == "REVOKED"
        assert is_active(tokens, late.secret)
        # A later call for an earlier time takes nothing back.
        assert revoke_all(tokens, subject=subject, issued_before=Timestamp(seconds=1)) == 0
        assert reason(tokens, early.secret) == "REVOKED"

    def test_a_successor_counts_as_old_as_its_family(self, tokens: TokensServiceStub) -> None:
        first = refresh(tokens)
        later = issue(tokens).issued.token.issue_time
        successor = rotate(tokens, first.issued.secret)

        revoke_all(tokens, family_id=first.issued.token.family_id, issued_before=later)

        assert reason(tokens, successor.refresh.secret) == "REVOKED"
        assert outcome(rotate(tokens, successor.refresh.secret)) == "REJECTED"

    def test_a_jwt_counts_as_old_as_its_iat(self, tokens: TokensServiceStub) -> None:
        subject = unique()
        old = register(tokens, subject=subject, issue_time=in_(-100))
        young = register(tokens, subject=subject)

        assert revoke_all(tokens, subject=subject, issued_before=in_(-50)) == 1

        assert not introspect_jwt(tokens, old.jwt_id).active
        assert introspect_jwt(tokens, young.jwt_id).active

    def test_everything_before_a_time(self, tokens: TokensServiceStub) -> None:
        # Long ago, since other tests have tokens here too.
        old = [register(tokens, issue_time=Timestamp(seconds=1000 + number)) for number in range(3)]
        issued = issue(tokens).issued
        assert all(introspect_jwt(tokens, jwt.jwt_id).active for jwt in old)

        assert revoke_all(tokens, everything=True, issued_before=Timestamp(seconds=1002)) == 2

        assert [introspect_jwt(tokens, jwt.jwt_id).active for jwt in old] == [False, False, True]
        assert is_active(tokens, issued.secret)
        assert state(tokens, old[0].id) == "REVOKED"

    def test_validate_only_counts_and_revokes_nothing(self, tokens: TokensServiceStub) -> None:
        issued = issue(tokens).issued
        subject = issued.token.subject

        assert revoke_all(tokens, subject=subject, validate_only=True) == 1

        assert is_active(tokens, issued.secret)
        assert revoke_all(tokens, subject=subject) == 1

    def test_each_is_counted_by_one_of_two_at_once(self, tokens: TokensServiceStub) -> None:
        for _ in range(5):
            subject = unique()
            for _ in range(5):
                issue(tokens, subject=subject)
            together = threading.Barrier(8)

            def one(_: int, subject: str = subject, together: threading.Barrier = together) -> int:
                together.wait()
                return revoke_all(tokens, subject=subject)

            with ThreadPoolExecutor(8) as threads:
                assert sum(threads.map(one, range(8))) == 5

    @pytest.mark.parametrize(
        ("named", "field"),
        [
            ({}, "selection"),
            ({"subject": ""}, "subject"),
            ({"family_id": "x"}, "family_id"),
            ({"everything": False, "issued_before": in_(-1)}, "everything"),
            ({"everything": True}, "issued_before"),
            ({"subject": "x", "issued_before": in_(DAY)}, "issued_before"),
            ({"subject": "x", "issued_before": Timestamp(seconds=1 << 40)}, "issued_before"),
        ],
    )
    def test_what_is_refused(self, tokens: TokensServiceStub, named: dict[str, Any], field: str) -> None:
        found = refused(lambda: revoke_all(tokens, **named))

        assert (found.code, [*found.fields]) == ("INVALID_ARGUMENT", [field])
