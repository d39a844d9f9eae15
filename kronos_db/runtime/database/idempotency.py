"""Makes retries of writes safe: the answer of a write is stored in its own transaction, and a repeat gets it again.

The row is inserted after the write's own statements and together with COMMIT. Its primary key decides between
attempts that overlap: the second one fails as a whole and answers from the row of the first. So an attempt whose
outcome was lost is resolved by simply attempting again.

What no caller can repeat, since it gave no `request_id`, needs no answer but here, where it is at hand: the calls that
are written together leave one row, a receipt, that tells whether their transaction was committed.
docs/decisions/0023-receipts.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

from kronos_db.runtime.database.pool import Connection
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.errors import FieldViolation, RequestIdReusedError

Result = TypeVar("Result")
Reply = TypeVar("Reply")

PRIMARY_KEY = "idempotency_pkey"
# Seconds for which a receipt is kept: longer than all attempts of a write take.
_ATTEMPTS_WINDOW = 600.0
# No caller's name. The fingerprint tells the receipt of a transaction from what stands there to keep it out.
_NOBODY = ""
_RECEIPT, _VOID = b"", b"void"
QUERIES = Path(__file__).with_name("idempotency.sql")


class Mutation(NamedTuple, Generic[Result, Reply]):
    """What is needed to answer a mutating call once.

    `caller` and `request_id` name the call; without `request_id` nobody repeats it. `fingerprint` is a keyed hash over
    method and body. `reply` turns the write's result into the answer, `encode` and `decode` keep it. `window` is in
    seconds. With `validate_only` nothing is kept.
    """

    caller: str
    request_id: UUID | None
    fingerprint: bytes
    reply: Callable[[Result], Reply]
    encode: Callable[[Reply], bytes]
    decode: Callable[[bytes], Reply]
    window: float
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class Earlier(Generic[Reply]):
    """What an earlier attempt of a call answered, and which copies it made old."""

    reply: Reply
    tags: Sequence[str]


class Idempotency:
    """The idempotency table of one domain."""

    def __init__(self, schema: str) -> None:
        self._queries = load_queries(QUERIES, schema)

    def keep(
        self, connection: Connection, mutation: Mutation[Result, Reply], reply: Reply, tags: Sequence[str]
    ) -> None:
        """Queue the row that holds `reply`; the transaction fails on PRIMARY_KEY when the call was answered before."""
        params = {
            "caller": mutation.caller,
            "request_id": mutation.request_id,
            "fingerprint": mutation.fingerprint,
            "reply": mutation.encode(reply),
            "tags": tags,
            "window": mutation.window,
        }
        connection.issue(self._queries["keep"], params)

    def keep_all(
        self,
        connection: Connection,
        receipt: UUID,
        mutations: Sequence[Mutation[Result, Reply]],
        replies: Sequence[Reply],
        tags: Sequence[str],
    ) -> None:
        """Queue the rows that hold those of `replies` that may be asked for again, as `keep` does, and the receipt."""
        rows = [(_NOBODY, receipt.hex, _RECEIPT, b"", _ATTEMPTS_WINDOW)]
        rows += [
            (mutation.caller, mutation.request_id.hex, mutation.fingerprint, mutation.encode(reply), mutation.window)
            for mutation, reply in zip(mutations, replies, strict=True)
            if mutation.request_id is not None
        ]
        if len(rows) == 1:
            connection.issue(self._queries["keep"], _receipt(receipt, _RECEIPT))
            return
        callers, request_ids, fingerprints, encoded, windows = map(list, zip(*rows, strict=True))
        params = {
            "callers": callers,
            # As texts that PostgreSQL takes apart: psycopg would look at each value to make an array of them.
            "request_ids": f"{{{','.join(request_ids)}}}",
            "fingerprints": fingerprints,
            "replies": encoded,
            "tags": tags,
            "windows": f"{{{','.join(map(str, windows))}}}",
        }
        connection.issue(self._queries["keep_all"], params)

    def settle(self, connection: Connection, receipt: UUID) -> bool:
        """Tell whether the transaction with this receipt was committed; if not, it never will be."""
        cursor = connection.issue(self._queries["settle"], _receipt(receipt, _VOID))
        return cursor.fetchall() == [(_RECEIPT,)]

    def recall(self, connection: Connection, mutation: Mutation[Result, Reply]) -> Earlier[Reply] | None:
        """Return the stored answer of this call, or None when it was never answered.

        Raises RequestIdReusedError when the id was used for another request.
        """
        params = {"caller": mutation.caller, "request_id": mutation.request_id}
        row = connection.issue(self._queries["recall"], params).fetchone()
        if row is None:
            return None
        fingerprint, reply, tags = row
        if fingerprint != mutation.fingerprint:
            raise RequestIdReusedError(
                violations=[FieldViolation("request_id", "was used before with another request")]
            )
        return Earlier(mutation.decode(reply), tags)


def _receipt(receipt: UUID, fingerprint: bytes) -> dict[str, Any]:
    return {
        "caller": _NOBODY,
        "request_id": receipt,
        "fingerprint": fingerprint,
        "reply": b"",
        "tags": [],
        "window": _ATTEMPTS_WINDOW,
    }
