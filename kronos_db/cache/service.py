"""CacheService: checks what the contract cannot say, answers from copies, calls the stores, converts."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from kronos.cache.v1 import cache_pb2 as pb
from kronos.cache.v1.cache_pb2_grpc import CacheServiceServicer

from kronos_db.cache import model
from kronos_db.cache.answers import Told, delete_outcome, fill_response, put_response
from kronos_db.cache.counting import Counts
from kronos_db.cache.declaring import UPDATABLE, new_namespace
from kronos_db.cache.leasing import Leases, lease_of, lease_text
from kronos_db.cache.lookup import Lookup
from kronos_db.cache.messages import duration, entry_message, entry_of, namespace_message
from kronos_db.cache.namespaces import NamespacesStore
from kronos_db.cache.querying import query_of
from kronos_db.cache.room import Room
from kronos_db.cache.store import EntriesStore, Versions
from kronos_db.cache.writes import check_keys, check_names, columns, seconds
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.etags import version_of
from kronos_db.runtime.feed.feed import Feed
from kronos_db.runtime.feed.subscription import Wanted
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.outlet import CallOutlet, pushes
from kronos_db.runtime.paging import PageTokens, page_size
from kronos_db.runtime.update_masks import masked_fields

# Seconds for which the answer of a write is kept: as the contract says.
_REPEATABLE = 600.0
# What a caller who is to wait is told, in seconds.
_SHORTEST_WAIT, _LONGEST_WAIT = 0.01, 0.1
Answer = TypeVar("Answer", bound=Message)


class CacheService(CacheServiceServicer):
    """The handlers of the contract `kronos.cache.v1`."""

    def __init__(  # noqa: PLR0917  # each collaborator
        self,
        stores: tuple[NamespacesStore, EntriesStore],
        lookup: Lookup,
        room: Room,
        counts: Counts,
        leases: Leases,
        page_tokens: PageTokens,
        feed: Feed,
    ) -> None:
        self._namespaces, self._entries = stores
        self._lookup = lookup
        self._room = room
        self._counts = counts
        self._leases = leases
        self._page_tokens = page_tokens
        self._feed = feed

    def CreateNamespace(
        self, request: pb.CreateNamespaceRequest, context: grpc.ServicerContext
    ) -> pb.CreateNamespaceResponse:
        """Create a namespace."""
        new = new_namespace(request.namespace)
        mutation: Mutation[model.Namespace, pb.CreateNamespaceResponse] = _mutation(
            context,
            pb.CreateNamespaceResponse,
            lambda made: pb.CreateNamespaceResponse(namespace=namespace_message(made)),
        )
        return self._namespaces.create(new, mutation)

    def GetNamespace(self, request: pb.GetNamespaceRequest, context: grpc.ServicerContext) -> pb.GetNamespaceResponse:
        """Return a namespace."""
        return pb.GetNamespaceResponse(namespace=namespace_message(self._lookup.namespace(request.name)))

    def ListNamespaces(
        self, request: pb.ListNamespacesRequest, context: grpc.ServicerContext
    ) -> pb.ListNamespacesResponse:
        """Return one page."""
        size = page_size(request.page_size)
        after = self._page_tokens.read(request)
        found = self._namespaces.list_page(after[0] if after else None, size + 1)
        more = len(found) > size
        return pb.ListNamespacesResponse(
            namespaces=[namespace_message(namespace) for namespace in found[:size]],
            next_page_token=self._page_tokens.make(request, [found[size - 1].name]) if more else "",
        )

    def UpdateNamespace(
        self, request: pb.UpdateNamespaceRequest, context: grpc.ServicerContext
    ) -> pb.UpdateNamespaceResponse:
        """Change the fields that the mask names."""
        fields, values = (
            masked_fields(request.update_mask, request.namespace, "namespace", UPDATABLE),
            new_namespace(request.namespace),
        )
        mutation: Mutation[model.Namespace, pb.UpdateNamespaceResponse] = _mutation(
            context,
            pb.UpdateNamespaceResponse,
            lambda changed: pb.UpdateNamespaceResponse(namespace=namespace_message(changed)),
        )
        return self._namespaces.update(values, fields, version_of(request.namespace.etag, "namespace.etag"), mutation)

    def DeleteNamespace(
        self, request: pb.DeleteNamespaceRequest, context: grpc.ServicerContext
    ) -> pb.DeleteNamespaceResponse:
        """Delete a namespace."""
        mutation: Mutation[model.Namespace, pb.DeleteNamespaceResponse] = _mutation(
            context, pb.DeleteNamespaceResponse, lambda _gone: pb.DeleteNamespaceResponse()
        )
        return self._namespaces.delete(request.name, version_of(request.etag, "etag"), mutation)

    def GetEntries(self, request: pb.GetEntriesRequest, context: grpc.ServicerContext) -> pb.GetEntriesResponse:
        """Return entries: mostly bytes that were prepared when they were read."""
        began = perf_counter()
        name, keys = request.namespace, request.keys
        if len(keys) == 1:
            copy = self._lookup.one(name, keys[0])
            copies, missing = ([], [keys[0]]) if copy is None else ([copy], [])
        else:
            found = self._lookup.many(name, keys)
            copies = [found[key] for key in keys if key in found]
            missing = [key for key in keys if key not in found] if len(copies) < len(keys) else []
        if missing:
            # Whether there is such a namespace at all is known by what was found in it.
            self._counts.known(self._lookup.namespace(name))
            copies.append(pb.GetEntriesResponse(missing_keys=missing).SerializeToString())
        self._counts.of(name).looked_up(keys, len(keys) - len(missing), perf_counter() - began)
        self._counts.tell_if_due()
        # Responses one behind the other are one; the chain passes bytes on.
        return b"".join(copies)  # type: ignore[return-value]

    def PutEntries(self, request: pb.PutEntriesRequest, context: grpc.ServicerContext) -> pb.PutEntriesResponse:
        """Put entries."""
        namespace = self._lookup.namespace(request.namespace)
        writes = columns(namespace, request.entries, "entries[{}]".format, self._lookup.sealer)
        self._room.make(namespace, len(writes.keys), writes.size)
        mutation: Mutation[Versions, pb.PutEntriesResponse] = _mutation(
            context, pb.PutEntriesResponse, lambda versions: put_response(writes.keys, versions)
        )
        response = self._entries.put(namespace, writes, mutation)
        self._counts.known(namespace).puts += len(writes.keys)
        return response

    def DeleteEntries(
        self, request: pb.DeleteEntriesRequest, context: grpc.ServicerContext
    ) -> pb.DeleteEntriesResponse:
        """Delete entries."""
        namespace = self._lookup.namespace(request.namespace)
        keys = [entry.key for entry in request.entries]
        check_keys(keys, "entries[{}].key".format)
        expected = [int(entry.expected_version) if entry.expected_version else None for entry in request.entries]
        mutation: Mutation[Mapping[str, tuple[int, bool]], pb.DeleteEntriesResponse] = _mutation(
            context,
            pb.DeleteEntriesResponse,
            lambda gone: pb.DeleteEntriesResponse(
                outcomes=[
                    delete_outcome(wanted, *gone.get(key, (0, False)))
                    for key, wanted in zip(keys, expected, strict=True)
                ]
            ),
        )
        return self._entries.delete(namespace, keys, expected, mutation)

    def GetOrLease(self, request: pb.GetOrLeaseRequest, context: grpc.ServicerContext) -> pb.GetOrLeaseResponse:
        """Return entries, or leases to fill them."""
        began = perf_counter()
        namespace = self._lookup.namespace(request.namespace)
        keys = list(request.keys)
        check_names(keys, "keys[{}]".format)
        found = self._lookup.many(namespace.name, keys)
        missing = [key for key in keys if key not in found]
        asks = self._leases.asks(namespace, missing, seconds(request, "lease_time", None), Call.of(context))
        states = self._states(namespace, asks, request.validate_only)
        response = pb.GetOrLeaseResponse()
        for key in keys:
            result = response.results.add(key=key)
            if key in found:
                result.outcome = pb.LEASE_OUTCOME_HIT
                result.entry.CopyFrom(entry_of(found[key]))
            else:
                self._tell(result, asks[key], states.get(key, model.NOTHING), checked=request.validate_only)
        tally = self._counts.known(namespace)
        tally.looked_up(keys, len(found), perf_counter() - began)
        self._counts.tell_if_due()
        return response

    def FillLease(self, request: pb.FillLeaseRequest, context: grpc.ServicerContext) -> pb.FillLeaseResponse:
        """Put values under their leases."""
        namespace = self._lookup.namespace(request.namespace)
        entries = [fill.entry for fill in request.fills]
        leases = [lease_of(fill.lease) for fill in request.fills]
        writes = columns(namespace, entries, "fills[{}].entry".format, self._lookup.sealer, leases)
        self._room.make(namespace, len(writes.keys), writes.size)
        mutation: Mutation[Versions, pb.FillLeaseResponse] = _mutation(
            context, pb.FillLeaseResponse, lambda versions: fill_response(writes.keys, versions)
        )
        response = self._entries.fill(namespace, writes, mutation)
        self._counts.known(namespace).puts += len(writes.keys)
        return response

    def AbandonLease(self, request: pb.AbandonLeaseRequest, context: grpc.ServicerContext) -> pb.AbandonLeaseResponse:
        """Give leases back."""
        namespace = self._lookup.namespace(request.namespace)
        keys = [lease.key for lease in request.leases]
        check_keys(keys, "leases[{}].key".format)
        leases = {lease.key: lease_of(lease.lease) for lease in request.leases}
        mutation: Mutation[int, pb.AbandonLeaseResponse] = _mutation(
            context, pb.AbandonLeaseResponse, lambda held: pb.AbandonLeaseResponse(abandoned_count=held)
        )
        return self._entries.abandon(namespace, leases, mutation)

    def InvalidateTags(
        self, request: pb.InvalidateTagsRequest, context: grpc.ServicerContext
    ) -> pb.InvalidateTagsResponse:
        """Make all entries with one of the tags missing."""
        namespace = self._lookup.namespace(request.namespace)
        tags = list(request.tags)
        check_names(tags, "tags[{}]".format)
        mutation: Mutation[None, pb.InvalidateTagsResponse] = _mutation(
            context, pb.InvalidateTagsResponse, lambda _: pb.InvalidateTagsResponse()
        )
        return self._entries.invalidate_tags(namespace, tags, mutation)

    def TouchEntries(self, request: pb.TouchEntriesRequest, context: grpc.ServicerContext) -> pb.TouchEntriesResponse:
        """Give entries a new time to live."""
        namespace = self._lookup.namespace(request.namespace)
        keys = list(request.keys)
        check_names(keys, "keys[{}]".format)
        times = (
            seconds(request, "ttl", namespace.default_ttl),
            seconds(request, "stale_time", namespace.default_stale_time),
        )
        mutation: Mutation[frozenset[str], pb.TouchEntriesResponse] = _mutation(
            context,
            pb.TouchEntriesResponse,
            lambda touched: pb.TouchEntriesResponse(missing_keys=[key for key in keys if key not in touched]),
        )
        return self._entries.touch(namespace, keys, times, mutation)

    def QueryEntries(self, request: pb.QueryEntriesRequest, context: grpc.ServicerContext) -> pb.QueryEntriesResponse:
        """Return one page of entries by an index."""
        namespace = self._lookup.namespace(request.namespace)
        size = page_size(request.page_size)
        query = query_of(request, namespace, self._page_tokens.read(request), size + 1)
        found = self._entries.query(namespace, query)
        response = pb.QueryEntriesResponse(entries=[entry_message(entry) for _, entry in found[:size]])
        if len(found) > size:
            value, entry = found[size - 1]
            response.next_page_token = self._page_tokens.make(request, [value, entry.key])
        return response

    @pushes
    def WatchInvalidations(self, request: pb.WatchInvalidationsRequest, outlet: CallOutlet) -> None:
        """Push what callers with copies of their own must drop."""
        names = frozenset(request.namespaces)
        told = Told(sorted(names))
        wanted = Wanted(model.KINDS, names)
        self._feed.watch(outlet, request.resume_token, wanted, told.change, make_gap=told.gap)

    def GetCacheStats(
        self, request: pb.GetCacheStatsRequest, context: grpc.ServicerContext
    ) -> pb.GetCacheStatsResponse:
        """Return what was counted for a namespace."""
        namespace = self._lookup.namespace(request.namespace)
        self._counts.known(namespace)
        stats, top = self._counts.stats(namespace)
        usage = self._room.usage(namespace)
        return pb.GetCacheStatsResponse(
            entry_count=usage.entries,
            entry_bytes=usage.bytes,
            **stats._asdict(),
            top_keys=[pb.KeyUse(key=key, uses=uses) for key, uses in top],
        )

    def _states(
        self, namespace: model.Namespace, asks: Mapping[str, model.Ask], checked: bool
    ) -> Mapping[str, model.State]:
        """Return what there is for keys without a copy, with the leases that can be had unless that is only checked."""
        if checked:
            return self._entries.lease_states(namespace, list(asks)) if asks else {}
        if len(asks) == 1:
            return {key: self._entries.lease(ask) for key, ask in asks.items()}
        return self._entries.lease_all(list(asks.values())) if asks else {}

    def _tell(self, result: pb.LeaseResult, ask: model.Ask, state: model.State, *, checked: bool) -> None:
        """Say what there is for a key without a copy."""
        if state.entry is not None and (state.is_current or state.is_servable):
            result.entry.CopyFrom(self._lookup.opened(ask.namespace, entry_message(state.entry)))
        if state.lease_base is not None:
            result.outcome = pb.LEASE_OUTCOME_LEASED
            result.lease = lease_text(ask, state.lease_base)
        elif state.is_current:
            result.outcome = pb.LEASE_OUTCOME_HIT
        elif checked and state.lease_left is None:
            result.outcome = pb.LEASE_OUTCOME_LEASED
        else:
            result.outcome = pb.LEASE_OUTCOME_STALE if state.is_servable else pb.LEASE_OUTCOME_WAIT
            left = min(max(state.lease_left or 0.0, _SHORTEST_WAIT), _LONGEST_WAIT)
            result.retry_after.CopyFrom(duration(left))


def _mutation(context: grpc.ServicerContext, answer: type[Answer], reply: Any) -> Mutation[Any, Answer]:
    mutation: Mutation[Any, Answer] = Call.of(context).mutation(answer, reply)
    return mutation._replace(window=min(mutation.window, _REPEATABLE))
