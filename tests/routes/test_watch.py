"""WatchRoutes through real gRPC: the table, then every change once, whatever is changed while the table is told."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kronos.routes.v1 import routes_pb2 as pb

from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.routes.population import create, new_route, stub

LIMIT = 60.0


@pytest.fixture
def watch(fresh_serving: Serving) -> Iterator[Callable[..., Any]]:
    """Begin a stream; it is cancelled after the test."""
    streams: list[Any] = []

    def begin(token: str = "") -> Any:
        streams.append(stub(fresh_serving).WatchRoutes(pb.WatchRoutesRequest(resume_token=token), timeout=LIMIT))
        return streams[-1]

    yield begin
    for stream in streams:
        stream.cancel()


class Mirror:
    """Follows a stream as a router would, and notes what should not be."""

    def __init__(self) -> None:
        self.routes: dict[str, pb.Route] = {}
        self.version = 0
        self.token = ""
        self.complete = False
        self.faults: list[str] = []

    def take(self, message: pb.WatchRoutesResponse) -> None:
        self.token = message.resume_token or self.token
        if message.table_version:
            self.version = int(message.table_version)
            self.routes |= {route.id: route for route in message.routes}
            self.complete = self.complete or message.snapshot_complete
        if not message.HasField("change"):
            return
        change, version = message.change, int(message.change.table_version)
        if not self.complete or version <= self.version - 1:
            self.faults.append(f"a change of {version} at {self.version}")
        self.version = version
        held = self.routes.pop(change.route_id, None)
        if change.event == pb.ROUTE_EVENT_CREATED and held is not None:
            self.faults.append("created twice")
        if change.event != pb.ROUTE_EVENT_CREATED and held is None:
            self.faults.append("changed or deleted before it was there")
        if change.event != pb.ROUTE_EVENT_DELETED:
            self.routes[change.route_id] = change.route


def table(serving: Serving) -> dict[str, pb.Route]:
    page = stub(serving).GetRouteTable(pb.GetRouteTableRequest(page_size=1000))
    return {route.id: route for route in page.routes}


def test_the_table_and_then_its_changes(fresh_serving: Serving, watch: Callable[..., Any]) -> None:
    routes = stub(fresh_serving)
    many = [new_route(name=f"r{number:03}", path=f"/p{number}") for number in range(450)]
    routes.ApplyRoutes(pb.ApplyRoutesRequest(routes=many))
    stream, mirror = watch(), Mirror()

    pages = [next(stream) for _ in range(3)]
    for page in pages:
        mirror.take(page)
    assert [len(page.routes) for page in pages] == [200, 200, 50]
    assert [page.snapshot_complete for page in pages] == [False, False, True]
    assert not any(page.resume_token for page in pages)
    assert mirror.routes == table(fresh_serving)

    position = next(stream)
    assert position.resume_token
    assert not position.HasField("change")
    route = create(routes)
    routes.UpdateRoute(pb.UpdateRouteRequest(route=pb.Route(id=route.id, priority=4)))
    routes.DeleteRoute(pb.DeleteRouteRequest(id=route.id))
    told = [next(stream) for _ in range(3)]
    assert [pb.RouteEvent.Name(each.change.event) for each in told] == [
        "ROUTE_EVENT_CREATED",
        "ROUTE_EVENT_UPDATED",
        "ROUTE_EVENT_DELETED",
    ]
    assert told[0].change.route == route
    assert told[1].change.route.priority == 4
    assert not told[2].change.HasField("route")

    again = watch(told[0].resume_token)
    assert not next(again).HasField("change")
    assert [next(again).change for _ in range(2)] == [each.change for each in told[1:]]


def test_an_empty_table(watch: Callable[..., Any]) -> None:
    first = next(watch())
    assert (len(first.routes), first.snapshot_complete, first.table_version) == (0, True, "1")


def test_a_token_that_is_none(watch: Callable[..., Any]) -> None:
    refusal = refused(lambda: next(watch("nonsense")))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "RESUME_TOKEN_INVALID")


def test_nothing_is_lost_and_nothing_told_twice_while_the_table_changes(
    fresh_serving: Serving, watch: Callable[..., Any]
) -> None:
    """Watchers come and go while routes are written; in the end each has the table, and saw it grow step by step."""
    routes = stub(fresh_serving)
    # Followers end before the writers do: without changes they would wait for the next one.
    enough, stopped = threading.Event(), threading.Event()

    def write(seed: int) -> None:
        chance, mine = random.Random(seed), []
        while not stopped.is_set():
            if len(mine) < 20:
                mine.append(create(routes))
            elif chance.random() < 0.5:
                routes.DeleteRoute(pb.DeleteRouteRequest(id=mine.pop(chance.randrange(len(mine))).id))
            else:
                changed = pb.Route(id=chance.choice(mine).id, priority=chance.randrange(1, 1000))
                routes.UpdateRoute(pb.UpdateRouteRequest(route=changed))

    mirrors: list[Mirror] = []

    def follow(mirror: Mirror) -> None:
        while not enough.is_set():
            stream = watch(mirror.token)
            for count, message in enumerate(stream):
                mirror.take(message)
                if enough.is_set() or (mirror.token and count > 30):
                    break
            stream.cancel()

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for writer in writers:
        writer.start()
    followers = []
    for _ in range(8):
        mirrors.append(Mirror())
        followers.append(threading.Thread(target=follow, args=(mirrors[-1],)))
        followers[-1].start()
        eventually(lambda: mirrors[-1].complete, LIMIT)
    enough.set()
    for follower in followers:
        follower.join(LIMIT)
        assert not follower.is_alive()
    stopped.set()
    for writer in writers:
        writer.join(LIMIT)
    assert all(mirror.faults == [] for mirror in mirrors)
    # Who got no token yet begins anew.
    mirrors = [mirror if mirror.token else Mirror() for mirror in mirrors]
    for mirror in mirrors:
        stream = watch(mirror.token)
        while mirror.routes != table(fresh_serving):
            mirror.take(next(stream))
        stream.cancel()
    assert all(mirror.faults == [] for mirror in mirrors)
