"""Between the contract's messages and what the stores know."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from kronos.messages.v1 import messages_pb2 as pb

from kronos_db.messages import model
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.timestamps import from_timestamp, set_timestamp

_DURATIONS = ("lease_duration", "min_backoff", "max_backoff", "message_retention", "dead_letter_retention")
_NUMBERS = ("max_attempts", "max_backlog", "max_payload_bytes")
UPDATABLE = model.Rules._fields
_DEFAULTS = model.Rules()
# What a sealed payload has beside the padded one: see runtime/crypto/sealing.py.
_SEAL_BYTES, _BLOCK = 1 + 17 + 24 + 16, 32
STATES = {
    pb.MESSAGE_STATE_UNSPECIFIED: model.State.READY,
    pb.MESSAGE_STATE_READY: model.State.READY,
    pb.MESSAGE_STATE_DELAYED: model.State.DELAYED,
    pb.MESSAGE_STATE_LEASED: model.State.LEASED,
    pb.MESSAGE_STATE_BLOCKED: model.State.BLOCKED,
}


def seconds(duration: Duration) -> float:
    """Return a Duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def seconds_or(message: Any, field: str, default: float) -> float:
    """Return the Duration field of a message in seconds, `default` when it is absent."""
    return seconds(getattr(message, field)) if message.HasField(field) else default


def set_duration(duration: Duration, value: float) -> None:
    """Set a Duration to seconds, to the microsecond."""
    microseconds = round(value * 1e6)
    duration.seconds, rest = divmod(microseconds, 1_000_000)
    duration.nanos = rest * 1000


def rules_of(queue: pb.Queue) -> model.Rules:
    """Return the rules that a queue is to have, defaults where it says nothing."""
    return _DEFAULTS._replace(**{field: rule_of(queue, field) for field in UPDATABLE})


def rule_of(queue: pb.Queue, field: str) -> Any:
    """Return one rule, its default when the queue says nothing about it."""
    if field in _DURATIONS:
        return seconds_or(queue, field, getattr(_DEFAULTS, field))
    return getattr(queue, field) or getattr(_DEFAULTS, field)


def check_rules(rules: model.Rules) -> model.Rules:
    """Return rules that do not contradict each other. Raises BadRequestError."""
    if rules.max_backoff < rules.min_backoff:
        raise BadRequestError.of("queue.max_backoff", "must not be shorter than min_backoff")
    return rules


def fill_queue(message: pb.Queue, queue: model.Queue) -> None:
    """Write `queue` into an empty message."""
    message.name = queue.name
    message.ordered = queue.ordered
    for field in _DURATIONS:
        set_duration(getattr(message, field), getattr(queue, field))
    for field in _NUMBERS:
        setattr(message, field, getattr(queue, field))
    message.dead_letter_queue = queue.dead_letter_queue
    message.etag = str(queue.version)
    set_timestamp(message.create_time, queue.create_time)
    set_timestamp(message.update_time, queue.update_time)


def new_messages(messages: Sequence[pb.Message], queue: model.Queue) -> list[model.NewMessage]:
    """Return what is to be stored. Raises BadRequestError or PayloadTooLargeError for the first message at fault."""
    new = [_new_message(message, index, queue) for index, message in enumerate(messages)]
    if len({message.id for message in new}) < len(new):
        raise _repeated_id(new)
    return new


def _new_message(message: pb.Message, index: int, queue: model.Queue) -> model.NewMessage:
    payload = message.payload
    if len(payload) - _SEAL_BYTES > queue.max_payload_bytes // _BLOCK * _BLOCK + _BLOCK:
        raise model.PayloadTooLargeError(index, queue.max_payload_bytes)
    key = message.ordering_key or None
    if key is not None and not queue.ordered:
        raise BadRequestError.of(f"messages[{index}].ordering_key", "needs a queue that is ordered")
    has = message.HasField
    has_delay, has_due = has("delay"), has("due_time")
    if has_delay and has_due:
        raise BadRequestError.of(f"messages[{index}].due_time", "must not be given together with delay")
    headers, deduplication_key = message.headers, message.deduplication_key or None
    return model.NewMessage(
        message.id,
        payload,
        json.dumps(dict(headers), ensure_ascii=False) if headers else None,
        model.HIGHEST_PRIORITY - message.priority,
        key,
        seconds(message.delay) if has_delay else None,
        _due_time(message, index) if has_due else None,
        seconds(message.time_to_live) if has("time_to_live") else None,
        deduplication_key,
        seconds_or(message, "deduplication_window", model.DEDUPLICATION_WINDOW) if deduplication_key else 0.0,
    )


def _due_time(message: pb.Message, index: int) -> datetime | None:
    try:
        return from_timestamp(message, "due_time")
    except BadRequestError as error:
        raise BadRequestError.of(f"messages[{index}].due_time", error.violations[0].description) from None


def _repeated_id(new: Sequence[model.NewMessage]) -> model.MessageExistsError:
    seen = set()
    for index, message in enumerate(new):
        if message.id in seen:
            return model.MessageExistsError(index)
        seen.add(message.id)
    raise AssertionError("unreachable")


def fill_message(into: pb.Message, message: model.Message) -> None:
    """Write `message` into an empty one: in place and without detours, since answers hold up to a thousand."""
    message_id, payload, headers, rank, key, enqueued, expires, attempts, history = message
    into.id = message_id
    if payload:
        into.payload = payload
    if headers:
        into.headers.update(headers)
    if rank != model.HIGHEST_PRIORITY:
        into.priority = model.HIGHEST_PRIORITY - rank
    if key is not None:
        into.ordering_key = key
    set_timestamp(into.enqueue_time, enqueued)
    if expires is not None:
        set_timestamp(into.expire_time, expires)
    into.attempts = attempts
    if history:
        _fill_history(into, history)


def _fill_history(into: pb.Message, history: Sequence[Mapping[str, Any]]) -> None:
    for entry in history:
        failure = into.failures.add(attempt=entry["attempt"], kind=entry["kind"], reason=entry["reason"])
        set_timestamp(failure.time, datetime.fromtimestamp(float(entry["time"]), UTC))


def fill_leased(into: pb.LeasedMessage, leased: model.Leased) -> None:
    """Write a message under a lease into an empty one."""
    fill_message(into.message, leased.message)
    into.lease_token = leased.token
    set_timestamp(into.lease_expire_time, leased.expire_time)


def receipts(items: Sequence[pb.Receipt]) -> list[model.Receipt]:
    """Return receipts as they are stored."""
    return [model.Receipt(item.message_id.lower(), item.lease_token.lower()) for item in items]


def returns(items: Sequence[pb.Nack]) -> list[model.Return]:
    """Return what is given back."""
    return [
        model.Return(
            item.message_id.lower(),
            item.lease_token.lower(),
            seconds(item.delay) if item.HasField("delay") else None,
            item.reason,
            item.dead_letter,
        )
        for item in items
    ]


def queue_of(message: pb.Queue, queue_id: str, bin_id: str, dead_bin: str) -> model.Queue:
    """Return what `fill_queue` was given."""
    return model.Queue(
        message.name,
        queue_id,
        bin_id,
        dead_bin,
        message.ordered,
        **rules_as_they_are(message),
        version=int(message.etag),
        create_time=message.create_time.ToDatetime(UTC),
        update_time=message.update_time.ToDatetime(UTC),
    )


def rules_as_they_are(queue: pb.Queue) -> dict[str, Any]:
    """Return the rules of a queue that has all of them."""
    return {
        field: seconds(getattr(queue, field)) if field in _DURATIONS else getattr(queue, field) for field in UPDATABLE
    }
