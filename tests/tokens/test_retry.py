"""The same call again: the same answer with the same secrets, and nothing done twice."""

from __future__ import annotations

import base64
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import grpc
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub

from kronos_db.server import Server
from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.tokens.population import (
    get,
    is_active,
    issue,
    new,
    new_jwt,
    outcome,
    reason,
    refresh,
    register,
    rotate,
    sessions,
    unique,
)


def test_issuing_again_gives_the_same_token_and_secret(tokens: TokensServiceStub) -> None:
    subject = unique()
    wanted = new(pb.TOKEN_KIND_REFRESH, subject=subject, sensitive_claims="{}")
    request = pb.IssueTokenRequest(token=wanted, request_id=str(uuid4()))

    first, again = tokens.IssueToken(request), tokens.IssueToken(request)

    assert again == first
    assert is_active(tokens, again.issued.secret)
    assert is_active(tokens, again.access.secret)
    assert len(sessions(tokens, subject)) == 1


def test_issuing_at_the_same_time(tokens: TokensServiceStub) -> None:
    subject = unique()
    request = pb.IssueTokenRequest(token=new(subject=subject), request_id=str(uuid4()))
    together = threading.Barrier(16)

    def one(_: int) -> str:
        together.wait()
        return tokens.IssueToken(request).issued.secret

    with ThreadPoolExecutor(16) as threads:
        assert len(set(threads.map(one, range(16)))) == 1
    assert len(sessions(tokens, subject)) == 1


def test_many_that_come_together_get_their_own(tokens: TokensServiceStub) -> None:
    """Calls share a transaction: each has its own answer, and a JWT that is there already fails for itself alone."""
    there = register(tokens)
    subjects = [unique() for _ in range(64)]

    def one(number: int) -> str:
        if number % 8 == 0:
            return refused(lambda: register(tokens, jwt_id=there.jwt_id)).reason
        answer = refresh(tokens, subject=subjects[number])
        assert answer.issued.token.subject == answer.access.token.subject == subjects[number]
        return "OK" if is_active(tokens, answer.issued.secret) and is_active(tokens, answer.access.secret) else "-"

    with ThreadPoolExecutor(32) as threads:
        found = list(threads.map(one, range(64)))

    assert found == ["JWT_EXISTS" if number % 8 == 0 else "OK" for number in range(64)]


def test_a_rotation_again_is_the_first_answer(tokens: TokensServiceStub) -> None:
    secret = refresh(tokens).issued.secret
    request_id = str(uuid4())
    first = rotate(tokens, secret, request_id=request_id)
    successor = rotate(tokens, first.refresh.secret)

    # By its id it is known as a repeat: no alarm, though the successor was used.
    assert rotate(tokens, secret, request_id=request_id) == first
    assert is_active(tokens, successor.refresh.secret)
    # Under another id it is a theft.
    assert outcome(rotate(tokens, secret, request_id=str(uuid4()))) == "REUSE_DETECTED"


def test_an_alarm_again_is_the_first_answer(tokens: TokensServiceStub) -> None:
    secret = refresh(tokens).issued.secret
    rotate(tokens, rotate(tokens, secret).refresh.secret)
    request_id = str(uuid4())

    assert outcome(rotate(tokens, secret, request_id=request_id)) == "REUSE_DETECTED"
    assert outcome(rotate(tokens, secret, request_id=request_id)) == "REUSE_DETECTED"


def test_registering_again(tokens: TokensServiceStub) -> None:
    request = pb.RegisterJwtRequest(jwt=new_jwt(), request_id=str(uuid4()))

    assert tokens.RegisterJwt(request) == tokens.RegisterJwt(request)


