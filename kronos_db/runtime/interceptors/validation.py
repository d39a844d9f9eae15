"""Sixth in the chain: decodes the request and holds it against the rules that the contract states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from protovalidate import Validator

from kronos_db.runtime.errors import Answer, BadRequestError, Code, FieldViolation, KronosError
from kronos_db.runtime.interceptors.call import Call, Step
from kronos_db.runtime.interceptors.chain import Message
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.interceptors.rules import RuledTypes, has_rules
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
        self._types = RuledTypes()
        # One for each set of types: it knows them by their names.
        self._validator, self._narrow_validator = Validator(), Validator()

    def request(self, method: Method) -> Step:
        """Decode and check."""
        limit = method.terms.most_bytes or self._max_bytes
        checks_text = method.terms.checks_text
        decode = method.request_class.FromString
        collect, read = self._collector(method)
        # Compiles the rules now, so that a rule that does not compile stops the start.
        collect((read or decode)(b""))

        def step(raw: bytes, _call: Call) -> Message:
            if len(raw) > limit:
                raise MessageTooLargeError(metadata={"size": str(len(raw)), "limit": str(limit)})
            try:
                message = decode(raw)
            except DecodeError as error:
                raise _malformed(method, raw) from error
            violations = collect(message if read is None else read(raw))
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

    def _collector(
        self, method: Method
    ) -> tuple[Callable[[Message], Sequence[Any]], Callable[[bytes], Message] | None]:
        """Return what finds violations in a message, and how that is read from the request if it is another one."""
        if not has_rules(method.request):
            # It would still take the message apart to look for some.
            return _no_violations, None
        narrowed = self._types.narrowed(method.request)
        if narrowed is None:
            return self._validator.collect_violations, None
        return self._narrow_validator.collect_violations, narrowed.FromString


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
