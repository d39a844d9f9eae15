"""Cache: entries with versions, a query by index, one filler for many readers, and invalidation as it happens."""

from __future__ import annotations

import json
import os
import uuid

from kronos_db_client import connect, follow, pages
from kronos_db_client.cache.v1 import cache_pb2 as pb
from kronos_db_client.cache.v1.cache_pb2_grpc import CacheServiceStub


def entry(key: str, price: int, **more: object) -> pb.EntryWrite:
    """Return a product."""
    return pb.EntryWrite(key=key, value=json.dumps({"price": price}).encode(), tags=["products"], **more)  # type: ignore[arg-type]


def main() -> None:
    """Keep products."""
    name = f"shop-{uuid.uuid4().hex[:8]}"
    with connect(os.environ["KRONOS_ADDRESS"], token=os.environ["KRONOS_TOKEN"]) as channel:
        cache = CacheServiceStub(channel)
        price = pb.IndexDeclaration(name="price", path="price", type=pb.INDEX_TYPE_NUMBER)
        cache.CreateNamespace(pb.CreateNamespaceRequest(namespace=pb.Namespace(name=name, indexes=[price])))

        put = cache.PutEntries(pb.PutEntriesRequest(namespace=name, entries=[entry("pen", 2), entry("ink", 9)]))
        print("put     ", [pb.PutOutcome.Name(result.outcome) for result in put.results])
        version = put.results[0].version
        for amount in (3, 4):
            # Both writers have read the same version: the second one is told.
            writes = [entry("pen", amount, expected_version=version)]
            again = cache.PutEntries(pb.PutEntriesRequest(namespace=name, entries=writes)).results[0]
            print("changed ", pb.PutOutcome.Name(again.outcome))

        cheap = pb.QueryEntriesRequest(namespace=name, index="price", page_size=1)
        cheap.range.until.number_value = 100
        print("by price", [each.key for page in pages(cache.QueryEntries, cheap) for each in page.entries])

        # Of all who miss an entry at once, one gets the lease and fills it.
        asked = pb.GetOrLeaseRequest(namespace=name, keys=["nib"])
        mine, other = (cache.GetOrLease(asked).results[0] for _ in range(2))
        print("leased  ", pb.LeaseOutcome.Name(mine.outcome), pb.LeaseOutcome.Name(other.outcome))
        fill = pb.LeaseFill(lease=mine.lease, entry=entry("nib", 1))
        filled = cache.FillLease(pb.FillLeaseRequest(namespace=name, fills=[fill])).results[0]
        print("filled  ", pb.FillOutcome.Name(filled.outcome))

        changes = follow(cache.WatchInvalidations, pb.WatchInvalidationsRequest(namespaces=[name]))
        next(changes)
        cache.InvalidateTags(pb.InvalidateTagsRequest(namespace=name, tags=["products"]))
        print("told    ", next(list(message.tags.tags) for message in changes if message.HasField("tags")))
        changes.close()
        got = cache.GetEntries(pb.GetEntriesRequest(namespace=name, keys=["pen", "nib"]))
        print("gone    ", list(got.missing_keys))
        cache.DeleteNamespace(pb.DeleteNamespaceRequest(name=name))


if __name__ == "__main__":
    main()
