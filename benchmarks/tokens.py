"""The rows of the tokens domain."""

from __future__ import annotations

import random
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from google.protobuf.timestamp_pb2 import Timestamp
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub
from kronos.users.v1 import users_pb2

from benchmarks.fill_tokens import Filler, Whose
from benchmarks.load import Outcome
from benchmarks.stand import (
    IN_FLIGHT,
    Asked,
    Row,
    Stand,
    all_succeeded,
    at_least,
    at_most,
    echo,
    p50s_in_turn,
    pair,
    run_load,
    settle,
    stand,
)

_PROCESSES = 2
# More than elsewhere: bars are near to what a busy hour shows, and one round in the middle of few is the weather's.
_ROUNDS = 9
_SECONDS = 3.0
_HOT = 8_000
# As many as a round can ask for at most, so that none is asked for twice.
_COLD = 60_000
_FEW, _MANY = 10_000, 3_000_000
# What the comparison of few with many asks for, one at a time.
_SAMPLE = 2_000
_REVOKED = 100_000
_INTROSPECT = "/kronos.tokens.v1.TokensService/IntrospectToken"
_BATCH = "/kronos.tokens.v1.TokensService/BatchIntrospectTokens"
_ISSUE = "/kronos.tokens.v1.TokensService/IssueToken"


def rows() -> Iterator[Row]:
    """Measure."""
    with stand(_PROCESSES) as on:
        tokens = TokensServiceStub(on.channel)
        whose = Whose(pb.SUBJECT_KIND_USER, _new_user(on))
        filler = Filler(on.settings, whose)
        hot = filler.known(_HOT)
        filler.others(_MANY - _HOT - _SAMPLE)
        with stand(_PROCESSES) as small:
            few = Filler(small.settings, Whose(pb.SUBJECT_KIND_USER, _new_user(small)))
            few.others(_FEW - _SAMPLE)
            yield from _growth((small, few), (on, filler))
        answer = _answer_bytes(on, tokens, hot[0])
        with echo(on.settings.worker_threads, answer, _PROCESSES) as floor:
            yield from _introspections(on, floor, hot, filler)
        yield from _batches(on, hot)
        yield from _issues(on, whose)
        yield from _revocation(on, tokens, filler, hot)


def _new_user(on: Stand) -> str:
    """Return the id of a user of ours: the tokens of others are not active."""
    request = users_pb2.CreateUserRequest(user=users_pb2.User(username=f"bench{uuid.uuid4().hex}"))
    return on.users.CreateUser(request, metadata=on.metadata).user.id


def _issue(whose: Whose) -> pb.IssueTokenRequest:
    return pb.IssueTokenRequest(
        token=pb.Token(
            kind=pb.TOKEN_KIND_SESSION,
            subject_kind=whose.kind,  # type: ignore[arg-type]  # the numbers are those of the contract
            subject=whose.subject,
            client_id="bench",
            device_id=str(uuid.uuid4()),
            scopes=["a", "b", "c"],
            expire_time=Timestamp(seconds=int(time.time()) + 86_400),
        )
    )


def _requests(texts: Sequence[str]) -> list[bytes]:
    return [pb.IntrospectTokenRequest(token=text).SerializeToString() for text in texts]


def _answer_bytes(on: Stand, tokens: TokensServiceStub, text: str) -> int:
    answer = tokens.IntrospectToken(pb.IntrospectTokenRequest(token=text), metadata=on.metadata)
    if not answer.introspection.active:
        raise SystemExit("a token that was filled in is not active")
    return answer.ByteSize()


def _growth(few: tuple[Stand, Filler], many: tuple[Stand, Filler]) -> Iterator[Row]:
    """Compare introspections one at a time, of tokens that nobody asked for and of those just asked for."""
    asked = [_alone(on, filler.known(_SAMPLE)) for on, filler in (few, many)]
    name = f"tokens: IntrospectToken, p50 with {_MANY:,} stored beside {_FEW:,}"
    for which in ("cold", "hot"):
        floor_p50, p50 = p50s_in_turn(*asked)
        yield at_most(f"{name}, {which}", p50, "ms", floor_p50, 1.2)


def _alone(on: Stand, texts: Sequence[str]) -> Asked:
    """Return how to introspect, and requests for `texts`."""
    method = partial(TokensServiceStub(on.channel).IntrospectToken, metadata=on.metadata)
    return method, [pb.IntrospectTokenRequest(token=text) for text in texts]


