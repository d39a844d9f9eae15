"""Routes by real calls: their life, the whole table at once, resolving, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from kronos.routes.v1 import routes_pb2 as pb
from kronos.routes.v1.routes_pb2_grpc import RoutesServiceStub

from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.routes.population import create, create_quota, new_route, stub, unique


def get(routes: RoutesServiceStub, route_id: str) -> pb.Route:
    return routes.GetRoute(pb.GetRouteRequest(id=route_id)).route


def resolve(routes: RoutesServiceStub, path: str, method: str = "GET", **kw: Any) -> pb.ResolveRouteResponse:
    return routes.ResolveRoute(pb.ResolveRouteRequest(method=method, path=path, **kw))


def update(routes: RoutesServiceStub, route: pb.Route, *paths: str, **kw: Any) -> pb.Route:
    mask = FieldMask(paths=paths) if paths else None
    return routes.UpdateRoute(pb.UpdateRouteRequest(route=route, update_mask=mask, **kw)).route


class TestLife:
    """CreateRoute, GetRoute, ListRoutes, UpdateRoute, DeleteRoute."""

    def test_the_answer_is_the_whole_route(self, routes: RoutesServiceStub) -> None:
        quota = create_quota(routes)
        wanted = new_route(
            methods=["POST", "GET"],
            host="API.example.org",
            headers=[pb.HeaderMatch(name="X-Version", value="2"), pb.HeaderMatch(name="accept")],
            caller=pb.CALLER_REQUIREMENT_KNOWN,
            permissions=[pb.RoutePermission(permission="orders:read")],
            scopes=["orders"],
            quotas=[quota.name],
            priority=-3,
            metadata={"team": "a"},
        )

        route = routes.CreateRoute(pb.CreateRouteRequest(route=wanted)).route

        assert UUID(route.id).version == 7
        assert route.methods == ["GET", "POST"]
        assert route.host == "api.example.org"
        assert [(header.name, header.value) for header in route.headers] == [("accept", ""), ("x-version", "2")]
        for name in ("name", "path", "upstream", "caller", "permissions", "scopes", "quotas", "priority", "metadata"):
            assert getattr(route, name) == getattr(wanted, name)
        assert route.etag
        assert route.create_time == route.update_time
        assert get(routes, route.id) == route
        assert routes.GetRoute(pb.GetRouteRequest(name=route.name)).route == route

    def test_pages_by_name_and_filters(self, routes: RoutesServiceStub) -> None:
        prefix, quota = unique("list"), create_quota(routes)
        made = [
            create(routes, name=f"{prefix}-{n}", host="list.example" if n % 2 else "", quotas=[quota.name] * (n < 2))
            for n in (3, 1, 0, 2)
        ]
        token, found = "", []
        while True:
            request = pb.ListRoutesRequest(page_size=3, page_token=token, name_prefix=prefix)
            page = routes.ListRoutes(request)
            found += page.routes
            token = page.next_page_token
            if not token:
                break
        assert found == sorted(made, key=lambda route: route.name)

        def names(**filters: str) -> list[str]:
            listed = routes.ListRoutes(pb.ListRoutesRequest(name_prefix=prefix, **filters)).routes
            return [route.name[-1] for route in listed]

        assert names(host="LIST.example") == ["1", "3"]
        assert names(quota=quota.name) == ["0", "1"]

    def test_update_by_mask_and_etag(self, routes: RoutesServiceStub) -> None:
        route = create(routes, methods=["GET"], priority=3, metadata={"a": "b"})

        changed = update(routes, pb.Route(id=route.id.upper(), etag=route.etag, priority=4, upstream="x"), "priority")
        assert (changed.priority, changed.upstream, changed.methods) == (4, route.upstream, ["GET"])
        assert changed.etag != route.etag
        assert changed.create_time == route.create_time
        assert update(routes, pb.Route(id=route.id, upstream="y")).upstream == "y"
        assert update(routes, pb.Route(id=route.id), "priority", "metadata").priority == 0
        stale = refused(lambda: update(routes, pb.Route(id=route.id, etag=route.etag, priority=1)))
        assert (stale.code, stale.reason) == ("ABORTED", "ROUTES_ETAG_MISMATCH")
        assert list(stale.fields) == ["route.etag"]

    def test_delete(self, routes: RoutesServiceStub) -> None:
        route = create(routes)
        assert resolve(routes, route.path).route == route
        assert refused(lambda: routes.DeleteRoute(pb.DeleteRouteRequest(id=route.id, etag="9"))).code == "ABORTED"

        routes.DeleteRoute(pb.DeleteRouteRequest(id=route.id, etag=route.etag))

        for call in (
            lambda: get(routes, route.id),
            lambda: routes.DeleteRoute(pb.DeleteRouteRequest(id=route.id)),
            lambda: update(routes, pb.Route(id=route.id, priority=1)),
        ):
            refusal = refused(call)
            assert (refusal.code, refusal.reason) == ("NOT_FOUND", "ROUTE_NOT_FOUND")
        assert refused(lambda: resolve(routes, route.path)).reason == "NO_ROUTE_MATCHES"

    def test_every_change_is_seen_by_the_next_call(self, routes: RoutesServiceStub) -> None:
        for _ in range(10):
            route = create(routes)
            assert resolve(routes, route.path).route == route
            changed = update(routes, pb.Route(id=route.id, path=f"{route.path}/moved"))
            assert refused(lambda: resolve(routes, route.path)).code == "NOT_FOUND"  # noqa: B023
            assert resolve(routes, changed.path).route == changed

    def test_validate_only_writes_nothing(self, routes: RoutesServiceStub) -> None:
        wanted = new_route()
        answer = routes.CreateRoute(pb.CreateRouteRequest(route=wanted, validate_only=True))

        assert answer.route.name == wanted.name
        assert refused(lambda: resolve(routes, wanted.path)).code == "NOT_FOUND"
        assert refused(lambda: get(routes, answer.route.id)).code == "NOT_FOUND"


class TestBadRoutes:
    """What cannot be a route: status, reason, path, and nothing written."""

    @pytest.mark.parametrize(
        ("changes", "reason", "field"),
        [
            ({"name": ""}, "BAD_REQUEST", "route.name"),
            ({"name": "Upper"}, "BAD_REQUEST", "route.name"),
            ({"name": "-a"}, "BAD_REQUEST", "route.name"),
            ({"name": "a" * 129}, "BAD_REQUEST", "route.name"),
            ({"id": "x"}, "BAD_REQUEST", "route.id"),
            ({"path": ""}, "BAD_REQUEST", "route.path"),
            ({"path": "/{a}/{a}"}, "TEMPLATE_INVALID", "route.path"),
            ({"path": "/{a:float}"}, "TEMPLATE_INVALID", "route.path"),
            ({"path": "/**/x"}, "TEMPLATE_INVALID", "route.path"),
            ({"path": "/a/../.."}, "TEMPLATE_INVALID", "route.path"),
            ({"path": "/" + "a" * 2048}, "BAD_REQUEST", "route.path"),
            ({"upstream": ""}, "BAD_REQUEST", "route.upstream"),
            ({"methods": ["get"]}, "BAD_REQUEST", "route.methods[0]"),
            ({"methods": ["GET", "GET"]}, "BAD_REQUEST", "route.methods"),
            ({"host": "a b"}, "BAD_REQUEST", "route.host"),
            ({"host": "*"}, "BAD_REQUEST", "route.host"),
            ({"host": "a.*.b"}, "BAD_REQUEST", "route.host"),
            ({"host": "h:80"}, "BAD_REQUEST", "route.host"),
            ({"headers": [pb.HeaderMatch(name="a b")]}, "BAD_REQUEST", "route.headers[0].name"),
            ({"headers": [pb.HeaderMatch(name=n) for n in ("X", "x")]}, "BAD_REQUEST", "route.headers"),
            ({"permissions": [pb.RoutePermission(permission="x")]}, "BAD_REQUEST", "route.permissions[0].permission"),
            ({"permissions": [pb.RoutePermission(permission="a:b")]}, "BAD_REQUEST", "route.permissions"),
            ({"scopes": ["s"]}, "BAD_REQUEST", "route.scopes"),
            (
                {"caller": 1, "permissions": [pb.RoutePermission(permission="a:b", scope="t/{no}")]},
                "BAD_REQUEST",
                "route.permissions[0].scope",
            ),
            ({"quotas": ["there-is-none"]}, "QUOTA_NOT_FOUND", "route.quotas[0]"),
            ({"quotas": ["a", "a"]}, "BAD_REQUEST", "route.quotas"),
            ({"priority": 1_000_001}, "BAD_REQUEST", "route.priority"),
            ({"metadata": {"": "x"}}, "BAD_REQUEST", 'route.metadata[""]'),
            ({"upstream": "a\0b"}, "BAD_REQUEST", "route.upstream"),
        ],
        ids=lambda value: str(value)[:40].replace("\0", "0"),
    )
    def test_a_field_at_fault_is_named(
        self, routes: RoutesServiceStub, changes: dict[str, Any], reason: str, field: str
    ) -> None:
        wanted = new_route(**changes)
        before = routes.GetRouteTable(pb.GetRouteTableRequest(page_size=1)).table_version

        refusal = refused(lambda: routes.CreateRoute(pb.CreateRouteRequest(route=wanted)))

        assert refusal.code == ("NOT_FOUND" if reason == "QUOTA_NOT_FOUND" else "INVALID_ARGUMENT")
        assert refusal.reason == reason
        assert list(refusal.fields) == [field]
        assert routes.GetRouteTable(pb.GetRouteTableRequest(page_size=1)).table_version == before

    def test_names_and_matches_that_are_taken(self, routes: RoutesServiceStub) -> None:
        route = create(routes, path=f"/{unique()}/{{a}}", methods=["GET", "PUT"])
        parts = {"path": route.path.replace("{a}", "{b}")}

        taken = refused(lambda: create(routes, name=route.name))
        assert (taken.code, taken.reason) == ("ALREADY_EXISTS", "ROUTE_EXISTS")
        rival = refused(lambda: create(routes, methods=["PUT"], **parts))
        assert (rival.code, rival.reason) == ("ALREADY_EXISTS", "ROUTE_CONFLICT")
        assert rival.metadata["route"] == route.name
        assert list(rival.fields) == ["route.path"]
        other = create(routes, methods=["DELETE"], **parts)
        assert refused(lambda: update(routes, pb.Route(id=other.id, methods=["GET"]))).reason == "ROUTE_CONFLICT"
        assert create(routes, methods=["PUT"], priority=1, **parts).priority == 1
        assert create(routes, **parts).methods == [], "for all methods: the named ones go first"

    @pytest.mark.parametrize("paths", [["name"], ["id"], ["nope"], ["priority", "*"]])
    def test_masks(self, routes: RoutesServiceStub, paths: list[str]) -> None:
        route = create(routes)
        refusal = refused(lambda: update(routes, pb.Route(id=route.id, priority=2), *paths))
        assert refusal.code == "INVALID_ARGUMENT"
        assert refused(lambda: update(routes, pb.Route(id=route.id))).fields == {
            "update_mask": "names nothing to change, and route has no value to change"
        }
        assert get(routes, route.id) == route

    def test_an_update_is_checked_as_a_whole(self, routes: RoutesServiceStub) -> None:
        permission = pb.RoutePermission(permission="a:b", scope="t/{t}")
        route = create(routes, path=f"/{unique()}/{{t}}", caller=1, permissions=[permission])

        assert list(refused(lambda: update(routes, pb.Route(id=route.id, path="/x"))).fields) == [
            "route.permissions[0].scope"
        ]
        assert list(refused(lambda: update(routes, pb.Route(id=route.id, caller=2))).fields) == ["route.permissions"]


class TestResolve:
    """ResolveRoute."""

    def test_parameters_and_the_normal_path(self, routes: RoutesServiceStub) -> None:
        base = unique("p")
        route = create(routes, path=f"/{base}/{{id:int}}/{{rest:**}}")

        answer = resolve(routes, f"//{base}/./7/caf%c3%a9/x/")

        assert answer.route == route
        assert dict(answer.parameters) == {"id": "7", "rest": "café/x"}
        assert answer.normalized_path == f"/{base}/7/caf%C3%A9/x"
        assert answer == resolve(routes, f"//{base}/./7/caf%c3%a9/x/"), "the kept answer is the same"

    def test_headers_and_hosts(self, routes: RoutesServiceStub) -> None:
        path = f"/{unique('h')}"
        plain = create(routes, path=path)
        with_header = create(routes, path=path, headers=[pb.HeaderMatch(name="X-Version", value="2")])
        of_host = create(routes, path=path, host="*.shop.example")

        assert resolve(routes, path).route == plain
        assert resolve(routes, path, headers={"x-VERSION": "2"}).route == with_header
        assert resolve(routes, path, headers={"x-version": "3"}).route == plain
        assert resolve(routes, path, headers={"x-version": "2"}, host="A.B.shop.example.:8080").route == of_host

    @pytest.mark.parametrize("path", ["/a%2Fb", "/..", "/a%00", "a", "/a?b=c", "/a%", "/%ff", "/é", "/a\\b"])
    def test_hostile_paths(self, routes: RoutesServiceStub, path: str) -> None:
        for call in (
            lambda: resolve(routes, path),
            lambda: routes.AuthorizeRequest(pb.AuthorizeRequestRequest(method="GET", path=path)),
        ):
            refusal = refused(call)
            assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "PATH_INVALID")
            assert list(refusal.fields) == ["path"]

    @pytest.mark.parametrize("path", ["", "/" + "a" * 65_536])
    def test_paths_beyond_the_rules(self, routes: RoutesServiceStub, path: str) -> None:
        refusal = refused(lambda: resolve(routes, path))
        assert (refusal.code, refusal.reason, list(refusal.fields)) == ("INVALID_ARGUMENT", "BAD_REQUEST", ["path"])

    def test_a_flood_of_paths_keeps_no_more_answers_than_there_may_be(
        self, routes: RoutesServiceStub, platform: Serving
    ) -> None:
        base = unique("flood")
        create(routes, path=f"/{base}/{{id}}")
        snapshot = platform.server._domains._routes._table.current()  # type: ignore[union-attr]
        snapshot.answers.update({("GET", "", f"/{number}"): None for number in range(4096)})

        for number in range(3):
            assert resolve(routes, f"/{base}/{number}").parameters["id"] == str(number)
        assert len(snapshot.answers) < 4096


def test_a_repeat_gets_the_first_answer(routes: RoutesServiceStub) -> None:
    request = pb.CreateRouteRequest(route=new_route(), request_id=str(uuid4()))
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: routes.CreateRoute(request), range(8)))
    assert all(answer == answers[0] for answer in answers)
    update(routes, pb.Route(id=answers[0].route.id, priority=5))
    assert routes.CreateRoute(request) == answers[0]
    other = pb.CreateRouteRequest(route=new_route(), request_id=request.request_id)
    assert refused(lambda: routes.CreateRoute(other)).reason == "REQUEST_ID_REUSED"
    delete = pb.DeleteRouteRequest(id=answers[0].route.id, request_id=str(uuid4()))
    assert routes.DeleteRoute(delete) == routes.DeleteRoute(delete)


class TestApply:
    """ApplyRoutes and GetRouteTable, each on a server of its own: they are about the whole table."""

    @pytest.fixture
    def table(self, fresh_serving: Serving) -> Callable[[], dict[str, pb.Route]]:
        routes = stub(fresh_serving)

        def read() -> dict[str, pb.Route]:
            found, token = {}, ""
            while True:
                page = routes.GetRouteTable(pb.GetRouteTableRequest(page_size=2, page_token=token))
                assert page.total_count >= len(page.routes)
                found |= {route.name: route for route in page.routes}
                token = page.next_page_token
                if not token:
                    assert list(found) == sorted(found)
                    return found

        return read

    def test_the_table_becomes_what_was_said(
        self, fresh_serving: Serving, table: Callable[[], dict[str, pb.Route]]
    ) -> None:
        routes = stub(fresh_serving)
        first = [new_route(name=f"r{number}", path=f"/p{number}") for number in range(5)]
        answer = routes.ApplyRoutes(pb.ApplyRoutesRequest(routes=first))
        assert (answer.created, answer.updated, answer.deleted) == ([f"r{n}" for n in range(5)], [], [])
        before = table()
        assert list(before) == answer.created

        second = [first[0], new_route(name="r1", path="/p1", priority=1), new_route(name="new", path="/new")]
        request = pb.ApplyRoutesRequest(routes=second, table_version=answer.table_version, request_id=str(uuid4()))
        dry = routes.ApplyRoutes(pb.ApplyRoutesRequest(routes=second, validate_only=True))
        assert table() == before
        answer = routes.ApplyRoutes(request)

        assert (answer.created, answer.updated, sorted(answer.deleted)) == (["new"], ["r1"], ["r2", "r3", "r4"])
        assert answer.unchanged_count == 1
        assert (dry.created, dry.updated, dry.unchanged_count) == (answer.created, answer.updated, 1)
        after = table()
        assert list(after) == ["new", "r0", "r1"]
        assert after["r0"] == before["r0"]
        assert (after["r1"].id, after["r1"].priority) == (before["r1"].id, 1)
        assert routes.ApplyRoutes(request) == answer, "a repeat"
        assert resolve(routes, "/new").table_version == answer.table_version
        assert refused(lambda: resolve(routes, "/p2")).code == "NOT_FOUND"
        stale = refused(lambda: routes.ApplyRoutes(pb.ApplyRoutesRequest(table_version="1")))
        assert (stale.reason, list(stale.fields)) == ("ROUTES_ETAG_MISMATCH", ["table_version"])
        routes.ApplyRoutes(pb.ApplyRoutesRequest())
        assert table() == {}

    def test_conflicts_are_reported_and_ambiguous_ones_refused(
        self, fresh_serving: Serving, table: Callable[[], dict[str, pb.Route]]
    ) -> None:
        routes = stub(fresh_serving)
        declared = [
            new_route(name="a", path="/x/{i}"),
            new_route(name="b", path="/x/{j}"),
            new_route(name="high", path="/y", priority=1),
            new_route(name="low", path="/y"),
        ]
        report = routes.ApplyRoutes(pb.ApplyRoutesRequest(routes=declared, validate_only=True))
        assert [(each.kind, each.route, list(each.others)) for each in report.conflicts] == [
            (pb.ROUTE_CONFLICT_KIND_AMBIGUOUS, "b", ["a"]),
            (pb.ROUTE_CONFLICT_KIND_SHADOWED, "low", ["high"]),
        ]
        assert report.conflict_count == 2
        refusal = refused(lambda: routes.ApplyRoutes(pb.ApplyRoutesRequest(routes=declared)))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "ROUTES_AMBIGUOUS")
        assert table() == {}
        assert routes.ApplyRoutes(pb.ApplyRoutesRequest(routes=declared[1:])).conflict_count == 1

    def test_it_is_all_or_nothing(self, fresh_serving: Serving, table: Callable[[], dict[str, pb.Route]]) -> None:
        routes = stub(fresh_serving)
        good = new_route(name="good")
        for bad, reason, field in (
            (new_route(quotas=["none"]), "QUOTA_NOT_FOUND", "routes[1].quotas[0]"),
            (new_route(path="/{"), "TEMPLATE_INVALID", "routes[1].path"),
            (new_route(name="good"), "BAD_REQUEST", "routes[1].name"),
            (new_route(methods=["x"]), "BAD_REQUEST", "routes[1].methods[0]"),
        ):
            refusal = refused(lambda: routes.ApplyRoutes(pb.ApplyRoutesRequest(routes=[good, bad])))  # noqa: B023
            assert (refusal.reason, list(refusal.fields)) == (reason, [field])
        assert table() == {}

    def test_a_table_that_changes_between_two_pages(self, fresh_serving: Serving) -> None:
        routes = stub(fresh_serving)
        for _ in range(3):
            create(routes)
        page = routes.GetRouteTable(pb.GetRouteTableRequest(page_size=2))
        create(routes)
        request = pb.GetRouteTableRequest(page_size=2, page_token=page.next_page_token)
        refusal = refused(lambda: routes.GetRouteTable(request))
        assert (refusal.code, refusal.reason) == ("ABORTED", "TABLE_CHANGED")
        forged = pb.GetRouteTableRequest(page_token="AAAA" + page.next_page_token)
        assert refused(lambda: routes.GetRouteTable(forged)).reason == "PAGE_TOKEN_INVALID"
