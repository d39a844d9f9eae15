"""Copies and quotas in a Redis Cluster: over all nodes, while slots move, and when a node dies or hangs."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from kronos.admin.v1 import status_pb2 as admin
from kronos.admin.v1.admin_pb2_grpc import AdminServiceStub
from kronos.routes.v1 import routes_pb2 as pb
from kronos.routes.v1.routes_pb2_grpc import RoutesServiceStub
from kronos.users.v1 import users_pb2
from redis.crc import key_slot

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.routes.counters import Counters
from kronos_db.routes.demands import Demand, Outcome
from kronos_db.routes.limiter import Limiter
from kronos_db.routes.model import Failure, Kind
from kronos_db.routes.quotas import Rule
from kronos_db.runtime.cache.remote import Kept, Remote
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.redis import RedisServer
from kronos_db.runtime.redis_clients import _ROOMS, ROOMS
from tests.parts.domain import new_database, opened, settings_of
from tests.parts.eventually import eventually
from tests.parts.redis_nodes import LIMIT, SLOTS, Node, RedisCluster
from tests.parts.serving import Serving
from tests.routes.population import new_quota, rate, stored_quota

HOUR_US = 3_600_000_000
THREADS = 8


@pytest.fixture(scope="module")
def routes(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with new_database(postgres) as dsn, opened(settings_of(tmp_path_factory.mktemp("routes"), dsn), "routes") as made:
        yield made


@pytest.fixture
def limiters(own_cluster: RedisCluster, routes: Database) -> Iterator[list[Limiter]]:
    """Two, as two processes have them."""
    servers = [RedisServer(own_cluster.url) for _ in range(2)]
    yield [Limiter(server, Counters(routes)) for server in servers]
    for server in servers:
        server.close()
    # What redis-py left to the collector is not another test's.
    gc.collect()


def rule(limit: int, failure: Failure = Failure.REFUSE, kind: Kind = Kind.RATE) -> Rule:
    """Return a rule of which the limit is all that passes while the test lasts."""
    of_kind = {
        Kind.RATE: {"limit": limit, "period_us": limit * HOUR_US, "burst": limit},
        Kind.CONCURRENCY: {"limit": limit, "lease_us": HOUR_US},
    }
    return Rule(stored_quota(kind, of_kind[kind], keys=[5], failure=failure))


def kept(value: bytes) -> Kept:
    return Kept(value, 77, (16,), int((time.time() + 60) * 1000))


def on_node(cluster: RedisCluster, limiter: Limiter, node: Node, used: Sequence[str] = ()) -> str:
    """Return a new counter that is on `node`."""
    while True:
        key = uuid4().hex
        if cluster.owner_of(limiter._name(key)) is node and key not in used:
            return key


def test_rooms_lie_evenly_over_the_slots() -> None:
    parts = [key_slot(f"kronos-db:q:{room}0123".encode()) * ROOMS // SLOTS for room in _ROOMS]
    assert parts == list(range(ROOMS))


def test_copies_are_on_all_nodes_and_found_there(redis_cluster: RedisCluster) -> None:
    remote = Remote(RedisServer(redis_cluster.url), b"k" * 32)
    values = {f"copy {number}": kept(str(number).encode()) for number in range(60)}
    remote.put(values)
    assert remote.get([*values, "none"]) == values
    assert min(node.ask("DBSIZE") for node in redis_cluster.primaries) > 0
    token = remote.lock("copy 1:filling", 10.0)
    assert token is not None
    assert remote.lock("copy 1:filling", 10.0) is None
    remote.unlock("copy 1:filling", "another")
    assert remote.lock("copy 1:filling", 10.0) is None
    remote.unlock("copy 1:filling", token)
    assert remote.lock("copy 1:filling", 10.0) is not None
    remote.close()
    remote.server.close()


def test_a_dead_node_takes_its_copies_alone_until_its_replica_has_them(own_cluster: RedisCluster) -> None:
    remote = Remote(RedisServer(own_cluster.url), b"k" * 32)
    values = {f"copy {number}": kept(str(number).encode()) for number in range(60)}
    remote.put(values)
    lost, replica = own_cluster.primaries[0], own_cluster.replicas[0]
    eventually(lambda: replica.ask("DBSIZE") == lost.ask("DBSIZE"), LIMIT)
    lost.kill()
    _lacks_what_is_on(own_cluster, lost, remote, values)
    replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
    eventually(lambda: remote.get(list(values)) == values, LIMIT)
    remote.close()
    remote.server.close()


def test_a_node_that_hangs_takes_its_copies_alone(redis_cluster: RedisCluster) -> None:
    remote = Remote(RedisServer(redis_cluster.url), b"k" * 32)
    values = {f"copy {number}": kept(str(number).encode()) for number in range(60)}
    remote.put(values)
    redis_cluster.primaries[0].hang()
    try:
        _lacks_what_is_on(redis_cluster, redis_cluster.primaries[0], remote, values)
    finally:
        redis_cluster.primaries[0].resume()
    eventually(lambda: remote.get(list(values)) == values, LIMIT)
    remote.close()
    remote.server.close()


def _lacks_what_is_on(cluster: RedisCluster, lost: Node, remote: Remote, values: dict[str, Kept]) -> None:
    elsewhere = {name: value for name, value in values.items() if cluster.owner_of(name) is not lost}
    assert len(elsewhere) < len(values)
    assert remote.get(list(values)) == elsewhere
    remote.put(values)
    assert remote.get(list(values)) == elsewhere
    assert not remote.is_away
    assert remote.server.is_partly_away


def test_before_there_is_a_cluster_nothing_fails(routes: Database) -> None:
    server = RedisServer("redis+cluster://127.0.0.1:1")
    assert Remote(server, b"k" * 32).get(["a"]) == {}
    outcome = Limiter(server, Counters(routes)).decide([Demand([rule(1)], [uuid4().hex])])[0]
    assert outcome.unavailable
    assert server.is_away


def test_exactly_the_smaller_of_two_quotas_on_two_nodes_passes(redis_cluster: RedisCluster, routes: Database) -> None:
    """Eight callers on two processes want more than there is; what one node denies, the other gets back."""
    servers = [RedisServer(redis_cluster.url) for _ in range(2)]
    limiters = [Limiter(server, Counters(routes)) for server in servers]
    small, large = rule(100), rule(2_000)
    keys = [on_node(redis_cluster, limiters[0], node) for node in redis_cluster.primaries[:2]]
    demand = Demand([small, large], keys)

    def consume(number: int) -> list[Outcome]:
        return [outcome for _ in range(20) for outcome in limiters[number % 2].decide([demand] * 2)]

    with ThreadPoolExecutor(THREADS) as threads:
        outcomes = [outcome for found in threads.map(consume, range(THREADS)) for outcome in found]
    passed = sum(outcome.allowed for outcome in outcomes)
    # On a machine that is busy with other things a node may seem to be away for a moment: then nothing passes.
    lost = sum(outcome.unavailable for outcome in outcomes)
    assert 100 - lost <= passed <= 100
    look = limiters[0].decide([Demand([large], keys[1:], cost=0)], dry=True)[0].states[0]
    if not lost:
        assert (passed, look.used) == (100, 100)
    for server in servers:
        server.close()


# A node that one thread is sent to while another asks who has which slots is known twice to redis-py: it forgets one,
# with its connections, which end when they are collected.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_no_use_is_forgotten_while_slots_move_to_a_new_node(own_cluster: RedisCluster, limiters: list[Limiter]) -> None:
    """Two quotas in two rooms, from two processes; the room of one moves to a node that nobody has heard of."""
    first, last = own_cluster.primaries[0], own_cluster.primaries[2]
    rules = [rule(100_000), rule(200_000)]
    keys = [on_node(own_cluster, limiters[0], first), on_node(own_cluster, limiters[0], last)]
    slot = key_slot(limiters[0]._name(keys[0]).encode())
    passed: list[int] = []
    stop = threading.Event()

    def consume(number: int) -> None:
        while not stop.is_set():
            passed.append(sum(outcome.allowed for outcome in limiters[number % 2].decide([Demand(rules, keys)] * 3)))

    def more_pass() -> None:
        seen = sum(passed)
        eventually(lambda: sum(passed) > seen + 100, LIMIT)

    added = own_cluster.add()
    with ThreadPoolExecutor(THREADS) as threads:
        jobs = [threads.submit(consume, number) for number in range(THREADS)]
        try:
            more_pass()
            own_cluster.begin_to_move(slot, first, added)
            more_pass()
            own_cluster.finish_moving(slot, first, added)
            more_pass()
        finally:
            stop.set()
        for job in jobs:
            job.result(LIMIT)
    look = [Demand([each], [key], cost=0) for each, key in zip(rules, keys, strict=True)]

    def used() -> list[int]:
        return [outcome.states[0].used for outcome in limiters[0].decide(look, dry=True)]

    eventually(lambda: all(used()), LIMIT)
    # What was answered too late is used, and nobody was told so.
    assert min(used()) >= sum(passed)
    assert added.ask("CLUSTER", "COUNTKEYSINSLOT", slot) == 1


def test_a_dead_node_costs_its_own_quotas_alone(own_cluster: RedisCluster, limiters: list[Limiter]) -> None:
    limiter, (dead, well, _) = limiters[0], own_cluster.primaries
    lost, other = on_node(own_cluster, limiter, dead), on_node(own_cluster, limiter, well)
    refusing, allowing, counting = (rule(4, failure) for failure in (Failure.REFUSE, Failure.ALLOW, Failure.COUNT))
    roomy = rule(100)
    assert limiter.decide([Demand([refusing, roomy], [lost, other])])[0].allowed
    dead.kill()

    both = limiter.decide([Demand([refusing, roomy], [lost, other])] * 3)
    assert [(outcome.allowed, outcome.unavailable) for outcome in both] == [(False, True)] * 3
    look = limiter.decide([Demand([roomy], [other], cost=0)], dry=True)[0].states[0]
    assert look.counted
    assert look.used == 1, "what the room that lives had counted was given back"
    passed = limiter.decide([Demand([allowing, roomy], [on_node(own_cluster, limiter, dead), other])] * 6)
    assert all(outcome.allowed and outcome.states[1].counted for outcome in passed)
    counted = limiter.decide([Demand([counting], [on_node(own_cluster, limiter, dead)])] * 6)
    assert sum(outcome.allowed for outcome in counted) == 4, "counted in PostgreSQL"
    assert limiter.is_degraded(refusing, lost)
    assert not limiter.is_degraded(roomy, other)

    own_cluster.replicas[0].ask("CLUSTER", "FAILOVER", "TAKEOVER")
    probe = Demand([rule(1000)], [on_node(own_cluster, limiter, dead)])
    eventually(lambda: limiter.decide([probe])[0].states[0].counted, LIMIT)
    more = limiter.decide([Demand([refusing], [lost])] * 6)
    # What the replica had not heard of yet is forgotten.
    assert sum(outcome.allowed for outcome in more) in {3, 4}


def test_places_are_given_back_wherever_they_are(redis_cluster: RedisCluster, routes: Database) -> None:
    server = RedisServer(redis_cluster.url)
    limiter = Limiter(server, Counters(routes))
    places = [rule(1, kind=Kind.CONCURRENCY) for _ in range(3)]
    demand = Demand(places, [on_node(redis_cluster, limiter, node) for node in redis_cluster.primaries])
    lease = limiter.decide([demand])[0].lease
    assert not limiter.decide([demand])[0].allowed
    assert limiter.release(lease) == 3
    assert limiter.release(lease) == 0
    assert limiter.decide([demand])[0].allowed
    server.close()


def test_a_server_on_a_cluster_answers_whatever_becomes_of_it(
    own_cluster: RedisCluster, database: str, tmp_path: Path
) -> None:
    serving = Serving(tmp_path, database, redis_url=own_cluster.url)
    serving.start()
    try:
        routes, users = RoutesServiceStub(serving.channel_of("operator")), serving.users()
        request = pb.CreateQuotaRequest(quota=new_quota(rate=rate(1, 3600.0, 5), keys=[5]))
        name = routes.CreateQuota(request, timeout=LIMIT).quota.name
        asked = [
            pb.QuotaConsumption(quota=name, subject=pb.QuotaSubject(key=str(number % 20))) for number in range(200)
        ]
        results = routes.BatchConsumeQuotas(pb.BatchConsumeQuotasRequest(consumptions=asked), timeout=LIMIT).results
        assert all(result.decision.counted for result in results)
        assert min(node.ask("DBSIZE") for node in own_cluster.primaries) > 0
        status = AdminServiceStub(serving.channel_of("operator"))
        told = admin.GetStatusRequest()
        eventually(lambda: status.GetStatus(told, timeout=LIMIT).redis.health.state == 1, LIMIT)

        for number, node in enumerate(own_cluster.primaries):
            node.kill()
            user = users.CreateUser(users_pb2.CreateUserRequest(user=users_pb2.User(username=f"u{number}")), timeout=9)
            for turn in range(3):
                changed = users_pb2.User(id=user.user.id, display_name=f"{turn}")
                users.UpdateUser(users_pb2.UpdateUserRequest(user=changed), timeout=LIMIT)
                page = users.ListUsers(users_pb2.ListUsersRequest(page_size=10), timeout=LIMIT)
                assert next(each for each in page.users if each.id == user.user.id).display_name == f"{turn}"
            routes.BatchConsumeQuotas(pb.BatchConsumeQuotasRequest(consumptions=asked), timeout=LIMIT)
    finally:
        serving.stop()
