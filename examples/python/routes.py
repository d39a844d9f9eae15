"""Routes: an endpoint and its quota, whether a request may pass, errors by reason, and the table as it changes."""

from __future__ import annotations

import os
import uuid

import grpc
from kronos_db_client import Refusal, connect, follow
from kronos_db_client.routes.v1 import routes_pb2 as pb
from kronos_db_client.routes.v1.routes_pb2_grpc import RoutesServiceStub


def main() -> None:
    """Let two requests pass, and not the third."""
    name = f"orders-{uuid.uuid4().hex[:8]}"
    with connect(os.environ["KRONOS_ADDRESS"], token=os.environ["KRONOS_TOKEN"]) as channel:
        routes = RoutesServiceStub(channel)

        quota = pb.Quota(name=name, rate=pb.RateRule(limit=2), keys=[pb.QUOTA_KEY_IP])
        quota.rate.period.FromSeconds(3600)
        routes.CreateQuota(pb.CreateQuotaRequest(quota=quota))

        # A stream begins with the whole table; from `snapshot_complete` on it tells changes.
        table = follow(routes.WatchRoutes, pb.WatchRoutesRequest())
        next(message for message in table if message.snapshot_complete)
        wanted = pb.Route(name=name, methods=["GET"], path=f"/{name}/{{id}}", quotas=[name])
        wanted.upstream, wanted.caller = "http://orders.internal", pb.CALLER_REQUIREMENT_ANYONE
        created = routes.CreateRoute(pb.CreateRouteRequest(route=wanted)).route
        changes = (message.change for message in table if message.HasField("change"))
        print("told    ", next(pb.RouteEvent.Name(each.event) for each in changes if each.route_id == created.id))
        table.close()

        found = routes.ResolveRoute(pb.ResolveRouteRequest(method="GET", path=f"/{name}/7"))
        print("resolved", found.route.upstream, found.parameters["id"])

        for _ in range(3):
            request = pb.AuthorizeRequestRequest(method="GET", path=f"/{name}/7", client_ip="192.0.2.7")
            decision = routes.AuthorizeRequest(request)
            print("asked   ", decision.allowed, pb.Denial.Name(decision.denial), decision.http_status)

        try:
            routes.CreateRoute(pb.CreateRouteRequest(route=wanted))
        except grpc.RpcError as error:
            refusal = Refusal.of(error)
            print("refused ", refusal.code.name, refusal.reason)
        routes.DeleteRoute(pb.DeleteRouteRequest(id=created.id, etag=created.etag))


if __name__ == "__main__":
    main()
