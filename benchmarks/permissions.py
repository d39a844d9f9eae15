"""The rows of checks: from copies and not, in batches, and with a thousand times the users."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import TypeAlias

import grpc
import psycopg
from kronos.users.v1 import roles_pb2 as pb

from benchmarks.load import Outcome
from benchmarks.stand import (
    IN_FLIGHT,
    Asked,
    Row,
    Stand,
    at_least,
    at_most,
    echo,
    p50s_in_turn,
    run_load,
    settle,
    stand,
)

_PROCESSES = 2
_ROUNDS = 3
_SECONDS = 4.0
# Enough for every process to have answered for every hot user.
_WARM_UP = 10.0
# The users that there are, one after the other; each has so many grants.
_FEW, _MANY, _MOST = 1_000, 100_000, 1_000_000
_GRANTS = 5
# The users that are asked for again and again, and those of a round of which each is asked for once.
_HOT = 8_000
_COLD = 25_000
_ALONE = 800
# Roles: so many lines of inheritance, so deep, each role with permissions of its own.
_LINES, _DEPTH, _OWN = 20, 10, 5
_BATCH = 1_000
_BATCHES_IN_FLIGHT = 8
_DECISIONS = 100_000
_CHECK = "/kronos.users.v1.UsersService/CheckPermission"
_CHECK_MANY = "/kronos.users.v1.UsersService/BatchCheckPermissions"

# As calls would have made them, but for e-mail and phone, which no check reads.
_NEW_USERS = """
INSERT INTO users.users (id, username, username_key, display_name, attributes, state, create_time, update_time)
SELECT uuidv7(), 'user' || number, 'user' || number, '', '{}', 1, now(), now()
FROM generate_series(%s::integer, %s::integer) AS number
"""
# Each in other scopes and of other lines: those from a number that is the user's own on.
_NEW_GRANTS = """
INSERT INTO users.grants (user_id, id, role, scope, create_time, update_time)
SELECT users.id, uuidv7(), leaves.numbers[(own + step * 3) %% cardinality(leaves.numbers) + 1],
    'tenant/t' || own %% 1000 || '/p' || step || '/', now(), now()
FROM users.users, LATERAL (SELECT substr(username, 5)::integer) AS of (own), generate_series(0, %s) AS step,
    (SELECT array_agg(number ORDER BY number) FROM users.roles WHERE name_key LIKE 'leaf%%') AS leaves (numbers)
