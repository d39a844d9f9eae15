"""RotateRefreshToken: one successor, whoever asks and however often; a theft shows."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub

from kronos_db.server import Server
from tests.parts.eventually import eventually
from tests.parts.serving import Serving
from tests.tokens.population import (
    get,
    in_,
    introspect,
    is_active,
    issue,
    outcome,
    reason,
    refresh,
    rotate,
    sessions,
    state,
    unique,
)

NO_GRACE = {"rotation_grace": Duration()}


def test_a_successor_takes_over(tokens: TokensServiceStub) -> None:
    first = refresh(
        tokens,
        client_id="web",
        scopes=["a"],
        claims={"x": 1},
        sensitive_claims="{}",
        device_name="Phone",
        idle_timeout=Duration(seconds=3600),
        access_lifetime=Duration(seconds=60),
    )

    answer = rotate(tokens, first.issued.secret)

    assert outcome(answer) == "ROTATED"
    token, access = answer.refresh.token, answer.access.token
    assert token.id not in {first.issued.id, access.id}
    changing = ("id", "issue_time", "last_seen_time", "etag")
    before, after = pb.Token(), pb.Token()
    before.CopyFrom(first.issued.token)
    after.CopyFrom(token)
    for name in changing:
        before.ClearField(name)  # type: ignore[arg-type]  # names of fields
        after.ClearField(name)  # type: ignore[arg-type]
    assert before == after
    assert 55 < access.expire_time.seconds - access.issue_time.seconds < 65
    assert not access.HasField("idle_timeout")
    assert is_active(tokens, answer.refresh.secret)
    assert introspect(tokens, answer.access.secret).token.sensitive_claims == "{}"
    assert reason(tokens, first.issued.secret) == "USED"
    # Issued before: it stays until its own short time is over.
    assert is_active(tokens, first.access.secret)


def test_a_lost_answer_is_given_again(tokens: TokensServiceStub) -> None:
    secret = refresh(tokens).issued.secret
    first = rotate(tokens, secret)

    again = rotate(tokens, secret)

    assert outcome(again) == "REPLAYED"
    assert (again.refresh.secret, again.access.secret) == (first.refresh.secret, first.access.secret)
    assert again.refresh.token == first.refresh.token
    assert is_active(tokens, again.refresh.secret)


@pytest.fixture
def both(serving: Serving) -> Iterator[list[Callable[[pb.RotateRefreshTokenRequest], pb.RotateRefreshTokenResponse]]]:
    """RotateRefreshToken of two servers on one database: more happens at the same time than in one."""
    other = Server(serving.settings)
    assert other.start(threading.Event())
    bearer = (("authorization", f"Bearer {serving.tokens['operator']}"),)
    channels = [grpc.insecure_channel(server.grpc_address) for server in (serving.server, other)]
    yield [partial(TokensServiceStub(channel).RotateRefreshToken, metadata=bearer) for channel in channels]
    for channel in channels:
        channel.close()
    other.stop()


@pytest.mark.parametrize("_round", range(4))
def test_sixty_four_at_once_get_one_successor(
    tokens: TokensServiceStub,
    both: list[Callable[[pb.RotateRefreshTokenRequest], pb.RotateRefreshTokenResponse]],
    _round: int,
) -> None:
    subject = unique()
    secret = refresh(tokens, subject=subject).issued.secret
    together = threading.Barrier(64)
    # Copies of it, so that no call waits for one and all come to the row at once.
    for call in both:
        call(pb.RotateRefreshTokenRequest(refresh_token=secret, validate_only=True))

    def one(number: int) -> pb.RotateRefreshTokenResponse:
        request = pb.RotateRefreshTokenRequest(refresh_token=secret, request_id=str(uuid4()))
        together.wait()
        return both[number % 2](request)

    with ThreadPoolExecutor(64) as threads:
        answers = list(threads.map(one, range(64)))

    assert Counter(map(outcome, answers)) == {"ROTATED": 1, "REPLAYED": 63}
    assert len({(answer.refresh.secret, answer.access.secret) for answer in answers}) == 1
    # No false alarm, and one that can be used.
    assert [session.id for session in sessions(tokens, subject)] == [answers[0].refresh.id]
    assert outcome(rotate(tokens, answers[0].refresh.secret)) == "ROTATED"


def test_a_replay_after_the_successor_was_used_revokes_the_family(tokens: TokensServiceStub) -> None:
    subject = unique()
    first = refresh(tokens, subject=subject)
    second = rotate(tokens, first.issued.secret)
    third = rotate(tokens, second.refresh.secret)
    for text in (third.refresh.secret, third.access.secret, first.access.secret):
        assert is_active(tokens, text)

    answer = rotate(tokens, first.issued.secret)

    assert outcome(answer) == "REUSE_DETECTED"
    assert not answer.HasField("refresh")
    assert not answer.HasField("access")
    for text in (third.refresh.secret, third.access.secret, second.access.secret, first.access.secret):
        assert reason(tokens, text) == "REVOKED"
    assert sessions(tokens, subject) == []
    assert outcome(rotate(tokens, third.refresh.secret)) == "REJECTED"
    assert outcome(rotate(tokens, first.issued.secret)) == "REJECTED"


def test_a_replay_after_the_grace_revokes_the_family(tokens: TokensServiceStub) -> None:
    secret = refresh(tokens, **NO_GRACE).issued.secret
    successor = rotate(tokens, secret).refresh.secret

    assert outcome(rotate(tokens, secret)) == "REUSE_DETECTED"
    assert reason(tokens, successor) == "REVOKED"


def test_a_theft_shows_under_any_order_of_thief_and_owner(tokens: TokensServiceStub) -> None:
    """Owner and thief both rotate whatever they have as fast as they can: soon neither has anything."""
    secret = refresh(tokens, **NO_GRACE).issued.secret
    seen: list[str] = []

    def go_on(text: str) -> None:
        while True:
            answer = rotate(tokens, text)
            seen.append(outcome(answer))
            if not answer.refresh.secret or len(seen) > 500:
                return
            text = answer.refresh.secret

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(go_on, [secret, secret]))

    assert "REUSE_DETECTED" in seen
    assert len(seen) < 500


def test_rotations_of_one_family_in_a_row(tokens: TokensServiceStub) -> None:
    answer = refresh(tokens)
    secret, subject = answer.issued.secret, answer.issued.token.subject
    for _ in range(20):
        rotated = rotate(tokens, secret)
        assert outcome(rotated) == "ROTATED"
        secret = rotated.refresh.secret

    assert len(sessions(tokens, subject)) == 1
    assert len({each.family_id for each in sessions(tokens, subject)}) == 1


def test_what_is_no_active_refresh_token_is_rejected(tokens: TokensServiceStub, sql: Callable[..., object]) -> None:
    revoked, expired, idle = (refresh(tokens, idle_timeout=Duration(seconds=60)) for _ in range(3))
    tokens.RevokeToken(pb.RevokeTokenRequest(token=revoked.issued.secret))
    sql("UPDATE tokens.token SET expire_time = now() - interval '1 s' WHERE id = %s", expired.issued.id)
    sql("UPDATE tokens.token SET seen_time = now() - interval '151 s' WHERE id = %s", idle.issued.id)
    session = issue(tokens)
    for text in (
        revoked.issued.secret,
        expired.issued.secret,
        idle.issued.secret,
        session.issued.secret,
        expired.access.secret,
        "junk",
        f"{revoked.issued.secret[:-8]}00000000",
    ):
        answer = rotate(tokens, text)
        assert outcome(answer) == "REJECTED"
        assert not answer.HasField("refresh")
    # Nothing was changed.
    assert is_active(tokens, session.issued.secret)
    assert state(tokens, expired.issued.id) == "EXPIRED"
    assert state(tokens, idle.issued.id) == "IDLE"


def test_validate_only_exchanges_nothing(tokens: TokensServiceStub) -> None:
    secret = refresh(tokens).issued.secret

    answer = rotate(tokens, secret, validate_only=True)

    assert outcome(answer) == "ROTATED"
    assert (answer.refresh.secret, answer.access.secret) == ("", "")
    assert is_active(tokens, secret)
    assert outcome(rotate(tokens, secret)) == "ROTATED"


def test_a_revoked_family_has_no_successors(tokens: TokensServiceStub) -> None:
    """Also when the revocation comes while rotations are on their way: none escapes."""
    for _ in range(10):
        subject = unique()
        secret = refresh(tokens, subject=subject).issued.secret
        answers: list[pb.RotateRefreshTokenResponse] = []

        def rotations(text: str = secret, into: list[pb.RotateRefreshTokenResponse] = answers) -> None:
            while text:
                answer = rotate(tokens, text)
                into.append(answer)
                text = answer.refresh.secret

        thread = threading.Thread(target=rotations)
        thread.start()
        eventually(lambda: len(answers) >= 2)  # noqa: B023
        tokens.RevokeTokens(pb.RevokeTokensRequest(subject=subject))
        assert sessions(tokens, subject) == []
        thread.join(20)

        assert outcome(answers[-1]) == "REJECTED"
        assert sessions(tokens, subject) == []
        for answer in answers[:-1]:
            assert not is_active(tokens, answer.refresh.secret)
            assert not is_active(tokens, answer.access.secret)


def test_expiry_of_the_family_is_that_of_the_first(tokens: TokensServiceStub) -> None:
    first = refresh(tokens, expire_time=in_(100))

    answer = rotate(tokens, first.issued.secret)

    assert answer.refresh.token.expire_time == first.issued.token.expire_time
    assert answer.access.token.expire_time == first.issued.token.expire_time
    assert get(tokens, first.issued.id).HasField("use_time")
