"""What can go wrong, as exceptions, and the one table that gives each its answer to the caller."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# `google.rpc.ErrorInfo.domain` of every error of this server (AIP-193).
ERROR_DOMAIN = "db.kronos"


class Code(enum.IntEnum):
    """The canonical codes of google.rpc.Code that this server answers with."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One fault in a request: the path of the field as the contract spells it, and what is wrong with it."""

    field: str
    description: str


class KronosError(Exception):
    """Base of every exception that has an answer of its own.

    `metadata` holds what is dynamic in the answer's sentence (AIP-193) and must be safe to show. `violations` name
    fields of the request. `retry_after` is in seconds. The exception's own text is for the log alone.
    """

    def __init__(
        self,
        detail: str = "",
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[FieldViolation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail or type(self).__doc__ or type(self).__name__)
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller gets for an exception. `sentence` may name keys of the exception's metadata in braces."""

    code: Code
    reason: str
    sentence: str


class ErrorTable:
    """Every exception of the server with its answer."""

    def __init__(self, *parts: Mapping[type[KronosError], Answer]) -> None:
        rows: dict[type[KronosError], Answer] = {}
        for part in parts:
            for kind, answer in part.items():
                if kind in rows:
                    raise ValueError(f"{kind.__name__} has two answers")
                rows[kind] = answer
        self.rows: Mapping[type[KronosError], Answer] = rows

    def answer(self, error: BaseException) -> Answer:
        """Return the answer of the nearest class of `error`, or that of an unknown exception."""
        for kind in type(error).__mro__:
            found = self.rows.get(kind)
            if found is not None:
                return found
        return UNKNOWN


class BadRequestError(KronosError):
    """The request breaks a rule of the contract."""

    @classmethod
    def of(cls, field: str, description: str) -> BadRequestError:
        """Return the error of one field at fault."""
        return cls(f"{field}: {description}", violations=[FieldViolation(field, description)])


class PageTokenError(BadRequestError):
    """The page token was not made by this listing with these filters."""


class ResumeTokenError(BadRequestError):
    """The resume token was not made by this stream."""


class RequestIdReusedError(BadRequestError):
    """The request id was used before with another body."""


class UnauthenticatedError(KronosError):
    """The caller showed no credential, or one that is not known."""


class PermissionDeniedError(KronosError):
    """The caller is known but may not call this method."""


class OverloadedError(KronosError):
    """A bounded queue or limit is full."""


class TooManyStreamsError(KronosError):
    """The caller holds as many streams in this process as one caller may."""


class WatchTooSlowError(KronosError):
    """Who watches took nothing for long, though messages waited."""


class ShuttingDownError(KronosError):
    """The process is about to end."""


class DeadlineTooShortError(KronosError):
    """What is left of the caller's deadline is too short to begin."""


class UnavailableError(KronosError):
    """A part that the call needs is away."""


class ConflictError(KronosError):
    """Concurrent writes kept colliding until the attempts were used up."""


class StatementTimeoutError(KronosError):
    """A statement ran into its time limit."""


class PositionLostError(KronosError):
    """Changes after the position of a watcher were removed already, or it is of another history of the database."""


class SealBrokenError(KronosError):
    """A sealed value does not open: it was moved, altered, or its key is gone."""


class KeyUnavailableError(KronosError):
    """A key that is needed cannot be had."""


# The sentence of an unknown exception is fixed: whatever it says stays in the log.
UNKNOWN = Answer(Code.INTERNAL, "INTERNAL", "The server failed; its log has the detail under this request id.")

RUNTIME_ERRORS: Mapping[type[KronosError], Answer] = {
    BadRequestError: Answer(Code.INVALID_ARGUMENT, "BAD_REQUEST", "The request breaks a rule of the contract."),
    PageTokenError: Answer(
        Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID", "The page token is not one of this listing with these filters."
    ),
    ResumeTokenError: Answer(
        Code.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID", "The resume_token is not one of this stream."
    ),
    RequestIdReusedError: Answer(
        Code.INVALID_ARGUMENT, "REQUEST_ID_REUSED", "The request_id was used before with another request."
    ),
    UnauthenticatedError: Answer(
        Code.UNAUTHENTICATED, "CREDENTIAL_INVALID", "A valid bearer token or client certificate is required."
    ),
    PermissionDeniedError: Answer(
        Code.PERMISSION_DENIED, "METHOD_NOT_ALLOWED", "The access policy does not let this caller call {method}."
    ),
    OverloadedError: Answer(Code.RESOURCE_EXHAUSTED, "OVERLOADED", "The server is at its limit; try again later."),
    TooManyStreamsError: Answer(
        Code.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS", "This caller holds {limit} streams, which is as many as it may."
    ),
    WatchTooSlowError: Answer(
        Code.RESOURCE_EXHAUSTED,
        "WATCH_TOO_SLOW",
        "Nothing was read from this stream for too long; watch again with the last resume_token.",
    ),
    ShuttingDownError: Answer(
        Code.UNAVAILABLE, "SHUTTING_DOWN", "The process is about to end; watch again with the last resume_token."
    ),
    DeadlineTooShortError: Answer(
        Code.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT", "What is left of the deadline is too short to begin."
    ),
    UnavailableError: Answer(Code.UNAVAILABLE, "UNAVAILABLE", "A part that this call needs is away; try again."),
    ConflictError: Answer(Code.ABORTED, "CONFLICT", "Concurrent changes kept colliding; try again."),
    StatementTimeoutError: Answer(
        Code.DEADLINE_EXCEEDED, "STATEMENT_TIMEOUT", "The database did not answer within its time limit."
    ),
    PositionLostError: Answer(
        Code.OUT_OF_RANGE,
        "RESUME_TOKEN_EXPIRED",
        "Changes after this resume_token are no longer kept; read everything anew and watch without one.",
    ),
    SealBrokenError: Answer(
        Code.DATA_LOSS, "SEALED_VALUE_INVALID", "A sealed value of field {field} does not open in its record."
    ),
    KeyUnavailableError: Answer(Code.UNAVAILABLE, "KEY_UNAVAILABLE", "A key that this call needs cannot be had."),
}
