"""Leases messages of a queue and acknowledges them, as fast as it can, from a process of its own.

    python -m benchmarks.consumer TARGET QUEUE BATCH THREADS SECONDS

The bearer token is read from standard input. Prints how many messages a second it acknowledged.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from kronos.messages.v1 import messages_pb2 as pb
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub


def consume(target: str, token: str, queue: str, batch: int, until: float) -> int:
    """Return how many messages were acknowledged until that time.perf_counter(), or until there were no more."""
    metadata = (("authorization", f"Bearer {token}"),)
    wish = pb.LeaseMessagesRequest(queue=queue, max_messages=batch)
    count = 0
    with grpc.insecure_channel(target, (("grpc.use_local_subchannel_pool", 1),)) as channel:
        messages = MessagesServiceStub(channel)
        while time.perf_counter() < until:
            leased = messages.LeaseMessages(wish, metadata=metadata).messages
            if not leased:
                break
            done = pb.AckMessagesRequest(queue=queue)
            for each in leased:
                done.receipts.add(message_id=each.message.id, lease_token=each.lease_token)
            count += list(messages.AckMessages(done, metadata=metadata).outcomes).count(pb.OUTCOME_OK)
    return count


def main() -> None:
    """Consume."""
    target, queue = sys.argv[1:3]
    batch, threads, seconds = int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
    token = sys.stdin.read().strip()
    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(consume, target, token, queue, batch, begin + seconds) for _ in range(threads)]
        count = sum(job.result() for job in jobs)
    print(count / (time.perf_counter() - begin))


if __name__ == "__main__":
    main()
