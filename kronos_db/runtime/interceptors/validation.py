"""Sixth in the chain: decodes the request and holds it against the rules that the contract states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from protovalidate import Validator

from kronos_db.runtime.errors import Answer, BadRequestError, Code, FieldViolation, KronosError
from kronos_db.runtime.interceptors.call import Call, Step
from kronos_db.runtime.interceptors.chain import Message
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.interceptors.text import find_invalid_utf8, find_nul


class MessageTooLargeError(KronosError):
    """The request is larger than the method takes."""


class MalformedMessageError(BadRequestError):
    """The bytes of the request are not a message of its type."""


VALIDATION_ERRORS: Mapping[type[KronosError], Answer] = {
    MessageTooLargeError: Answer(
        Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", "The request has {size} bytes; this method takes {limit}."
    ),
    MalformedMessageError: Answer(
        Code.INVALID_ARGUMENT, "MESSAGE_MALFORMED", "The bytes of the request are not a message of its type."
    ),
}


class Validation:
    """Enforces the protovalidate rules of the contract, and two that hold for every text: valid UTF-8 and no U+0000.

    `max_bytes` bounds a request message; gRPC's own limit lies above it and gives no reason.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._validator = Validator()

    def request(self, method: Method) -> Step:
        """Decode and check."""
        limit = method.terms.most_bytes or self._max_bytes
        checks_text = method.terms.checks_text
        decode = method.request_class.FromString
        # Without rules it would still take the message apart to look for some.
        collect = self._validator.collect_violations if has_rules(method.request) else _no_violations
        # Compiles the rules now, so that a rule that does not compile stops the start.
        collect(method.request_class())

        def step(raw: bytes, _call: Call) -> Message:
            if len(raw) > limit:
                raise MessageTooLargeError(metadata={"size": str(len(raw)), "limit": str(limit)})
            try:
                message = decode(raw)
            except DecodeError as error:
                raise _malformed(method, raw) from error
            violations = collect(message)
            if violations:
                raise BadRequestError("rules of the contract", violations=[_violation(item) for item in violations])
            # U+0000 is valid UTF-8 but PostgreSQL refuses it in text; the search in the raw bytes costs next to
            # nothing.
            if not checks_text and b"\0" in raw and (field := find_nul(message)):
                raise BadRequestError.of(field, "must not contain U+0000")
            return message

        return step

    def response(self, _method: Method) -> None:
        """Nothing to do: answers are made by us."""


def has_rules(descriptor: Descriptor) -> bool:
    """Tell whether the contract states a rule for a message type, or for one that it may hold."""
    found: dict[str, Descriptor] = {descriptor.full_name: descriptor}
    waiting = [descriptor]
    while waiting:
        message = waiting.pop()
        options = [message.GetOptions(), *(part.GetOptions() for part in (*message.fields, *message.oneofs))]
        if any(field.full_name.startswith("buf.validate.") for each in options for field, _ in each.ListFields()):
            return True
        for field in message.fields:
            below = field.message_type
            if below is not None and below.full_name not in found:
                found[below.full_name] = below
                waiting.append(below)
    return False


def _no_violations(_message: Message) -> Sequence[Any]:
    return ()


def _malformed(method: Method, raw: bytes) -> MalformedMessageError:
    field = find_invalid_utf8(method.request, raw)
    if field:
        return MalformedMessageError(violations=[FieldViolation(field, "must be valid UTF-8")])
    return MalformedMessageError(metadata={"type": method.request.full_name})


def _violation(violation: Any) -> FieldViolation:
    proto = violation.proto
    return FieldViolation(_path(proto.field.elements if proto.field else ()), proto.message or proto.rule_id)


def _path(elements: Iterable[Any]) -> str:
    """Return a field path as `users[3].email`, map keys in quotes as in `labels["a"]`."""
    path = ""
    for element in elements:
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is None:
            continue
        key = element.subscript.value
        path += f'["{key}"]' if isinstance(key, str) else f"[{key}]"
    return path
