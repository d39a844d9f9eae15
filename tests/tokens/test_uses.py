"""Uses of tokens: noted without a write for each, and a token never ends early for want of one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub

from kronos_db.runtime.database.queries import load_queries
from kronos_db.server import Server
from kronos_db.tokens import model
from kronos_db.tokens.store import QUERIES
from kronos_db.tokens.uses import Uses
from tests.parts.eventually import eventually
from tests.parts.serving import Serving
from tests.tokens.population import is_active, issue, reason, refresh, rotate, state

IDLE = 60
Sql = Callable[..., object]


class Written:
    """Takes what is written; fails while it is told to."""

    def __init__(self) -> None:
        self.uses: list[tuple[str, float]] = []
        self.batches: list[int] = []
        self.failing = False

    def __call__(self, uses: Sequence[tuple[str, float]]) -> int:
        if self.failing:
            raise OSError("away")
        self.uses += uses
        self.batches.append(len(uses))
        return len(uses)

    @property
    def ids(self) -> list[str]:
        return [token_id for token_id, _ in self.uses]


class TestGathering:
    """Uses in memory."""

    def test_many_uses_of_a_token_are_one(self) -> None:
        written = Written()
        uses = Uses(written)

        for _ in range(100):
            uses.note("a")
        uses.note("b")
        uses.flush()
        uses.note("a")
        uses.flush()

        assert sorted(written.ids) == ["a", "b"]
        assert all(0 <= ago < 1 for _, ago in written.uses)

    def test_they_are_written_in_bounded_batches(self) -> None:
        written = Written()
        uses = Uses(written)

        for number in range(2500):
            uses.note(str(number))
        uses.flush()

        assert sorted(written.batches) == [500, 1000, 1000]

    def test_what_is_remembered_is_bounded(self) -> None:
        written = Written()
        uses = Uses(written, most=100, within=60.0)
        uses.start()

        for number in range(1000):
            uses.note(str(number))
            if number % 100 == 0:
                # The thread is woken, long before its time.
                eventually(lambda: len(written.uses) >= number - 1)  # noqa: B023
        uses.stop()

        assert sorted(written.ids) == sorted(map(str, range(1000)))
        assert len(uses._noted) <= 100

    def test_also_while_nothing_can_be_written(self) -> None:
        written = Written()
        written.failing = True
        uses = Uses(written, most=100)

        for number in range(1000):
            uses.note(str(number))
        assert len(uses._waiting) == 200

        written.failing = False
        uses.flush()
        assert len(written.uses) == 200

    def test_a_failure_loses_nothing(self) -> None:
        written = Written()
        written.failing = True
        uses = Uses(written)
        uses.note("a")
        with pytest.raises(OSError, match="away"):
            uses.flush()

        written.failing = False
        uses.flush()

        assert written.ids == ["a"]

    def test_the_thread_writes_again_and_again_and_at_its_end(self) -> None:
        written = Written()
        uses = Uses(written, every=0.05, within=0.01)
        uses.start()
        for _ in range(3):
            before = len(written.uses)

            def noted_again(before: int = before) -> bool:
                uses.note("a")
                return len(written.uses) > before

            eventually(noted_again)
        uses.note("the last")
        uses.stop()

        assert written.ids[-1] == "the last"

    def test_none_is_lost_between_threads(self) -> None:
        written = Written()
        uses = Uses(written, most=10_000_000)
        done = threading.Event()

        def note(first: int) -> None:
            for number in range(first, 40_000, 4):
                uses.note(str(number))

        def flush() -> None:
            while not done.is_set():
                uses.flush()

        flusher = threading.Thread(target=flush)
        noters = [threading.Thread(target=note, args=(first,)) for first in range(4)]
        for thread in (flusher, *noters):
            thread.start()
        for thread in noters:
            thread.join()
        done.set()
        flusher.join()
        uses.flush()

        assert sorted(written.ids) == sorted(map(str, range(40_000)))


def test_the_bounds_of_the_model_are_those_of_the_queries() -> None:
    load = load_queries(QUERIES, "tokens")["load"].text

    assert f"token.idle_seconds + {model.SEEN_LAG}" in load
    assert f"token.idle_seconds + {model.IDLE_SLACK}" in load
    assert model.SEEN_EVERY + model.SEEN_WITHIN <= model.SEEN_LAG < model.IDLE_SLACK


@pytest.fixture
def idle(tokens: TokensServiceStub) -> pb.IssuedToken:
    return issue(tokens, idle_timeout=Duration(seconds=IDLE)).issued


def unused_for(sql: Sql, token_id: str, seconds: float) -> None:
    """Have PostgreSQL know of no use for so long."""
    sql("UPDATE tokens.token SET seen_time = now() - make_interval(secs => %s) WHERE id = %s", seconds, token_id)


def known_use(sql: Sql, token_id: str) -> float:
    """How many seconds ago PostgreSQL knows of a use."""
    found = sql(
        "SELECT extract(epoch FROM clock_timestamp() - seen_time)::float8 FROM tokens.token WHERE id = %s", token_id
    )
    assert isinstance(found, float)
    return found


class TestIdle:
    """idle_timeout: not before, and at the latest 90 seconds after."""

    @pytest.mark.parametrize("beyond", [-1, 0, model.SEEN_LAG - 1, model.SEEN_LAG + 1, model.IDLE_SLACK - 2])
    def test_not_while_another_process_may_know_of_a_use(
        self, tokens: TokensServiceStub, sql: Sql, idle: pb.IssuedToken, beyond: float
    ) -> None:
        unused_for(sql, idle.id, IDLE + beyond)

        assert is_active(tokens, idle.secret)

    def test_not_later_than_the_bound(self, tokens: TokensServiceStub, sql: Sql, idle: pb.IssuedToken) -> None:
        unused_for(sql, idle.id, IDLE + model.IDLE_SLACK + 0.1)

        assert reason(tokens, idle.secret) == "IDLE"
        assert state(tokens, idle.id) == "IDLE"

    def test_a_use_in_the_last_moment_counts_at_once(
        self, tokens: TokensServiceStub, sql: Sql, idle: pb.IssuedToken
    ) -> None:
        """Written before it is answered: else the token would end while the use waits to be written."""
        unused_for(sql, idle.id, IDLE + model.IDLE_SLACK - 2)

        assert is_active(tokens, idle.secret)

        assert known_use(sql, idle.id) < 2

    def test_none_comes_back(self, serving: Serving, tokens: TokensServiceStub, sql: Sql, idle: pb.IssuedToken) -> None:
        """A use that is written too late, as after an outage, does not bring a token back that was said to be over."""
        assert is_active(tokens, idle.secret)
        unused_for(sql, idle.id, IDLE + model.IDLE_SLACK + 1)

        serving.server._domains._uses.flush()

        assert known_use(sql, idle.id) > IDLE
        assert state(tokens, idle.id) == "IDLE"

    def test_a_successor_begins_anew(self, tokens: TokensServiceStub, sql: Sql) -> None:
        first = refresh(tokens, idle_timeout=Duration(seconds=IDLE)).issued
        unused_for(sql, first.id, IDLE)

        successor = rotate(tokens, first.secret).refresh

        assert known_use(sql, successor.id) < 2
        assert successor.token.idle_timeout.seconds == IDLE


@pytest.fixture
def two(fresh_serving: Serving) -> Iterator[list[tuple[Server, TokensServiceStub]]]:
    """Two servers on one database, each with copies of its own."""
    second = Server(fresh_serving.settings)
    assert second.start(threading.Event())
    channel = grpc.insecure_channel(second.grpc_address)
    first_channel = fresh_serving.channel
    fresh_serving._channel = channel
    other = TokensServiceStub(fresh_serving.channel_of("operator"))
    fresh_serving._channel = first_channel
    yield [
        (fresh_serving.server, TokensServiceStub(fresh_serving.channel_of("operator"))),
        (second, other),
    ]
    channel.close()
    second.stop()


def test_a_use_that_one_process_saw_counts_in_the_other(
    fresh_serving: Serving, two: list[tuple[Server, TokensServiceStub]]
) -> None:
    (one, tokens), (_, others) = two
    assert fresh_serving.settings.postgres_dsn is not None
    with psycopg.connect(fresh_serving.settings.postgres_dsn.get_secret_value(), autocommit=True) as connection:

        def sql(text: str, *params: object) -> object:
            found = connection.execute(text, params)  # type: ignore[arg-type]
            row = found.fetchone() if found.description else None
            return row[0] if row else None

        issued = issue(tokens, idle_timeout=Duration(seconds=IDLE)).issued
        # The other process has a copy that is good for less than a second more.
        unused_for(sql, issued.id, IDLE + model.SEEN_LAG - 0.8)
        assert is_active(others, issued.secret)
        assert is_active(tokens, issued.secret)
        # This one's use is written; the other does not hear of it.
        one._domains._uses.flush()
        assert known_use(sql, issued.id) < 5
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert is_active(others, issued.secret)
        # It has learnt of it by reading anew, and not by writing a use of its own.
        assert known_use(sql, issued.id) > 1


def test_what_is_not_written_yet_is_when_the_server_stops(fresh_serving: Serving) -> None:
    tokens = TokensServiceStub(fresh_serving.channel_of("operator"))
    issued = issue(tokens).issued
    before = issued.token.last_seen_time
    assert is_active(tokens, issued.secret)

    fresh_serving.restart()

    tokens = TokensServiceStub(fresh_serving.channel_of("operator"))
    seen = tokens.GetToken(pb.GetTokenRequest(id=issued.id)).token.last_seen_time
    assert seen.ToNanoseconds() > before.ToNanoseconds()
