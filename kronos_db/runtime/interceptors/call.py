"""What the chain knows of one call, handed from interceptor to interceptor and to the handler."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar
from uuid import UUID

import grpc
from google.protobuf.message import Message

from kronos_db.runtime.database.idempotency import Mutation, Result
from kronos_db.runtime.errors import OverloadedError
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.parking import Parked
from kronos_db.runtime.tracing import Trace

Answer = TypeVar("Answer", bound=Message)
# What passes each message of a call on its way: returns it, or another in its place, and refuses by raising.
Step: TypeAlias = "Callable[[Any, Call], Any]"


class Standby(Protocol):
    """The room that calls take up while they wait without a thread, in place of that of calls that run."""

    def leave(self) -> bool:
        """Move a call to those that wait; return False when there is no room."""

    def back(self) -> None:
        """Move it back."""


class Call:
    """One call on its way through the chain.

    Handlers get it in place of grpc's context: it cannot abort, since they raise exceptions of their own instead.
    """

    __slots__ = (
        "audit_id",
        "caller",
        "capabilities",
        "code",
        "context",
        "deadline",
        "fingerprint",
        "metadata",
        "method",
        "request_id",
        "request_id_window",
        "sealed",
        "standby",
        "started",
        "taken",
        "trace",
        "validate_only",
        "waited",
        "waiting",
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
        # Where it stands in a trace; None when its caller names none and none is recorded.
        self.trace: Trace | None = None
        # Who calls, as the access policy names it; empty until authentication.
        self.caller = ""
        # What the access policy grants it beside the method.
        self.capabilities: frozenset[str] = frozenset()
        # The canonical code that the call ended with.
        self.code = "OK"
        # time.monotonic() at which the caller stops waiting; None when it never does.
        self.deadline: float | None = None
        # Names the call in the record of calls, once it stands there as begun.
        self.audit_id: UUID | None = None
        # Of a mutating call: its `request_id` field, a keyed hash of the body if that is given, and what else decides
        # how its answer is kept.
        self.fingerprint = b""
        self.write_id: UUID | None = None
        self.validate_only = False
        self.request_id_window = 0.0
        # What the handler sealed for its answer, by the sealed form: the chain need not open it.
        self.sealed: dict[str, str] = {}
        # Of a call that may wait without a thread: its room, whether it waits, and what its handler left for later.
        self.standby: Standby | None = None
        self.waiting = False
        self.waited: Any = None

    @staticmethod
    def of(context: object) -> Call:
        """Return the Call that the chain handed to a handler as its context."""
        if not isinstance(context, Call):
            raise TypeError("handlers run in the chain alone")
        return context

    def identify(self, request_id: UUID, fingerprint: bytes, window: float) -> None:
        """Say which call this is, for a method whose request has no `request_id`: a repeat is known by its content."""
        self.write_id = request_id
        self.fingerprint = fingerprint
        self.request_id_window = window

    def may(self, capability: str) -> bool:
        """Tell whether the access policy grants the caller a capability: `may` of the access file."""
        return capability in self.capabilities

    def step_aside(self, parked: Parked) -> NoReturn:
        """Wait without a thread until `parked` is woken: then the call runs anew. Raises OverloadedError."""
        if self.standby is None or not self.standby.leave():
            raise OverloadedError("as many calls wait as may", retry_after=1.0)
        self.waiting = True
        parked.step_aside()

    def come_back(self) -> None:
        """Take note that the call is run, for the first time or after it had stepped aside."""
        if self.waiting and self.standby is not None:
            self.waiting = False
            self.standby.back()

    def mutation(
        self,
        answer: type[Answer],
        reply: Callable[[Result], Answer],
        encode: Callable[[Any], bytes] | None = None,
        decode: Callable[[bytes], Any] | None = None,
    ) -> Mutation[Result, Answer]:
        """Return what the database needs to answer this mutating call once; `reply` makes the answer of a result.

        `encode` and `decode` keep the answer in another form than its own.
        """
        return Mutation(
            caller=self.caller,
            request_id=self.write_id,
            fingerprint=self.fingerprint,
            reply=reply,
            encode=encode or _encode,
            decode=decode or answer.FromString,
            window=self.request_id_window,
            validate_only=self.validate_only,
        )


def _encode(answer: Any) -> bytes:
    encoded: bytes = answer.SerializeToString()
    return encoded
