"""What can go wrong with a statement of AdminService.Query, and the limits that it runs under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kronos_db.runtime.errors import Answer, Code, FieldViolation, KronosError


class StatementRefusedError(KronosError):
    """A rule does not let the statement run.

    `rule` names it; `position` counts the characters of the statement from 1, 0 when it is not at one place.
    """

    def __init__(self, rule: str, what: str, position: int = 0) -> None:
        super().__init__(
            # What it says may quote what was asked for: not for the log.
            f"refused by rule {rule}",
            metadata={"rule": rule, "what": what, "position": str(position)},
            violations=[FieldViolation("sql", what)],
        )
        self.rule = rule
        self.position = position


class StatementFailedError(KronosError):
    """PostgreSQL cannot make sense of the statement, or failed while it ran; `sqlstate` says how."""

    def __init__(self, sqlstate: str, what: str, position: int = 0) -> None:
        super().__init__(
            # As above, and values of rows too.
            f"PostgreSQL says {sqlstate}",
            metadata={"sqlstate": sqlstate, "what": what, "position": str(position)},
            violations=[FieldViolation("sql", what)],
        )


class NotReadableError(KronosError):
    """The statement reads, or does, what the role of queries has no right to."""

    def __init__(self, what: str) -> None:
        super().__init__(what, metadata={"rule": "rights", "what": what})


class TooCostlyError(KronosError):
    """PostgreSQL expects the statement to cost more than is allowed."""

    def __init__(self, cost: float, limit: float) -> None:
        super().__init__(metadata={"rule": "cost", "cost": f"{cost:.0f}", "limit": f"{limit:.0f}"})


class QueryTimeoutError(KronosError):
    """The statement did not end within its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(metadata={"rule": "time", "seconds": f"{seconds:g}"})


class QueryTooLargeError(KronosError):
    """A value, or what is set aside on disk for the statement, is larger than it may be."""

    def __init__(self, what: str) -> None:
        super().__init__(what, metadata={"rule": "size", "what": what})


class QueryRoleError(KronosError):
    """The role of queries may do more than it must, or is not there."""

    def __init__(self, what: str) -> None:
        super().__init__(what, metadata={"what": what})


QUERY_ERRORS: Mapping[type[KronosError], Answer] = {
    StatementRefusedError: Answer(
        Code.INVALID_ARGUMENT, "QUERY_REFUSED", "Rule {rule} does not let this statement run: {what}."
    ),
    StatementFailedError: Answer(
        Code.INVALID_ARGUMENT, "QUERY_FAILED", "PostgreSQL does not run this statement ({sqlstate}): {what}."
    ),
    NotReadableError: Answer(Code.PERMISSION_DENIED, "QUERY_NOT_READABLE", "Queries have no right to this: {what}."),
    TooCostlyError: Answer(
        Code.FAILED_PRECONDITION,
        "QUERY_TOO_COSTLY",
        "PostgreSQL expects a cost of {cost} of this statement, and {limit} is allowed.",
    ),
    QueryTimeoutError: Answer(
        Code.DEADLINE_EXCEEDED, "QUERY_TIMEOUT", "The statement did not end within {seconds} seconds."
    ),
    QueryTooLargeError: Answer(
        Code.FAILED_PRECONDITION, "QUERY_TOO_LARGE", "The statement needs too much room: {what}."
    ),
    QueryRoleError: Answer(
        Code.FAILED_PRECONDITION, "QUERY_ROLE_UNFIT", "The role of queries is not as it must be: {what}."
    ),
}


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What one statement may take: seconds, estimated cost, rows, bytes of all rows and of one."""

    seconds: float
    cost: float
    rows: int
    bytes: int
    row_bytes: int = 1 << 20