WHERE own BETWEEN %s AND %s
"""


# A user: its id and its number.
User: TypeAlias = tuple[str, int]


def rows() -> Iterator[Row]:
    """Measure."""
    with _prepared() as (on, admin):
        users = _fill(admin, 1, _MANY)
        with echo(on.settings.worker_threads, _answer_bytes(on, users[-20:]), _PROCESSES) as floor:
            yield from _beside_echo(on, floor, users)
        yield from _batches(on, users[:_HOT])
        most = _fill(admin, _MANY + 1, _MOST)
        with _prepared() as (small, small_admin):
            few = _fill(small_admin, 1, _FEW)
            p50, floor_p50 = p50s_in_turn(_alone(on, most), _alone(small, few))
        name = "users: CheckPermission not in copies, one at a time, p50 with 1,000,000 users beside 1,000"
        yield at_most(name, p50, "ms", floor_p50, 1.2)


@contextmanager
def _prepared() -> Iterator[tuple[Stand, psycopg.Connection]]:
    """Yield a stand with roles, and a connection to its PostgreSQL."""
    with stand(_PROCESSES) as on, psycopg.connect(_dsn(on), autocommit=True) as admin:
        _create_roles(on)
        yield on, admin


def _beside_echo(on: Stand, floor: str, users: Sequence[User]) -> Iterator[Row]:
    """Load the floor, hot and cold users in turn, so that all see the same weather."""
    hot = _requests(users[:_HOT])
    fresh = (users[start : start + _COLD] for start in count(_HOT, _COLD))
    on.load(_CHECK, hot, _WARM_UP)
    outcomes: dict[str, list[Outcome]] = {"echo": [], "hot": [], "cold": []}
    for _ in range(_ROUNDS):
        settle()
        outcomes["echo"].append(run_load(floor, "/bench.Echo/Echo", hot, _SECONDS, IN_FLIGHT, on.metadata))
        settle()
        outcomes["hot"].append(on.load(_CHECK, hot, _SECONDS))
        settle()
        outcomes["cold"].append(on.load(_CHECK, _requests(next(fresh)), _cold_seconds(outcomes["echo"][-1])))
    echoes, hots, colds = (_middle(outcomes[name]) for name in ("echo", "hot", "cold"))
    of = "users: CheckPermission, 2 processes,"
    yield at_least(f"{of} from copies", hots.calls_per_second, "calls/s", echoes.calls_per_second, 0.75)
    yield Row(f"{of} from copies, p50", hots.p50_ms, "ms")
    yield Row(f"{of} from copies, p99", hots.p99_ms, "ms")
    name = f"{of} not in copies, roles 10 deep, 100,000 users with 5 grants"
    yield at_least(name, colds.calls_per_second, "calls/s", echoes.calls_per_second, 0.45)
    yield Row(f"{of} not in copies, p50", colds.p50_ms, "ms")
    yield Row(f"{of} not in copies, p99", colds.p99_ms, "ms")


def _batches(on: Stand, users: Sequence[User]) -> Iterator[Row]:
    requests = [_batch(users[start : start + _BATCH]) for start in range(0, len(users), _BATCH)]
    _load_batches(on, requests)
    decisions = statistics.median(_load_batches(on, requests) for _ in range(_ROUNDS)) * _BATCH
    name = "users: BatchCheckPermissions of 1,000, 2 processes"
    yield Row(name, decisions, "decisions/s", bar=f"≥ {_DECISIONS:,}", met=decisions >= _DECISIONS)


def _load_batches(on: Stand, requests: Sequence[bytes]) -> float:
    """Return the batches a second. They are larger than a frame, so grpcio sends them, encoded beforehand."""
    until = time.monotonic() + _SECONDS

    def call(number: int) -> int:
        # A connection each: the kernel deals them out to the processes.
        with grpc.insecure_channel(on.settings.grpc_listen, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            check = channel.unary_unary(_CHECK_MANY)
            for done in count():
                if time.monotonic() >= until:
                    return done
                check(requests[(number + done) % len(requests)], metadata=on.metadata)
        raise AssertionError("unreachable")

    with ThreadPoolExecutor(_BATCHES_IN_FLIGHT) as threads:
        return sum(threads.map(call, range(_BATCHES_IN_FLIGHT))) / _SECONDS


def _alone(on: Stand, users: Sequence[User]) -> Asked:
    """Return how to ask, and questions about users who were never asked for."""
    return partial(on.users.CheckPermission, metadata=on.metadata), [_question(user) for user in users[:_ALONE]]


def _create_roles(on: Stand) -> None:
    """Create lines of roles, the last of each a leaf; what is asked for is carried by the first ones alone."""
    for line in range(_LINES):
        parents: list[str] = []
        for depth in range(_DEPTH):
            name = f"leaf{line}" if depth == _DEPTH - 1 else f"line{line}.{depth}"
            own = [f"resource{line}-{depth}-{number}:read" for number in range(_OWN)]
            role = pb.Role(name=name, parent_ids=parents, permissions=[*own, "asked:for"] if not depth else own)
            parents = [on.users.CreateRole(pb.CreateRoleRequest(role=role), metadata=on.metadata).role.id]


def _fill(admin: psycopg.Connection, first: int, last: int) -> list[User]:
    """Create the users of these numbers and their grants; return them in random order."""
    print(f"creating users and grants up to {last:,} …", file=sys.stderr)
    admin.execute(_NEW_USERS, [first, last])
    admin.execute(_NEW_GRANTS, [_GRANTS - 1, first, last])
    admin.execute("VACUUM (ANALYZE) users.users, users.grants")
    admin.execute("CHECKPOINT")
    found = admin.execute(
        "SELECT id::text, substr(username, 5)::integer FROM users.users WHERE substr(username, 5)::integer >= %s",
        [first],
    ).fetchall()
    return random.sample(found, len(found))


def _question(user: User) -> pb.CheckPermissionRequest:
    """Ask for what every other user may in a scope of theirs, by the first role of a line, and the rest may not."""
    user_id, number = user
    return pb.CheckPermissionRequest(
        user_id=user_id,
        permission="asked:for" if number % 2 else "asked:in-vain",
        scope=f"tenant/t{number % 1000}/p{number % _GRANTS}/x",
    )


def _requests(users: Sequence[User]) -> list[bytes]:
    return [_question(user).SerializeToString() for user in users]


def _batch(users: Sequence[User]) -> bytes:
    asked = [_question(user) for user in users]
    questions = [pb.PermissionQuestion(user_id=a.user_id, permission=a.permission, scope=a.scope) for a in asked]
    return pb.BatchCheckPermissionsRequest(questions=questions).SerializeToString()


def _answer_bytes(on: Stand, users: Sequence[User]) -> int:
    """Return the size of an answer that allows; fail when the answers are not those that are right."""
    for user in users:
        answer = on.users.CheckPermission(_question(user), metadata=on.metadata)
        if answer.allowed != (user[1] % 2 == 1):
            raise SystemExit("the roles were not granted as a caller would")
    return pb.CheckPermissionResponse(allowed=True).ByteSize()


def _cold_seconds(echoes: Outcome) -> float:
    """Return for how long there are users that were not asked for: less where the machine is fast."""
    return min(_SECONDS, _COLD / echoes.calls_per_second)


def _middle(outcomes: Sequence[Outcome]) -> Outcome:
    return sorted(outcomes, key=lambda outcome: outcome.calls_per_second)[len(outcomes) // 2]


def _dsn(on: Stand) -> str:
    dsn = on.settings.domain_direct_dsn("users")
    assert dsn is not None
    return dsn
