"""MessagesService: checks what the contract cannot say, calls the stores, converts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

import grpc
from kronos.messages.v1 import messages_pb2 as pb
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceServicer

from kronos_db.messages import model, wire
from kronos_db.messages.consuming import Consumer, Consumers
from kronos_db.messages.enqueuing import Enqueuing
from kronos_db.messages.inspection import Inspection
from kronos_db.messages.queues import QueuesStore, not_found
from kronos_db.messages.remembered import enqueued, held, held_earlier, packed_ids, unpacked_ids
from kronos_db.messages.store import MessagesStore
from kronos_db.messages.waiting import Waiting
from kronos_db.runtime.cache.engine import Cache, Loaded, Rules
from kronos_db.runtime.database.changes import tag
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.etags import version_of
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.conversation import Conversation, Replies, converses
from kronos_db.runtime.paging import PageTokens, page_size
from kronos_db.runtime.parking import Parked, Parking
from kronos_db.runtime.timestamps import set_timestamp
from kronos_db.runtime.update_masks import masked_fields

_MOST_LEASED = 1000
_DEFAULT_LEASE_BYTES, _MOST_LEASE_BYTES = 1 << 20, 3 << 20
_DEFAULT_REPLAYED, _MOST_REPLAYED = 100, 1000
# Seconds before its deadline at which a call that waits is answered.
_MARGIN = 0.1
Answer = TypeVar("Answer", pb.CreateQueueResponse, pb.UpdateQueueResponse)
Outcomes = TypeVar("Outcomes", pb.AckMessagesResponse, pb.NackMessagesResponse)


class MessagesService(MessagesServiceServicer):
    """The handlers of the contract `kronos.messages.v1`."""

    def __init__(  # noqa: PLR0917  # its parts
        self,
        queues: QueuesStore,
        store: MessagesStore,
        enqueuing: Enqueuing,
        inspection: Inspection,
        waiting: Waiting,
        consumers: Consumers,
        parking: Parking,
        page_tokens: PageTokens,
        cache: Cache,
    ) -> None:
        self._queues = queues
        self._store = store
        self._enqueuing = enqueuing
        self._inspection = inspection
        self._waiting = waiting
        self._consumers = consumers
        self._parking = parking
        self._page_tokens = page_tokens
        self._kept = cache.kind(Rules("queues"), self._load)

    def CreateQueue(self, request: pb.CreateQueueRequest, context: grpc.ServicerContext) -> pb.CreateQueueResponse:
        """Create a queue."""
        queue = request.queue
        rules = wire.check_rules(wire.rules_of(queue))
        return self._queues.create(queue.name, queue.ordered, rules, _with_queue(context, pb.CreateQueueResponse))

    def GetQueue(self, request: pb.GetQueueRequest, context: grpc.ServicerContext) -> pb.GetQueueResponse:
        """Return one queue."""
        response = pb.GetQueueResponse()
        wire.fill_queue(response.queue, self.queue(request.queue))
        return response

    def ListQueues(self, request: pb.ListQueuesRequest, context: grpc.ServicerContext) -> pb.ListQueuesResponse:
        """Return one page."""
        size = page_size(request.page_size)
        after = self._page_tokens.read(request)
        queues = self._queues.list_page(request.name_prefix, after[0] if after else None, size + 1)
        response = pb.ListQueuesResponse()
        if len(queues) > size:
            response.next_page_token = self._page_tokens.make(request, [queues[size - 1].name])
        for queue in queues[:size]:
            wire.fill_queue(response.queues.add(), queue)
        return response

    def UpdateQueue(self, request: pb.UpdateQueueRequest, context: grpc.ServicerContext) -> pb.UpdateQueueResponse:
        """Change the rules that the mask names."""
        queue = request.queue
        fields = masked_fields(request.update_mask, queue, "queue", wire.UPDATABLE)
        changes = {field: wire.rule_of(queue, field) for field in fields}

        def change(rules: model.Rules) -> model.Rules:
            return wire.check_rules(rules._replace(**changes))

        version = version_of(queue.etag, "queue.etag")
        return self._queues.update(queue.name, version, change, _with_queue(context, pb.UpdateQueueResponse))

    def DeleteQueue(self, request: pb.DeleteQueueRequest, context: grpc.ServicerContext) -> pb.DeleteQueueResponse:
        """Delete a queue and all that is in it."""
        mutation: Mutation[model.Queue, pb.DeleteQueueResponse] = Call.of(context).mutation(
            pb.DeleteQueueResponse, lambda _queue: pb.DeleteQueueResponse()
        )
        return self._queues.delete(request.queue, version_of(request.etag, "etag"), mutation)

    def PurgeQueue(self, request: pb.PurgeQueueRequest, context: grpc.ServicerContext) -> pb.PurgeQueueResponse:
        """Empty a queue."""
        if not (request.messages or request.dead_letters):
            raise BadRequestError.of("messages", "must be true, or dead_letters must: else there is nothing to purge")
        mutation: Mutation[model.Queue, pb.PurgeQueueResponse] = Call.of(context).mutation(
            pb.PurgeQueueResponse, lambda _queue: pb.PurgeQueueResponse()
        )
        return self._queues.purge(request.queue, request.messages, request.dead_letters, mutation)

    def EnqueueMessages(
        self, request: pb.EnqueueMessagesRequest, context: grpc.ServicerContext
    ) -> pb.EnqueueMessagesResponse:
        """Store all messages or none."""
        queue = self.queue(request.queue)
        # What is kept of the answer is a third of it: each message has a row already.
        mutation: Mutation[list[model.Stored], pb.EnqueueMessagesResponse] = Call.of(context).mutation(
            pb.EnqueueMessagesResponse, enqueued, packed_ids, unpacked_ids
        )
        return self._enqueuing.enqueue(queue, wire.new_messages(request.messages, queue), mutation)

    def LeaseMessages(
        self, request: pb.LeaseMessagesRequest, context: grpc.ServicerContext
    ) -> pb.LeaseMessagesResponse:
        """Lease what is ready; step aside until something is, when the caller wants to wait."""
        call = Call.of(context)
        queue = self.queue(request.queue)
        lease = partial(self._lease, queue, _wish(request, queue), call)
        if call.waited is None:
            leased = lease()
            if not leased and request.HasField("wait") and not call.validate_only:
                leased = self._wait(call, queue, wire.seconds(request.wait), lease)
        else:
            leased = self._go_on(call, queue, lease)
        response = pb.LeaseMessagesResponse()
        add = response.messages.add
        for each in leased:
            wire.fill_leased(add(), each)
        return response

    def AckMessages(self, request: pb.AckMessagesRequest, context: grpc.ServicerContext) -> pb.AckMessagesResponse:
        """Remove messages that were processed."""
        mutation = _with_outcomes(context, pb.AckMessagesResponse)
        return self._store.ack(self.queue(request.queue), wire.receipts(request.receipts), mutation)

    def NackMessages(self, request: pb.NackMessagesRequest, context: grpc.ServicerContext) -> pb.NackMessagesResponse:
        """Take messages back."""
        mutation = _with_outcomes(context, pb.NackMessagesResponse)
        return self._store.nack(self.queue(request.queue), wire.returns(request.nacks), mutation)

    def ExtendLeases(self, request: pb.ExtendLeasesRequest, context: grpc.ServicerContext) -> pb.ExtendLeasesResponse:
        """Make leases last longer."""
        queue = self.queue(request.queue)
        seconds = wire.seconds_or(request, "lease_duration", queue.lease_duration)
        mutation: Mutation[model.Extended, pb.ExtendLeasesResponse] = Call.of(context).mutation(
            pb.ExtendLeasesResponse, _extended
        )
        return self._store.extend(queue, wire.receipts(request.receipts), seconds, mutation)

    @converses
    def ConsumeMessages(self, replies: Replies) -> Conversation:
        """Send messages as they become ready."""
        return Consumer(self._consumers, replies, self.queue)

    def PeekMessages(self, request: pb.PeekMessagesRequest, context: grpc.ServicerContext) -> pb.PeekMessagesResponse:
        """Return one page of messages in a state."""
        queue, state = self.queue(request.queue), wire.STATES[request.state]
        size = page_size(request.page_size)
        found = self._inspection.peek(queue, state, self._page_tokens.read(request), size + 1)
        response = pb.PeekMessagesResponse()
        count = _within([message for _, message in found], size)
        if len(found) > count:
            response.next_page_token = self._page_tokens.make(request, found[count - 1][0])
        for _, message in found[:count]:
            wire.fill_message(response.messages.add(), message)
        return response

    def CancelMessages(
        self, request: pb.CancelMessagesRequest, context: grpc.ServicerContext
    ) -> pb.CancelMessagesResponse:
        """Remove messages that are not leased."""
        ids = [message_id.lower() for message_id in request.message_ids]
        mutation: Mutation[list[int], pb.CancelMessagesResponse] = Call.of(context).mutation(
            pb.CancelMessagesResponse, lambda outcomes: pb.CancelMessagesResponse(cancellations=_values(outcomes))
        )
        return self._store.cancel(self.queue(request.queue), ids, mutation)

    def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: grpc.ServicerContext
    ) -> pb.ListDeadLettersResponse:
        """Return one page of dead letters."""
        queue = self.queue(request.queue)
        size = page_size(request.page_size)
        found = self._inspection.dead_letters(queue, self._page_tokens.read(request), size + 1)
        response = pb.ListDeadLettersResponse()
        count = _within([letter.message for letter in found], size)
        if len(found) > count:
            last = found[count - 1]
            response.next_page_token = self._page_tokens.make(request, [last.dead_time.isoformat(), last.message.id])
        for letter in found[:count]:
            dead = response.dead_letters.add(cause=_cause(letter.cause))
            wire.fill_message(dead.message, letter.message)
            set_timestamp(dead.dead_time, letter.dead_time)
        return response

    def ReplayDeadLetters(
        self, request: pb.ReplayDeadLettersRequest, context: grpc.ServicerContext
    ) -> pb.ReplayDeadLettersResponse:
        """Make dead letters messages again."""
        ids = [message_id.lower() for message_id in request.message_ids]
        limit = len(ids) or min(request.max_messages or _DEFAULT_REPLAYED, _MOST_REPLAYED)
        mutation: Mutation[list[str], pb.ReplayDeadLettersResponse] = Call.of(context).mutation(
            pb.ReplayDeadLettersResponse, lambda replayed: pb.ReplayDeadLettersResponse(message_ids=replayed)
        )
        return self._inspection.replay(self.queue(request.queue), ids, limit, mutation)

    def GetQueueStats(
        self, request: pb.GetQueueStatsRequest, context: grpc.ServicerContext
    ) -> pb.GetQueueStatsResponse:
        """Tell how a queue is."""
        stats = self._inspection.stats(self.queue(request.queue))._asdict()
        oldest = stats.pop("oldest_ready_enqueue_time")
        response = pb.GetQueueStatsResponse(**stats)
        if oldest is not None:
            set_timestamp(response.oldest_ready_enqueue_time, oldest)
        return response

    def queue(self, name: str) -> model.Queue:
        """Return a queue by name, from a copy where there is one. Raises QueueNotFoundError."""
        kept = self._kept.get(name)
        if kept is None:
            raise not_found(name)
        return _unpacked(kept)

    def _load(self, names: Sequence[str]) -> Mapping[str, Loaded]:
        return {
            name: Loaded(_packed(queue), (tag(model.KIND, name),))
            for name, queue in self._queues.get_many(names).items()
        }

    def _lease(self, queue: model.Queue, wish: model.Wish, call: Call) -> list[model.Leased]:
        if call.write_id is None and not call.validate_only:
            return self._store.lease(queue, wish)
        # What is kept of the answer are names: no payload is stored twice.
        mutation: Mutation[Any, Any] = call.mutation(pb.LeaseMessagesResponse, _same, held, held_earlier)
        return self._store.lease_once(queue, wish, mutation)

    def _wait(
        self, call: Call, queue: model.Queue, seconds: float, lease: Callable[[], list[model.Leased]]
    ) -> list[model.Leased]:
        """Step aside for at most so many seconds; return messages that came in the last moment."""
        until = time.monotonic() + seconds
        if call.deadline is not None:
            until = min(until, call.deadline - _MARGIN)
        waiter = call.waited = _WaitingCall(until)
        if waiter.is_over or self._parking.closing:
            return []
        waiter.queue = queue
        if not call.context.add_callback(partial(self._leave, waiter)):
            return []
        self._parking.watch(waiter)
        return self._lease_or_wait(call, queue, lease)

    def _leave(self, waiter: _WaitingCall) -> None:
        """Forget a caller who is answered, or left."""
        # In this order: who enters the line from here on sees that it is done.
        waiter.leave()
        self._waiting.leave(waiter.queue, waiter)

    def _go_on(self, call: Call, queue: model.Queue, lease: Callable[[], list[model.Leased]]) -> list[model.Leased]:
        """Go on with a call that was woken: lease, and wait on when somebody else was faster."""
        waiter: _WaitingCall = call.waited
        self._waiting.leave(waiter.queue, waiter)
        if not waiter.is_over and not self._parking.closing:
            return self._lease_or_wait(call, queue, lease)
        leased = lease()
        self._waiting.wake(queue)
        return leased

    def _lease_or_wait(
        self, call: Call, queue: model.Queue, lease: Callable[[], list[model.Leased]]
    ) -> list[model.Leased]:
        """Lease, or step aside. What becomes ready from before the lease on wakes the call."""
        waiter: _WaitingCall = call.waited
        waiter.expect()
        waiter.queue = queue
        self._waiting.enter(queue, waiter)
        try:
            leased = lease()
            if not leased and not waiter.is_over and not waiter.is_done:
                call.step_aside(waiter)
        except Exception:
            self._waiting.leave(queue, waiter)
            raise
        self._waiting.leave(queue, waiter)
        # There may be more than this one wanted.
        self._waiting.wake(queue)
        return leased


class _WaitingCall(Parked):
    """A call that waits for messages of a queue."""

    queue: model.Queue


def _wish(request: pb.LeaseMessagesRequest, queue: model.Queue) -> model.Wish:
    return model.Wish(
        min(request.max_messages or 1, _MOST_LEASED),
        min(request.max_bytes or _DEFAULT_LEASE_BYTES, _MOST_LEASE_BYTES),
        wire.seconds_or(request, "lease_duration", queue.lease_duration),
    )


def _with_queue(context: grpc.ServicerContext, answer: type[Answer]) -> Mutation[model.Queue, Answer]:
    def reply(queue: model.Queue) -> Answer:
        response = answer()
        wire.fill_queue(response.queue, queue)
        return response

    return Call.of(context).mutation(answer, reply)


def _with_outcomes(context: grpc.ServicerContext, answer: type[Outcomes]) -> Mutation[list[int], Outcomes]:
    return Call.of(context).mutation(answer, lambda outcomes: answer(outcomes=_values(outcomes)))


def _extended(extended: model.Extended) -> pb.ExtendLeasesResponse:
    response = pb.ExtendLeasesResponse(outcomes=_values(extended.outcomes))
    set_timestamp(response.lease_expire_time, extended.expire_time)
    return response


def _values(outcomes: Sequence[int]) -> Any:
    """Return outcomes as the contract's enum, whose numbers are those of the model."""
    return outcomes


def _cause(cause: int) -> Any:
    return cause


def _same(leased: Any) -> Any:
    return leased


def _within(messages: Sequence[model.Message], size: int) -> int:
    """Return how many messages a page has: those of which the payload was read, and `size` at most."""
    read = [message.payload is not None for message in messages[:size]]
    return read.index(False) if False in read else len(read)


def _packed(queue: model.Queue) -> bytes:
    """Return a queue as it is kept in memory."""
    message = pb.Queue()
    wire.fill_queue(message, queue)
    return b"\0".join((queue.id.encode(), queue.bin.encode(), queue.dead_bin.encode(), message.SerializeToString()))


@lru_cache(maxsize=4096)
def _unpacked(kept: bytes) -> model.Queue:
    queue_id, bin_id, dead_bin, body = kept.split(b"\0", 3)
    return wire.queue_of(pb.Queue.FromString(body), queue_id.decode(), bin_id.decode(), dead_bin.decode())
