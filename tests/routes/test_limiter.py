"""Limiter on real stores: all or nothing, repeats, shadow, failure modes, places and what is given back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from kronos_db import schemas
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.embedded.redis import EmbeddedRedis
from kronos_db.routes.counters import Counters
from kronos_db.routes.demands import Demand, Outcome
from kronos_db.routes.limiter import Limiter
from kronos_db.routes.model import ConsumptionReusedError, Failure, Kind, LeaseInvalidError
from kronos_db.routes.quotas import DAY, Rule, Subject
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.errors import UnavailableError
from kronos_db.runtime.redis import RedisServer
from tests.parts.domain import WAYS, new_database, opened, settings_by, settings_of
from tests.parts.eventually import eventually
from tests.parts.redis_nodes import RedisCluster
from tests.routes.population import stored_quota

HOUR_US = 3_600_000_000


@pytest.fixture(scope="module")
def dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with new_database(postgres) as made:
        yield made


@pytest.fixture(scope="module")
def straight(dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with opened(settings_of(tmp_path_factory.mktemp("straight"), dsn), "routes") as made:
        yield made


@pytest.fixture
def with_redis(straight: Database, redis_server: EmbeddedRedis) -> Iterator[Limiter]:
    server = RedisServer(redis_server.url)
    yield Limiter(server, Counters(straight))
    server.close()


@pytest.fixture
def with_cluster(straight: Database, redis_cluster: RedisCluster) -> Iterator[Limiter]:
    server = RedisServer(redis_cluster.url)
    yield Limiter(server, Counters(straight))
    server.close()


@pytest.fixture(params=["redis", "cluster", *WAYS])
def limiter(request: pytest.FixtureRequest) -> Limiter:
    """With Redis, a cluster, and PostgreSQL in their place, straight and through pgBouncers: all decide the same."""
    if request.param in {"redis", "cluster"}:
        made: Limiter = request.getfixturevalue(f"with_{request.param}")
        return made
    return Limiter(None, Counters(request.getfixturevalue("databases")(request.param)))


@pytest.fixture(scope="module")
def databases(
    request: pytest.FixtureRequest, straight: Database, dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Database]]:
    made: dict[str, Database] = {"direct": straight}

    def through(name: str) -> Database:
        if name not in made:
            settings = settings_by(name, request, tmp_path_factory.mktemp(name), dsn)
            made[name] = schemas.open_database(settings, "routes")
        return made[name]

    yield through
    for database in made.values():
        database.pool.close()


def quota(kind: Kind, limit: int, **changes: Any) -> Rule:
    rules = {
        Kind.RATE: {"limit": limit, "period_us": limit * HOUR_US, "burst": limit},
        Kind.CALENDAR: {"limit": limit, "unit": DAY, "time_zone": "UTC"},
        Kind.CONCURRENCY: {"limit": limit, "lease_us": 60_000_000},
    }
    return Rule(stored_quota(kind, {**rules[kind], **changes.pop("rule", {})}, keys=[5], **changes))


def demand(*rules: Rule, key: str | None = None, **changes: Any) -> Demand:
    if "memory" in changes:
        changes.setdefault("print", "0" * 32)
    subject = Subject(given=key or uuid4().hex)
    keys = [rule.key(subject, str(number).encode()) for number, rule in enumerate(rules)]
    return Demand(rules, keys, **changes)


def allowed(outcomes: Sequence[Outcome]) -> list[bool]:
    return [outcome.allowed for outcome in outcomes]


def used(limiter: Limiter, one: Demand) -> list[int]:
    """Return what is used of each quota of a demand."""
    looks = [Demand([rule], [key], cost=0) for rule, key in zip(one.rules, one.keys, strict=True)]
    return [look.states[0].used for look in limiter.decide(looks, dry=True)]


KINDS = list(Kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_as_much_as_the_limit_and_no_more(limiter: Limiter, kind: Kind) -> None:
    one = demand(quota(kind, 3))

    outcomes = limiter.decide([one] * 5)

    assert allowed(outcomes) == [True] * 3 + [False] * 2
    assert [outcome.states[0].remaining for outcome in outcomes] == [2, 1, 0, 0, 0]
    assert limiter.decide([one])[0].allowed is False
    assert limiter.decide([demand(one.rules[0])])[0].allowed, "another key is another count"


@pytest.mark.parametrize("kind", [Kind.RATE, Kind.CALENDAR], ids=lambda kind: kind.name)
def test_costs(limiter: Limiter, kind: Kind) -> None:
    rule, key = quota(kind, 10), uuid4().hex

    costs = [7, 4, 11, 3, 1]
    outcomes = limiter.decide([demand(rule, key=key, cost=cost) for cost in costs])

    assert allowed(outcomes) == [True, False, False, True, False]
    assert outcomes[1].states[0].retry is not None
    assert outcomes[2].states[0].retry is None, "11 of 10 never pass"
    assert outcomes[1].states[0].remaining == 3
    assert limiter.decide([demand(rule, cost=1_000_000_000)])[0].allowed is False


def test_a_rate_gives_again_what_time_brings(limiter: Limiter) -> None:
    rule = quota(Kind.RATE, 20, rule={"period_us": 1_000_000, "burst": 2})
    one = demand(rule)
    begin = time.monotonic()
    passed: list[bool] = []

    def ask() -> bool:
        passed.append(limiter.decide([one])[0].allowed)
        return passed[-1]

    while ask():
        """The burst."""
    for _ in range(3):
        eventually(ask)
    assert sum(passed) <= 2 + int((time.monotonic() - begin) * 20) + 1


@pytest.mark.parametrize("denier", KINDS, ids=lambda kind: kind.name)
def test_all_or_nothing(limiter: Limiter, denier: Kind) -> None:
    """A denial consumes nothing, whichever of the quotas denies and wherever it is counted."""
    rules = [quota(kind, 1 if kind is denier else 5) for kind in (Kind.RATE, Kind.CALENDAR, Kind.CONCURRENCY)]
    one = demand(*rules)
    assert limiter.decide([one])[0].allowed
    for _ in range(3):
        outcome = limiter.decide([one])[0]
        assert not outcome.allowed
        assert not outcome.lease
        assert [state.rule.kind for state in outcome.states if not state.fits] == [denier]

    assert used(limiter, one) == [1, 1, 1]


def test_dry_consumes_nothing(limiter: Limiter) -> None:
    one = demand(*[quota(kind, 1) for kind in KINDS])

    assert allowed(limiter.decide([one], dry=True) + limiter.decide([one], dry=True)) == [True, True]
    assert limiter.decide([one])[0].allowed
    assert not limiter.decide([one], dry=True)[0].allowed


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_repeat_consumes_nothing_more(limiter: Limiter, kind: Kind) -> None:
    rule, key, memory = quota(kind, 2), uuid4().hex, uuid4().hex
    one = demand(rule, key=key, memory=memory)

    first, *others = [limiter.decide([one])[0] for _ in range(4)]

    assert first.allowed
    assert {other.allowed for other in others} == {True}
    assert {other.lease for other in others} == {first.lease}
    assert limiter.decide([demand(rule, key=key, cost=0)], dry=True)[0].states[0].used == 1
    with pytest.raises(ConsumptionReusedError):
        limiter.decide([one._replace(print="1" * 32)])


def test_a_repeat_of_all_kinds_together(limiter: Limiter) -> None:
    one = demand(*[quota(kind, 3) for kind in KINDS], memory=uuid4().hex)

    outcomes = [limiter.decide([one])[0] for _ in range(5)]

    assert allowed(outcomes) == [True] * 5
    assert len({outcome.lease for outcome in outcomes}) == 1
    assert used(limiter, one) == [1, 1, 1]


def test_a_denied_demand_is_decided_anew(limiter: Limiter) -> None:
    place, key = quota(Kind.CONCURRENCY, 1), uuid4().hex
    held = limiter.decide([demand(place, key=key)])[0]
    waiting = demand(place, key=key, memory=uuid4().hex)
    assert not limiter.decide([waiting])[0].allowed

    assert limiter.release(held.lease) == 1

    assert limiter.decide([waiting])[0].allowed


def test_repeats_at_once_consume_once(limiter: Limiter) -> None:
    rules = [quota(kind, 100) for kind in KINDS]
    one = demand(*rules, memory=uuid4().hex)
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda _: limiter.decide([one])[0], range(24)))

    assert allowed(outcomes) == [True] * 24
    assert used(limiter, one) == [1, 1, 1]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_shadow_counts_and_never_denies(limiter: Limiter, kind: Kind) -> None:
    rule, real = quota(kind, 1, shadow=True), quota(Kind.CALENDAR, 3)
    one = demand(rule, real)

    outcomes = limiter.decide([one] * 4)

    assert allowed(outcomes) == [True, True, True, False]
    assert [outcome.states[0].fits for outcome in outcomes] == [True, False, False, False]
    if kind is not Kind.RATE:
        look = limiter.decide([one._replace(cost=0)], dry=True)[0]
        assert look.states[0].used == 3, "what passed was counted, what the other denied was not"


def test_places_come_free_when_they_are_given_back_or_over(limiter: Limiter) -> None:
    rule = quota(Kind.CONCURRENCY, 2, rule={"lease_us": 300_000})
    one = demand(rule)
    first, second, third = limiter.decide([one] * 3)
    assert allowed([first, second, third]) == [True, True, False]
    assert first.lease
    assert first.lease != second.lease

    assert limiter.release(first.lease, dry=True) == 0
    assert [limiter.release(first.lease) for _ in range(2)] == [1, 0]
    assert allowed(limiter.decide([one] * 2)) == [True, False]
    time.sleep(0.35)
    assert allowed(limiter.decide([one] * 3)) == [True, True, False]
    assert limiter.release(second.lease) == 0


@pytest.mark.parametrize("lease", ["x", "!!!", "", "A" * 22, "A" * 45, "QUFBQUFBQUFBQUFBQUFBQXhBQUFBQUFBQUFBQUFBQUFB"])
def test_a_lease_that_is_none(with_redis: Limiter, lease: str) -> None:
    with pytest.raises(LeaseInvalidError):
        with_redis.release(lease)


def test_a_smaller_limit_counts_at_once(limiter: Limiter) -> None:
    key = uuid4().hex
    large, small = quota(Kind.RATE, 10), quota(Kind.RATE, 2)
    assert limiter.decide([demand(large, key=key, cost=8)])[0].allowed

    look = limiter.decide([demand(small, key=key, cost=0)], dry=True)[0].states[0]

    assert (look.used, look.remaining) == (2, 0)


def test_a_clock_that_went_back_does_not_close_a_rate_for_long(
    with_redis: Limiter, redis_server: EmbeddedRedis
) -> None:
    import redis  # noqa: PLC0415  # here alone

    one = demand(quota(Kind.RATE, 2))
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("kronos-db:q:" + one.keys[0], str(1 << 52))
        assert not with_redis.decide([one])[0].allowed
        state = with_redis.decide([one._replace(cost=0)], dry=True)[0].states[0]
        assert state.reset is not None
        assert state.reset <= 2 * 3600 + 1


def test_places_in_redis_do_not_outlive_their_leases(with_redis: Limiter, redis_server: EmbeddedRedis) -> None:
    import redis  # noqa: PLC0415  # here alone

    one = demand(quota(Kind.CONCURRENCY, 5), memory=uuid4().hex)
    with_redis.decide([one])
    with redis.Redis.from_url(redis_server.url) as client:
        for name in ("kronos-db:q:" + one.keys[0], "kronos-db:q:a:" + one.memory):
            assert 0 < client.pttl(name) <= 301_000


@pytest.mark.parametrize("kind", [Kind.RATE, Kind.CONCURRENCY], ids=lambda kind: kind.name)
@pytest.mark.parametrize("shadow", [False, True], ids=["real", "shadow"])
def test_failure_modes(straight: Database, kind: Kind, shadow: bool) -> None:
    limiter = Limiter(RedisServer("unix:///nowhere/redis.sock"), Counters(straight))
    calendar, key = quota(Kind.CALENDAR, 2), uuid4().hex

    refusing = [
        limiter.decide([demand(quota(kind, 1, failure=Failure.REFUSE, shadow=shadow), calendar, key=key)])[0]
        for _ in range(3)
    ]
    assert allowed(refusing) == ([True, True, False] if shadow else [False] * 3)
    assert [outcome.unavailable for outcome in refusing] == [not shadow] * 3

    key = uuid4().hex
    allowing = [
        limiter.decide([demand(quota(kind, 1, failure=Failure.ALLOW, shadow=shadow), calendar, key=key)])[0]
        for _ in range(3)
    ]
    assert allowed(allowing) == [True, True, False], "the calendar quota counts all the same"
    assert not any(outcome.states[0].counted for outcome in allowing)

    counting = demand(quota(kind, 1, failure=Failure.COUNT, shadow=shadow), quota(Kind.CALENDAR, 9))
    outcomes = [limiter.decide([counting])[0] for _ in range(2)]
    assert allowed(outcomes) == [True, shadow]
    assert all(outcome.states[0].counted for outcome in outcomes)


def test_without_postgres_nothing_is_consumed_of_a_rate(with_redis: Limiter, straight: Database) -> None:
    one = demand(quota(Kind.RATE, 1), quota(Kind.CALENDAR, 5))

    class Broken(Counters):
        def consume(self, *_: Any, **__: Any) -> Any:
            raise UnavailableError

    counters, with_redis._counters = with_redis._counters, Broken(straight)
    with pytest.raises(UnavailableError):
        with_redis.decide([one])
    with_redis._counters = counters

    assert with_redis.decide([one])[0].allowed


def test_a_statement_whose_outcome_was_lost_counts_once(straight: Database, dsn: str) -> None:
    """The same statement again, as after a lost connection, answers what it answered."""
    counters = Counters(straight)
    one = demand(quota(Kind.CALENDAR, 5))
    run, calls = straight.run, []

    def twice(query: Any, params: Any, make: Any) -> Any:
        calls.append(params)
        first = run(query, params, make)
        assert run(query, params, make) == first
        return first

    straight.run = twice  # type: ignore[method-assign]
    try:
        outcome = Limiter(None, counters).decide([one])[0]
    finally:
        straight.run = run  # type: ignore[method-assign]

    assert outcome.states[0].remaining == 4
    assert len(calls) == 1
    assert Limiter(None, counters).decide([one._replace(cost=0)], dry=True)[0].states[0].used == 1


def test_what_is_over_is_purged(straight: Database, dsn: str) -> None:
    counters = Counters(straight)
    one = demand(*[quota(kind, 5) for kind in KINDS], memory=uuid4().hex)
    Limiter(None, counters).decide([one])
    queries = ["purge_usage", "purge_allowed", "purge_leases"]
    while any(counters.purge(query) for query in queries):
        """What other tests have left."""
    assert [counters.purge(query) for query in queries] == [0, 0, 0]
    with psycopg.connect(dsn, autocommit=True) as admin:
        for table in ("usage", "allowed", "lease_held"):
            admin.execute(f"UPDATE routes.{table} SET expire_time = now() - interval '1 s'")

        assert all(counters.purge(query) for query in queries)
        while any(counters.purge(query) for query in queries):
            """Some at a time."""
        for table in ("usage", "allowed", "lease_held"):
            assert admin.execute(f"SELECT count(*) FROM routes.{table}").fetchone() == (0,)
