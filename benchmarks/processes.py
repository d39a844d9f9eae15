"""The rows of several serving processes on one port, GetUser over a million users.

Scaling on a machine where the generator and PostgreSQL take their share of the cores says little as it is seen. So it
is also told with their cost taken out: calls per processor second of the serving processes (user and system, from
/proc) times the number of processes. It is what they would do with a core each, and nobody beside them. A process whose
calls grow dearer because there is another one, through locks, caches or connections that both use, shows there.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from kronos.users.v1 import users_pb2 as pb

from benchmarks.fill import fill, keys_of_users
from benchmarks.load import Outcome
from benchmarks.sequelize import NotInstalledError, express, install
from benchmarks.stand import (
    IN_FLIGHT,
    Row,
    Stand,
    all_succeeded,
    at_least,
    beside,
    echo,
    pair,
    run_http_load,
    run_load,
    settle,
    stand,
)

_PROCESSES = 2
_USERS = 1_000_000
# The users that are asked for again and again.
_HOT = 8_000
# As many as a round can ask for at most, so that none is asked for twice.
_COLD = 100_000
_ROUNDS = 5
_SECONDS = 3.0
# Enough for every process to have answered for every hot user.
_WARM_UP = 10.0
_GET = "/kronos.users.v1.UsersService/GetUser"

Loads = Mapping[str, Callable[[], Outcome]]


def rows() -> Iterator[Row]:
    """Measure."""
    with stand(_PROCESSES) as two, two.joined_by(1) as one:
        ids = fill(two.settings, _USERS)
        with echo(two.settings.worker_threads, _answer_bytes(two, ids[0]), _PROCESSES) as floor, _rival(two) as rival:
            if rival:
                _same_answer(two, rival, ids[0])
            yield from _hot(two, one, floor, rival, ids[:_HOT])
            yield from _cold(two, floor, rival, ids[_HOT:])


def _hot(two: Stand, one: Stand, floor: str, rival: str | None, ids: Sequence[str]) -> Iterator[Row]:
    requests = _requests(ids)
    # The same load on each process.
    in_flight_of_one = IN_FLIGHT // _PROCESSES
    two.load(_GET, requests, _WARM_UP)
    one.load(_GET, requests, _WARM_UP, in_flight_of_one)
    outcomes = _in_turn(
        {
            "echo": lambda: _load_echo(floor, requests, two),
            "two": lambda: two.load(_GET, requests, _SECONDS),
            "one": lambda: one.load(_GET, requests, _SECONDS, in_flight_of_one),
            **({"rival": lambda: _load_rival(rival, ids)} if rival else {}),
        }
    )
    of_two, of_echo = pair(outcomes["two"], outcomes["echo"])
    name = "processes: GetUser of hot users, 2 processes"
    yield at_least(name, of_two.calls_per_second, "calls/s", of_echo.calls_per_second, 0.75)
    yield Row(f"{name}, p50", of_two.p50_ms, "ms")
    yield Row(f"{name}, p99", of_two.p99_ms, "ms")
    of_two, of_one = pair(outcomes["two"], outcomes["one"])
    yield beside(f"{name} beside 1, as seen", of_two.calls_per_second, "calls/s", of_one.calls_per_second)
    yield at_least(f"{name} beside 1, a core each", _capacity(of_two, _PROCESSES), "calls/s", _capacity(of_one, 1), 1.8)
    yield Row("processes: what 2 serving processes had meanwhile", of_two.server_cpu, "cores")
    yield Row("processes: what the generator had meanwhile", of_two.generator_cpu, "cores")
    yield _beside_rival(name, outcomes)


def _cold(two: Stand, floor: str, rival: str | None, ids: Sequence[str]) -> Iterator[Row]:
    fresh = (ids[start : start + _COLD] for start in range(0, len(ids), _COLD))
    any_requests = _requests(ids[:_COLD])
    outcomes = _in_turn(
        {
            "echo": lambda: _load_echo(floor, any_requests, two),
            "two": lambda: two.load(_GET, _requests(next(fresh)), _SECONDS),
            **({"rival": lambda: _load_rival(rival, next(fresh))} if rival else {}),
        }
    )
    of_two, of_echo = pair(outcomes["two"], outcomes["echo"])
    name = "processes: GetUser of cold users, 2 processes"
    yield at_least(name, of_two.calls_per_second, "calls/s", of_echo.calls_per_second, 0.5)
    yield Row(f"{name}, p50", of_two.p50_ms, "ms")
    yield Row(f"{name}, p99", of_two.p99_ms, "ms")
    yield _beside_rival(name, outcomes)


def _in_turn(loads: Loads) -> dict[str, list[Outcome]]:
    """Run the loads in turn, so that all see the same weather; return of each its rounds."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in loads}
    for _ in range(_ROUNDS):
        for name, load in loads.items():
            settle()
            outcomes[name].append(all_succeeded(load(), name))
    return outcomes


def _load_echo(target: str, requests: Sequence[bytes], like: Stand) -> Outcome:
    return run_load(target, "/bench.Echo/Echo", requests, _SECONDS, IN_FLIGHT, like.metadata)


def _load_rival(rival: str, ids: Sequence[str]) -> Outcome:
    return run_http_load(rival, "/users/", ids, _SECONDS, IN_FLIGHT)


def _beside_rival(name: str, outcomes: Mapping[str, Sequence[Outcome]]) -> Row:
    name = f"{name} beside Express + Sequelize"
    if "rival" not in outcomes:
        return Row(name, None, "not measured: node, npm or the packages are missing", bar="≥ 2 × floor")
    of_two, of_rival = pair(outcomes["two"], outcomes["rival"])
    return at_least(name, of_two.calls_per_second, "calls/s", of_rival.calls_per_second, 2)


def _capacity(outcome: Outcome, processes: int) -> float:
    """Return the calls a second of so many processes that have a core each."""
    return outcome.calls_per_second / outcome.server_cpu * processes


@contextmanager
def _rival(on: Stand) -> Iterator[str | None]:
    """Start Express on the stand's database, with as many processes and connections; yield None when it cannot be."""
    try:
        install()
    except NotInstalledError as reason:
        print(f"Express + Sequelize are not measured: {reason}", file=sys.stderr)
        yield None
        return
    dsn = on.settings.domain_direct_dsn("users")
    assert dsn is not None
    key = keys_of_users(on.settings).seal_key()
    with express(dsn, key, _PROCESSES, on.settings.pool_max_size) as running:
        yield running


def _same_answer(on: Stand, rival: str, user_id: str) -> None:
    """Fail when Express answers with another user, or one whose e-mail or phone is still sealed."""
    user = on.users.GetUser(pb.GetUserRequest(id=user_id), metadata=on.metadata).user
    with urllib.request.urlopen(f"http://{rival}/users/{user_id}", timeout=10) as answer:
        found = json.load(answer)
    if any(found[name] != getattr(user, name) for name in ("id", "username", "email", "phone")):
        raise SystemExit("Express does not serve the same read")


def _requests(ids: Sequence[str]) -> list[bytes]:
    return [pb.GetUserRequest(id=user_id).SerializeToString() for user_id in ids]


def _answer_bytes(on: Stand, user_id: str) -> int:
    """Return the size of an answer; fail when it is not that of a user as a caller would have created it."""
    answer = on.users.GetUser(pb.GetUserRequest(id=user_id), metadata=on.metadata)
    if answer.user.email != f"{answer.user.username}@example.org" or not answer.user.phone:
        raise SystemExit("the users were not created as a caller would")
    return answer.ByteSize()
