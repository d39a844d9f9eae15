"""What the chain knows of one call, handed from interceptor to interceptor and to the handler."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar
from uuid import UUID, uuid4

import grpc
from google.protobuf.message import Message

from kronos_db.runtime.database.idempotency import Mutation, Result
from kronos_db.runtime.interceptors.method import Method

Answer = TypeVar("Answer", bound=Message)
# What passes each message of a call on its way: returns it, or another in its place, and refuses by raising.
Step: TypeAlias = "Callable[[Any, Call], Any]"

# Seconds for which the answer of a write without request_id is kept: its own attempts alone can ask for it.
_OWN_WINDOW = 600.0


class Call:
    """One call on its way through the chain.

    Handlers get it in place of grpc's context: it cannot abort, since they raise exceptions of their own instead.
    """

    __slots__ = (
        "caller",
        "code",
        "context",
        "deadline",
        "fingerprint",
        "metadata",
        "method",
        "request_id",
        "request_id_window",
        "started",
        "taken",
        "validate_only",
        "write_id",
    )

    def __init__(self, method: Method, context: grpc.ServicerContext) -> None:
        self.method = method
        self.context = context
        self.started = time.perf_counter()
        # time.monotonic() at which a thread took it up; 0 while it waits for one.
        self.taken = 0.0
        self.metadata: dict[str, str | bytes] = dict(context.invocation_metadata() or ())
        # Names the call in logs and in answers; from the caller's x-request-id or made here.
        self.request_id = ""
        # Who calls, as the access policy names it; empty until authentication.
        self.caller = ""
        # The canonical code that the call ended with.
        self.code = "OK"
        # time.monotonic() at which the caller stops waiting; None when it never does.
        self.deadline: float | None = None
        # Of a mutating call: keyed hash of its body, its `request_id` field, and what else decides how it is kept.
        self.fingerprint = b""
        self.write_id: UUID | None = None
        self.validate_only = False
        self.request_id_window = 0.0

    @staticmethod
    def of(context: object) -> Call:
        """Return the Call that the chain handed to a handler as its context."""
        if not isinstance(context, Call):
            raise TypeError("handlers run in the chain alone")
        return context

    def mutation(self, answer: type[Answer], reply: Callable[[Result], Answer]) -> Mutation[Result, Answer]:
        """Return what the database needs to answer this mutating call once; `reply` makes the answer of a result."""
        return Mutation(
            caller=self.caller,
            # A call without request_id gets one of its own: a lost COMMIT is resolved by it all the same.
            request_id=self.write_id or uuid4(),
            fingerprint=self.fingerprint,
            reply=reply,
            encode=_encode,
            decode=answer.FromString,
            window=self.request_id_window if self.write_id else min(self.request_id_window, _OWN_WINDOW),
            validate_only=self.validate_only,
        )


def _encode(answer: Any) -> bytes:
    encoded: bytes = answer.SerializeToString()
    return encoded