def _introspections(on: Stand, floor: str, hot: Sequence[str], filler: Filler) -> Iterator[Row]:
    of_hot = _requests(hot)
    fresh = filler.known(_COLD * _ROUNDS)
    floors, hots, colds = [], [], []
    for round_ in range(_ROUNDS):
        # Hot again: the cold ones of the round before took their places.
        on.load(_INTROSPECT, of_hot, 5.0)
        settle()
        floors.append(_echo(floor, of_hot, on))
        settle()
        hots.append(on.load(_INTROSPECT, of_hot, _SECONDS))
        settle()
        colds.append(on.load(_INTROSPECT, _requests(fresh[round_ * _COLD : (round_ + 1) * _COLD]), _SECONDS))
    for which, of, bar in (("hot", hots, 0.75), ("cold", colds, 0.45)):
        found, of_floor = pair(of, floors)
        name = f"tokens: IntrospectToken of {which} tokens, {_PROCESSES} processes"
        yield at_least(name, found.calls_per_second, "calls/s", of_floor.calls_per_second, bar)
        yield Row(f"{name}, p50", found.p50_ms, "ms")
        yield Row(f"{name}, p99", found.p99_ms, "ms")
        yield Row(f"{name}, processor time of a call", found.server_cpu / found.calls_per_second * 1e6, "µs")


def _echo(target: str, requests: Sequence[bytes], like: Stand) -> Outcome:
    outcome = run_load(target, "/bench.Echo/Echo", requests, _SECONDS, IN_FLIGHT, like.metadata)
    return all_succeeded(outcome, "echo")


def _batches(on: Stand, hot: Sequence[str]) -> Iterator[Row]:
    shuffled = random.Random(1).sample(hot, len(hot))
    requests = []
    for start in range(0, len(shuffled), 100):
        of = [pb.IntrospectTokenRequest(token=text) for text in shuffled[start : start + 100]]
        requests.append(pb.BatchIntrospectTokensRequest(requests=of).SerializeToString())
    rounds = [on.load(_BATCH, requests, in_flight=16).calls_per_second * 100 for _ in range(_ROUNDS)]
    tokens = statistics.median(rounds)
    name = f"tokens: BatchIntrospectTokens of 100, 16 in flight, {_PROCESSES} processes"
    yield Row(name, tokens, "tokens/s", bar="≥ 60,000", met=tokens >= 60_000)


def _issues(on: Stand, whose: Whose) -> Iterator[Row]:
    requests = [_issue(whose).SerializeToString() for _ in range(1000)]
    answer = TokensServiceStub(on.channel).IssueToken(_issue(whose), metadata=on.metadata).ByteSize()
    issued, floors = [], []
    with echo(on.settings.worker_threads, answer, _PROCESSES) as floor:
        for _ in range(_ROUNDS):
            settle()
            floors.append(_echo(floor, requests, on))
            settle()
            issued.append(on.load(_ISSUE, requests, _SECONDS))
    found, of_floor = pair(issued, floors)
    name = f"tokens: IssueToken, 64 in flight, {_PROCESSES} processes"
    yield at_least(name, found.calls_per_second, "calls/s", of_floor.calls_per_second, 0.35)
    yield Row(f"{name}, p99", found.p99_ms, "ms")
    yield Row(f"{name}, processor time of a call", found.server_cpu / found.calls_per_second * 1e6, "µs")


def _revocation(on: Stand, tokens: TokensServiceStub, filler: Filler, hot: Sequence[str]) -> Iterator[Row]:
    """Revoke many tokens of one subject, while others are introspected from a process of its own."""
    subject = _new_user(on)
    texts = filler.known(_REVOKED, subject)
    sample = random.Random(1).sample(texts, 1000)
    batch = pb.BatchIntrospectTokensRequest(requests=[pb.IntrospectTokenRequest(token=text) for text in sample])
    if not all(each.active for each in tokens.BatchIntrospectTokens(batch, metadata=on.metadata).introspections):
        raise SystemExit("tokens that were filled in are not active")
    with _meanwhile(lambda: on.load(_INTROSPECT, _requests(hot), _SECONDS, 16)) as load:
        time.sleep(2.0)
        begin = time.perf_counter()
        count = tokens.RevokeTokens(pb.RevokeTokensRequest(subject=subject), metadata=on.metadata).revoked_count
        seconds = time.perf_counter() - begin
        still = [each.active for each in tokens.BatchIntrospectTokens(batch, metadata=on.metadata).introspections]
    if count != _REVOKED or any(still):
        raise SystemExit(f"{count} of {_REVOKED} tokens were revoked, {sum(still)} of {len(sample)} are active still")
    yield Row(f"tokens: RevokeTokens of {_REVOKED:,} of one subject", seconds, "s", bar="≤ 2 s", met=seconds <= 2)
    yield Row("tokens: IntrospectToken meanwhile, 16 in flight, p99", load.result().p99_ms, "ms")


@contextmanager
def _meanwhile(run: Callable[[], Outcome]) -> Iterator[Future[Outcome]]:
    """Run something beside the block; its result is there when the block ends."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(run)
