"""Messages: a queue with dead letters, messages that are stored once, and a consumer that acknowledges or rejects."""

from __future__ import annotations

import os
import queue
import uuid

from kronos_db_client import connect
from kronos_db_client.messages.v1 import messages_pb2 as pb
from kronos_db_client.messages.v1.messages_pb2_grpc import MessagesServiceStub


def consume(messages: MessagesServiceStub, name: str, count: int) -> None:
    """Process so many messages: bad ones become dead letters."""
    # What this side says: credit for the next message at first, and with each receipt.
    says: queue.SimpleQueue[pb.ConsumeMessagesRequest | None] = queue.SimpleQueue()
    credit = {"credit_messages": 1, "credit_bytes": 1 << 20}
    says.put(pb.ConsumeMessagesRequest(queue=name, **credit))
    outcomes = 0
    for answer in messages.ConsumeMessages(iter(says.get, None), timeout=60):
        for leased in answer.messages:
            receipt = {"message_id": leased.message.id, "lease_token": leased.lease_token}
            print("received", leased.message.payload.decode())
            if leased.message.payload == b"bad":
                nack = pb.Nack(**receipt, reason="cannot be read", dead_letter=True)
                says.put(pb.ConsumeMessagesRequest(nacks=[nack], **credit))
            else:
                says.put(pb.ConsumeMessagesRequest(acks=[pb.Receipt(**receipt)], **credit))
        outcomes += len(answer.outcomes)
        if outcomes == count:
            # Only now are the receipts known to count.
            says.put(None)


def main() -> None:
    """Send, receive, and look at what could not be processed."""
    name = f"mail-{uuid.uuid4().hex[:8]}"
    with connect(os.environ["KRONOS_ADDRESS"], token=os.environ["KRONOS_TOKEN"]) as channel:
        messages = MessagesServiceStub(channel)
        messages.CreateQueue(pb.CreateQueueRequest(queue=pb.Queue(name=name)))

        for _ in range(2):
            batch = [pb.Message(payload=text, deduplication_key=text.decode()) for text in (b"good", b"bad")]
            stored = messages.EnqueueMessages(pb.EnqueueMessagesRequest(queue=name, messages=batch))
            print("enqueued", [result.duplicate for result in stored.results])

        consume(messages, name, count=2)

        for letter in messages.ListDeadLetters(pb.ListDeadLettersRequest(queue=name)).dead_letters:
            reason = letter.message.failures[0].reason
            print("dead    ", letter.message.payload.decode(), pb.DeathCause.Name(letter.cause), reason)
        stats = messages.GetQueueStats(pb.GetQueueStatsRequest(queue=name))
        print("left    ", stats.ready + stats.leased, "ready,", stats.dead, "dead")


if __name__ == "__main__":
    main()
