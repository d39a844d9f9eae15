"""WatchRevocations: what was revoked before first, then each as it is committed, and nothing twice or never."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub

from kronos_db.tokens import service
from tests.parts import threads
from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.tokens.population import in_, issue, refresh, register, unique

LIMIT = 30.0


def watch(tokens: TokensServiceStub, token: str = "") -> Any:
    return tokens.WatchRevocations(pb.WatchRevocationsRequest(resume_token=token), timeout=LIMIT)


def told(stream: Any, count: int) -> list[pb.Revocation]:
    """The next `count` revocations of a stream."""
    found = []
    while len(found) < count:
        message = next(stream)
        if message.HasField("revocation"):
            found.append(message.revocation)
    return found


def what(revocation: pb.Revocation) -> tuple[str, Any]:
    name = revocation.WhichOneof("what")
    assert name is not None
    return name, getattr(revocation, name)


@pytest.fixture
def own(fresh_serving: Serving) -> TokensServiceStub:
    """A stub of a server that nobody else has revoked anything at."""
    return TokensServiceStub(fresh_serving.channel_of("operator"))


def test_what_was_revoked_before_comes_first(own: TokensServiceStub) -> None:
    jwts = [register(own) for _ in range(3)]
    family, no_jwt = refresh(own).issued, refresh(own).issued
    register(own, family_id=family.token.family_id)
    session = issue(own).issued
    own.RevokeToken(pb.RevokeTokenRequest(token=no_jwt.secret))
    own.RevokeToken(pb.RevokeTokenRequest(jwt_id=jwts[0].jwt_id))
    own.RevokeToken(pb.RevokeTokenRequest(token=family.secret))
    # Nothing to those who verify JWTs alone.
    own.RevokeToken(pb.RevokeTokenRequest(token=session.secret))
    own.RevokeTokens(pb.RevokeTokensRequest(subject=jwts[1].subject))
    own.RevokeTokens(pb.RevokeTokensRequest(client_id="web"))
    before = in_(-5)
    own.RevokeTokens(pb.RevokeTokensRequest(everything=True, issued_before=before))

    stream = watch(own)
    first, second = next(stream), next(stream)

    assert (first.resume_token, bool(second.resume_token), list(second.snapshot)) == ("", True, [])
    assert [what(each) for each in first.snapshot] == [
        ("everything", True),
        ("client_id", "web"),
        ("subject", jwts[1].subject),
        ("family_id", family.token.family_id),
        ("jwt_id", jwts[0].jwt_id),
    ]
    assert not first.snapshot_truncated
    assert not first.HasField("revocation")
    assert first.snapshot[0].issued_before == before
    # A JWT that was issued before the revocation has an earlier `iat`, one issued after it a later one.
    assert first.snapshot[2].issued_before.ToNanoseconds() > jwts[1].issue_time.ToNanoseconds()
    later = register(own, subject=jwts[1].subject)
    assert first.snapshot[2].issued_before.ToNanoseconds() <= later.issue_time.ToNanoseconds()
    assert not first.snapshot[4].HasField("issued_before")
    assert all(each.HasField("revoke_time") for each in first.snapshot)


def test_a_jwt_that_expired_or_is_covered_is_not_in_it(own: TokensServiceStub) -> None:
    expiring, covered = register(own, expire_time=in_(0.5)), register(own)
    for jwt in (expiring, covered):
        own.RevokeToken(pb.RevokeTokenRequest(jwt_id=jwt.jwt_id))
    own.RevokeTokens(pb.RevokeTokensRequest(subject=covered.subject))
    while time.time() < expiring.expire_time.ToNanoseconds() / 1e9:
        time.sleep(0.01)

    assert [what(each) for each in next(watch(own)).snapshot] == [("subject", covered.subject)]


def test_each_as_it_comes(tokens: TokensServiceStub) -> None:
    jwt, family, session = register(tokens), refresh(tokens).issued, issue(tokens).issued
    device = unique("device")
    stream = watch(tokens)
    next(stream)

    tokens.RevokeToken(pb.RevokeTokenRequest(token=session.secret))
    tokens.RevokeToken(pb.RevokeTokenRequest(jwt_id=jwt.jwt_id))
    tokens.RevokeToken(pb.RevokeTokenRequest(token=family.secret))
    tokens.RevokeTokens(pb.RevokeTokensRequest(device_id=device))
    tokens.UpdateToken(pb.UpdateTokenRequest(token=pb.Token(id=issue(tokens).issued.id, claims={"x": 1})))
    tokens.RevokeTokens(pb.RevokeTokensRequest(subject=jwt.subject, issued_before=in_(-9)))
    found = told(stream, 4)
    stream.cancel()

    assert [what(each) for each in found] == [
        ("jwt_id", jwt.jwt_id),
        ("family_id", family.token.family_id),
        ("device_id", device),
        ("subject", jwt.subject),
    ]
    assert found[1].HasField("issued_before")
    assert found[3].issued_before.seconds < found[2].issued_before.seconds


def test_it_goes_on_where_it_ended_without_what_came_before(tokens: TokensServiceStub) -> None:
    stream = watch(tokens)
    next(stream)
    token = next(stream).resume_token
    stream.cancel()
    devices = [unique("device") for _ in range(5)]
    for device in devices:
        tokens.RevokeTokens(pb.RevokeTokensRequest(device_id=device))

    stream = watch(tokens, token)
    first = next(stream)
    found = [value for _, value in map(what, told(stream, 5))]
    stream.cancel()

    assert not first.snapshot
    assert found == devices


def test_nothing_is_missed_between_the_two(tokens: TokensServiceStub) -> None:
    """Revocations go on while streams begin: each is in the first message of a stream or comes after it."""
    done: list[str] = []
    stop = threading.Event()

    def revoke() -> None:
        while not stop.is_set():
            device = unique("device")
            tokens.RevokeTokens(pb.RevokeTokensRequest(device_id=device))
            done.append(device)

    thread = threading.Thread(target=revoke)
    thread.start()
    try:
        for _ in range(8):
            stream = watch(tokens)
            seen = {value for _, value in map(what, next(stream).snapshot)}
            before = len(done) + 3
            while len(done) < before or not set(done[:before]) <= seen:
                seen |= {value for _, value in map(what, told(stream, 1))}
            stream.cancel()
    finally:
        stop.set()
        thread.join()


def test_no_more_than_it_may_hold_and_it_says_so(own: TokensServiceStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_IN_SNAPSHOT", 3)
    for number in range(3):
        own.RevokeTokens(pb.RevokeTokensRequest(device_id=f"device {number}"))
    assert not next(watch(own)).snapshot_truncated
    own.RevokeToken(pb.RevokeTokenRequest(jwt_id=register(own, jwt_id="the last").jwt_id))

    first = next(watch(own))

    assert first.snapshot_truncated
    assert [value for _, value in map(what, first.snapshot)] == ["the last", "device 2", "device 1"]


def test_many_who_watch_hold_no_thread(tokens: TokensServiceStub) -> None:
    next(watch(tokens))
    before = threads.held()
    streams = [watch(tokens) for _ in range(100)]
    for stream in streams:
        next(stream)
    assert threads.held() < before + threads.FEW
    device = unique("device")

    tokens.RevokeTokens(pb.RevokeTokensRequest(device_id=device))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda stream: what(told(stream, 1)[0]), streams))
    assert found == [("device_id", device)] * 100
    assert threads.held() < before + threads.FEW
    for stream in streams:
        stream.cancel()


def test_a_token_of_another_stream(tokens: TokensServiceStub) -> None:
    assert refused(lambda: next(watch(tokens, "AAAA"))).reason == "RESUME_TOKEN_INVALID"