def test_revoking_again_counts_the_same(tokens: TokensServiceStub) -> None:
    subject = unique()
    issue(tokens, subject=subject)
    request = pb.RevokeTokensRequest(subject=subject, request_id=str(uuid4()))

    assert tokens.RevokeTokens(request).revoked_count == 1
    later = issue(tokens, subject=subject).issued.secret
    assert tokens.RevokeTokens(request).revoked_count == 1
    # What came after the first is not concerned.
    assert is_active(tokens, later)


def test_updating_again(tokens: TokensServiceStub) -> None:
    token = issue(tokens).issued.token
    request = pb.UpdateTokenRequest(token=pb.Token(id=token.id, claims={"x": 1}), request_id=str(uuid4()))

    assert tokens.UpdateToken(request) == tokens.UpdateToken(request)
    assert get(tokens, token.id).etag == "2"


def test_the_same_id_with_another_body(tokens: TokensServiceStub) -> None:
    request_id = str(uuid4())
    tokens.IssueToken(pb.IssueTokenRequest(token=new(), request_id=request_id))

    found = refused(lambda: tokens.IssueToken(pb.IssueTokenRequest(token=new(), request_id=request_id)))

    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")


def test_after_a_restart(fresh_serving: Serving) -> None:
    # For longer than a restart can take.
    token = new(pb.TOKEN_KIND_REFRESH)
    token.rotation_grace.seconds = 300
    request = pb.IssueTokenRequest(token=token, request_id=str(uuid4()))
    first = TokensServiceStub(fresh_serving.channel_of("operator")).IssueToken(request)
    rotated = rotate(TokensServiceStub(fresh_serving.channel_of("operator")), first.issued.secret)

    fresh_serving.restart()

    tokens = TokensServiceStub(fresh_serving.channel_of("operator"))
    assert tokens.IssueToken(request) == first
    again = rotate(tokens, first.issued.secret)
    assert outcome(again) == "REPLAYED"
    assert again.refresh.secret == rotated.refresh.secret


def test_peppers_rotate_while_serving(fresh_serving: Serving) -> None:
    """As docs/operations.md has it: the new key last, then first; two neighbouring steps serve at the same time."""
    path = fresh_serving.settings.master_key_file
    assert path is not None
    old_line = path.read_text().splitlines()[-1]
    new_line = f"mk-new {base64.b64encode(secrets.token_bytes(32)).decode()}"
    servers = []
    issued = []
    try:
        for lines in ([old_line], [old_line, new_line], [new_line, old_line]):
            path.write_text("\n".join(lines) + "\n")
            server = Server(fresh_serving.settings)
            assert server.start(threading.Event())
            servers.append(server)
            channel = grpc.insecure_channel(server.grpc_address)
            metadata = (("authorization", f"Bearer {fresh_serving.tokens['operator']}"),)
            tokens = TokensServiceStub(channel)
            answer = tokens.IssueToken(pb.IssueTokenRequest(token=new(pb.TOKEN_KIND_REFRESH)), metadata=metadata)
            issued.append(answer.issued.secret)
            for text in issued:
                asked = tokens.IntrospectToken(pb.IntrospectTokenRequest(token=text), metadata=metadata)
                assert asked.introspection.active
            channel.close()
        # The step before knows what the last one issues.
        channel = grpc.insecure_channel(servers[1].grpc_address)
        asked = TokensServiceStub(channel).IntrospectToken(
            pb.IntrospectTokenRequest(token=issued[2]), metadata=metadata
        )
        assert asked.introspection.active
        channel.close()
        marks = [text[4:12] for text in issued]
        assert marks[0] == marks[1] != marks[2]
    finally:
        for server in servers:
            server.stop()


def test_reasons_are_told_after_a_restart(fresh_serving: Serving) -> None:
    tokens = TokensServiceStub(fresh_serving.channel_of("operator"))
    secret = issue(tokens).issued.secret
    tokens.RevokeToken(pb.RevokeTokenRequest(token=secret))

    fresh_serving.restart()

    assert reason(TokensServiceStub(fresh_serving.channel_of("operator")), secret) == "REVOKED"
