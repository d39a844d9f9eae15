"""In which form answers are kept for repeats of their calls: names alone, no payload is stored twice."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from kronos.messages.v1 import messages_pb2 as pb

from kronos_db.messages import model
from kronos_db.messages.store import LeasedEarlier

_UUID_BYTES = 16


def enqueued(stored: list[model.Stored]) -> pb.EnqueueMessagesResponse:
    """Return the answer of an enqueue."""
    response = pb.EnqueueMessagesResponse()
    add = response.results.add
    for message_id, duplicate in stored:
        result = add()
        result.message_id = message_id
        if duplicate:
            result.duplicate = True
    return response


def packed_ids(response: pb.EnqueueMessagesResponse) -> bytes:
    """Return an answer in short: for each message whether it is a duplicate, then all ids."""
    results = response.results
    return bytes([result.duplicate for result in results]) + bytes.fromhex(
        "".join([result.message_id for result in results]).replace("-", "")
    )


def unpacked_ids(kept: bytes) -> pb.EnqueueMessagesResponse:
    """Return the answer that was given to `packed_ids`."""
    count = len(kept) // (1 + _UUID_BYTES)
    ids = [str(UUID(bytes=kept[at : at + _UUID_BYTES])) for at in range(count, len(kept), _UUID_BYTES)]
    return enqueued(list(zip(ids, map(bool, kept[:count]), strict=True)))


def held(leased: Any) -> bytes:
    """Return the token and the ids of what was leased."""
    names = [leased[0].token, *(each.message.id for each in leased)]
    return b"".join(UUID(name).bytes for name in names)


def held_earlier(kept: bytes) -> Any:
    """Return what `held` was given: its names."""
    names = [str(UUID(bytes=kept[at : at + _UUID_BYTES])) for at in range(0, len(kept), _UUID_BYTES)]
    return LeasedEarlier(names[0], names[1:])
