"""RoutesService: checks what the contract cannot say, calls table, limiter and store, converts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grpc
from kronos.routes.v1 import routes_pb2 as pb
from kronos.routes.v1.routes_pb2_grpc import RoutesServiceServicer

from kronos_db.routes import messages, model
from kronos_db.routes.authorization import Authorization, Request, Verdict
from kronos_db.routes.conflicts import conflicts
from kronos_db.routes.limiter import Limiter
from kronos_db.routes.matcher import Entry, Found
from kronos_db.routes.model import RoutesAmbiguousError
from kronos_db.routes.quota_methods import QuotaMethods
from kronos_db.routes.store import RoutesStore
from kronos_db.routes.table import Snapshot, Table
from kronos_db.routes.template import normalized
from kronos_db.runtime.database.changes import Noted
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.etags import version_of
from kronos_db.runtime.feed.feed import Feed
from kronos_db.runtime.feed.subscription import Wanted
from kronos_db.runtime.identifiers import uuid7_text
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.outlet import CallOutlet, pushes
from kronos_db.runtime.paging import PageTokens, page_size
from kronos_db.runtime.update_masks import masked_fields

# Answers of one version of the table that are kept; then one begins anew.
_MOST_ANSWERS = 4096
# Routes in one message of a snapshot.
_SNAPSHOT_PAGE = 200
_MOST_CONFLICTS = 1000


class Parts(NamedTuple):
    """What the service is built on."""

    store: RoutesStore
    table: Table
    limiter: Limiter
    page_tokens: PageTokens
    feed: Feed
    access: model.Access
    identities: model.Identities
    # Keys the hash that counters are named by.
    secret: bytes


class RoutesService(QuotaMethods, RoutesServiceServicer):
    """The handlers of the contract `kronos.routes.v1`; those of quotas stand in `quota_methods.py`."""

    def __init__(self, parts: Parts) -> None:
        QuotaMethods.__init__(self, parts.store, parts.table, parts.limiter, parts.page_tokens, parts.secret)
        self._feed = parts.feed
        self._authorization = Authorization(parts.access, parts.identities, parts.limiter, parts.secret)

    def CreateRoute(self, request: pb.CreateRouteRequest, context: grpc.ServicerContext) -> pb.CreateRouteResponse:
        """Create one route."""
        route = request.route
        new = messages.new_route("route", route.id.lower(), route.name, messages.spec_of(route))
        mutation: Mutation[model.Route, pb.CreateRouteResponse] = Call.of(context).mutation(
            pb.CreateRouteResponse, lambda created: pb.CreateRouteResponse(route=messages.route_message(created))
        )
        return self._store.create_route(new, mutation)

    def GetRoute(self, request: pb.GetRouteRequest, context: grpc.ServicerContext) -> pb.GetRouteResponse:
        """Return one route."""
        by_id = request.HasField("id")
        route = self._store.get_route("id" if by_id else "name", request.id.lower() if by_id else request.name)
        if route is None:
            raise model.RouteNotFoundError
        return pb.GetRouteResponse(route=messages.route_message(route))

    def ListRoutes(self, request: pb.ListRoutesRequest, context: grpc.ServicerContext) -> pb.ListRoutesResponse:
        """Return one page."""
        size = page_size(request.page_size)
        after = self._page_tokens.read(request)
        # One more than the page tells whether another page follows.
        listing = model.Listing(
            size + 1, request.name_prefix, after[0] if after else "", request.host.lower(), request.quota
        )
        routes = self._store.list_routes(listing)
        more = len(routes) > size
        response = pb.ListRoutesResponse(
            next_page_token=self._page_tokens.make(request, [routes[size - 1].name]) if more else ""
        )
        for route in routes[:size]:
            messages.fill_route(response.routes.add(), route)
        return response

    def UpdateRoute(self, request: pb.UpdateRouteRequest, context: grpc.ServicerContext) -> pb.UpdateRouteResponse:
        """Change the fields that the mask names."""
        route = request.route
        fields = masked_fields(request.update_mask, route, "route", tuple(messages.ROUTE_FIELDS))
        values = messages.spec_of(route)

        def change(current: model.Route) -> model.NewRoute:
            kept = {name: value for name, value in current.spec.items() if name not in fields}
            changed = {name: value for name, value in values.items() if name in fields}
            return messages.new_route("route", current.id, current.name, kept | changed)

        mutation: Mutation[model.Route, pb.UpdateRouteResponse] = Call.of(context).mutation(
            pb.UpdateRouteResponse, lambda updated: pb.UpdateRouteResponse(route=messages.route_message(updated))
        )
        etag = version_of(route.etag, "route.etag")
        return self._store.update_route(route.id.lower(), etag, change, mutation)

    def DeleteRoute(self, request: pb.DeleteRouteRequest, context: grpc.ServicerContext) -> pb.DeleteRouteResponse:
        """Remove a route."""
        mutation: Mutation[model.Route, pb.DeleteRouteResponse] = Call.of(context).mutation(
            pb.DeleteRouteResponse, lambda _deleted: pb.DeleteRouteResponse()
        )
        return self._store.delete_route(request.id.lower(), version_of(request.etag, "etag"), mutation)

    def ApplyRoutes(self, request: pb.ApplyRoutesRequest, context: grpc.ServicerContext) -> pb.ApplyRoutesResponse:
        """Make the table what the request says."""
        routes = _declared(request.routes)
        found = conflicts(routes)
        ambiguous = [conflict for conflict in found if conflict.ambiguous]
        call = Call.of(context)
        if ambiguous and not call.validate_only:
            raise RoutesAmbiguousError(metadata={"count": str(len(ambiguous)), "route": ambiguous[0].route})

        def reply(applied: model.Applied) -> pb.ApplyRoutesResponse:
            response = pb.ApplyRoutesResponse(
                created=applied.created,
                updated=applied.updated,
                deleted=applied.deleted,
                unchanged_count=applied.unchanged,
                conflict_count=len(found),
                table_version=str(applied.version),
            )
            for conflict in found[:_MOST_CONFLICTS]:
                kind = pb.ROUTE_CONFLICT_KIND_AMBIGUOUS if conflict.ambiguous else pb.ROUTE_CONFLICT_KIND_SHADOWED
                response.conflicts.add(kind=kind, route=conflict.route, others=conflict.others)
            return response

        at = version_of(request.table_version, "table_version")
        mutation: Mutation[model.Applied, pb.ApplyRoutesResponse] = call.mutation(pb.ApplyRoutesResponse, reply)
        return self._store.apply(routes, at, mutation)

    def ResolveRoute(self, request: pb.ResolveRouteRequest, context: grpc.ServicerContext) -> pb.ResolveRouteResponse:
        """Find the route of a request."""
        snapshot = self._table.current()
        asked = (request.method, request.host, request.path)
        answer = snapshot.answers.get(asked)
        if answer is not None and not (snapshot.matcher.has_headers and request.headers):
            # Nobody changes an answer on its way out: there is nothing sealed in it.
            resolved: pb.ResolveRouteResponse = answer
            return resolved
        return self._resolve(snapshot, request, asked)

    def AuthorizeRequest(
        self, request: pb.AuthorizeRequestRequest, context: grpc.ServicerContext
    ) -> pb.AuthorizeRequestResponse:
        """Decide a request."""
        snapshot = self._table.current()
        found = snapshot.matcher.find(request.method, request.host, request.path, _headers(request))
        response = pb.AuthorizeRequestResponse(table_version=snapshot.version_text)
        if found is None:
            response.denial, response.http_status = pb.DENIAL_NO_ROUTE, 404
            return response
        entry, segments = found
        parameters = entry.values(segments)
        response.route.MergeFromString(_route_bytes(entry))
        response.normalized_path = normalized(segments)
        if parameters:
            response.parameters.update(parameters)
        verdict = self._authorization.decide(snapshot, Request(request, Call.of(context)), entry.route, parameters)
        _fill_verdict(response, verdict)
        return response

    def GetRouteTable(
        self, request: pb.GetRouteTableRequest, context: grpc.ServicerContext
    ) -> pb.GetRouteTableResponse:
        """Return one page of the table."""
        snapshot = self._table.current()
        version, start = self._page_tokens.read(request) or (snapshot.version_text, "0")
        if version != snapshot.version_text:
            raise model.TableChangedError
        ids = snapshot.sorted_ids()
        end = int(start) + page_size(request.page_size)
        response = pb.GetRouteTableResponse(table_version=version, total_count=len(ids))
        for route_id in ids[int(start) : end]:
            response.routes.add().MergeFromString(_route_bytes(snapshot.matcher.entries[route_id]))
        if end < len(ids):
            response.next_page_token = self._page_tokens.make(request, [version, str(end)])
        return response

    @pushes
    def WatchRoutes(self, request: pb.WatchRoutesRequest, outlet: CallOutlet) -> None:
        """Push the table, and then its changes."""
        watch = _Watch(self._table, resumes=bool(request.resume_token))
        wanted = Wanted(frozenset({model.ROUTE}))
        self._feed.watch(outlet, request.resume_token, wanted, watch.message, opening=watch.snapshot)

    def _resolve(
        self, snapshot: Snapshot, request: pb.ResolveRouteRequest, asked: tuple[str, str, str]
    ) -> pb.ResolveRouteResponse:
        matcher = snapshot.matcher
        found = matcher.find(*asked, _headers(request))
        if found is None:
            raise model.NoRouteMatchesError
        response = _resolved(snapshot, found)
        if not (matcher.has_headers and request.headers):
            if len(snapshot.answers) >= _MOST_ANSWERS:
                snapshot.answers.clear()
            snapshot.answers[asked] = response
        return response


class _Watch:
    """What one stream is told: the table at one version, and what changed after it."""

    def __init__(self, table: Table, *, resumes: bool) -> None:
        self._table = table
        self._version = 0
        # Whether a token leads to no change that is in the snapshot; of before the stream's position was taken.
        self._safe = resumes
        self._before = 0 if resumes else table.read().version

    def snapshot(self) -> Iterator[pb.WatchRoutesResponse]:
        """Return the messages of the table as it is after this call began; they are made one by one."""
        read = self._table.read()
        self._version = read.version
        self._safe = read.version == self._before
        return _pages(read)

    def message(self, noted: Noted | None, resume_token: str) -> pb.WatchRoutesResponse:
        """Return what is told of a change; of none, and of one that is in the snapshot, how far the stream is.

        Without a token while there may be changes ahead that are in the snapshot: who resumed there would be told of
        them again.
        """
        if noted is not None and noted.change.body["table"] >= self._version:
            self._safe = True
        response = pb.WatchRoutesResponse(resume_token=resume_token if self._safe else "")
        if noted is not None and noted.change.body["table"] > self._version:
            messages.route_change(noted, response.change)
        return response


def _pages(snapshot: Snapshot) -> Iterator[pb.WatchRoutesResponse]:
    ids = snapshot.sorted_ids()
    for start in range(0, max(1, len(ids)), _SNAPSHOT_PAGE):
        end = start + _SNAPSHOT_PAGE
        page = pb.WatchRoutesResponse(table_version=snapshot.version_text, snapshot_complete=end >= len(ids))
        for route_id in ids[start:end]:
            page.routes.add().MergeFromString(_route_bytes(snapshot.matcher.entries[route_id]))
        yield page


def _declared(routes: Sequence[pb.Route]) -> list[model.NewRoute]:
    declared = []
    indexes: dict[str, int] = {}
    for index, route in enumerate(routes):
        path, name = f"routes[{index}]", route.name
        declared.append(messages.new_route(path, uuid7_text(), name, messages.spec_of(route)))
        if indexes.setdefault(name, index) != index:
            raise BadRequestError.of(f"{path}.name", f"is that of routes[{indexes[name]}] too")
    return declared


def _resolved(snapshot: Snapshot, found: Found) -> pb.ResolveRouteResponse:
    entry, segments = found
    response = pb.ResolveRouteResponse(normalized_path=normalized(segments), table_version=snapshot.version_text)
    response.route.MergeFromString(_route_bytes(entry))
    parameters = entry.values(segments)
    if parameters:
        response.parameters.update(parameters)
    return response


def _route_bytes(entry: Entry) -> bytes:
    """Return a route as it goes into an answer; made once."""
    if entry.answer is None:
        entry.answer = messages.route_message(entry.route).SerializeToString()
    made: bytes = entry.answer
    return made


def _headers(request: Any) -> Mapping[str, str]:
    headers = request.headers
    return {name.lower(): value for name, value in headers.items()} if headers else {}


def _fill_verdict(response: pb.AuthorizeRequestResponse, verdict: Verdict) -> None:
    response.allowed = verdict.denial == pb.DENIAL_UNSPECIFIED
    response.denial = verdict.denial
    response.http_status = verdict.http_status
    if verdict.rule:
        response.rule = verdict.rule
    if verdict.subject:
        response.subject = verdict.subject
    if verdict.lease:
        response.lease = verdict.lease
    now = time.time()
    for state in verdict.states:
        messages.fill_decision(response.quotas.add(), state, now)
    if verdict.headers:
        response.response_headers.update(verdict.headers)
