"""Whom the thread or greenlet at hand works for: what its log lines name, and where in a trace its work belongs.

The trace of a call is told as W3C's Trace Context says (https://www.w3.org/TR/trace-context/). What is done for a call
becomes a span below the call's own; what is done for several at once stands alone and is linked with each of them.
OpenTelemetry is imported by `runtime/tracing_otlp.py` alone, and that only where traces are on: here they cost a look
at one variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol, TypeAlias

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
Value: TypeAlias = str | int | float
Attributes: TypeAlias = Mapping[str, Value]

# Later versions may add parts behind a dash; version ff is none.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1
_FIRST_VERSION = "00"


class Place(NamedTuple):
    """Where a caller stands in a trace; the ids in lower-case hexadecimal, `state` as its vendors wrote it."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""


class Span(Protocol):
    """Something that takes time and is recorded."""

    @property
    def place(self) -> Place:
        """Where it stands."""

    def child(self, name: str, attributes: Attributes, *, calls_out: bool) -> Span:
        """Begin a part of it; `calls_out` when another server does it."""

    def joined(self, others: Sequence[Span]) -> Span:
        """Return what stands for it and `others` together: children of that are linked with all of them."""

    def set(self, attributes: Attributes) -> None:
        """Say more about it."""

    def fail(self, kind: str) -> None:
        """Take note that it failed: `kind` is an error's code or class, never its text."""

    def end(self) -> None:
        """Take note that it is over."""


class Tracer(Protocol):
    """Records what calls do."""

    def start(self, method: str, caller: Place | None) -> Trace:
        """Begin the span of a call, below the caller's."""

    def stop(self, limit: float) -> None:
        """Send what was recorded, and give up after `limit` seconds."""


class Trace(NamedTuple):
    """Where a call stands in a trace; `span` is None when it is not recorded."""

    trace_id: str
    span_id: str
    span: Span | None = None


class Subject(Protocol):
    """A call that is worked for, or several."""

    @property
    def request_id(self) -> str:
        """Names it in logs."""

    @property
    def trace(self) -> Trace | None:
        """Where it stands in a trace, if it does."""


# None for work in the background.
current: ContextVar[Subject | None] = ContextVar("subject", default=None)


class _Part(NamedTuple):
    """A part of what is done for a call, or for several of which `request_id` is one."""

    request_id: str
    trace: Trace | None
    calls: int = 1


def read(headers: Mapping[str, str | bytes]) -> Place | None:
    """Return where a caller stands by its headers; None when it does not say so, or not as it should."""
    found = headers.get(TRACEPARENT)
    match = _TRACEPARENT.fullmatch(found) if isinstance(found, str) else None
    if match is None or (match[1] == _FIRST_VERSION and match[5]):
        return None
    state = headers.get(TRACESTATE, "")
    return Place(match[2], match[3], bool(int(match[4], 16) & _SAMPLED), state if isinstance(state, str) else "")


def of_caller(headers: Mapping[str, str | bytes]) -> Trace | None:
    """Return the trace that a caller names, in which nothing is recorded here."""
    place = read(headers)
    return None if place is None else Trace(place.trace_id, place.span_id)


def span() -> Span | None:
    """Return the span of what is at hand; None when nobody records it."""
    subject = current.get()
    return None if subject is None or subject.trace is None else subject.trace.span


def together(subjects: Sequence[Subject | None]) -> Subject | None:
    """Return what stands for all of `subjects`, for whom one thing is done."""
    known = [subject for subject in subjects if subject is not None]
    if len(known) <= 1:
        return known[0] if known else None
    first, traces = known[0], [subject.trace for subject in known if subject.trace is not None]
    spans = [trace.span for trace in traces if trace.span is not None]
    joined = spans[0].joined(spans[1:]) if spans else None
    trace = traces[0]._replace(span=joined) if traces else None
    return _Part(first.request_id, trace, len(known))


@contextmanager
def within(name: str, attributes: Attributes, *, calls_out: bool = True) -> Iterator[Span | None]:
    """Record the block as a part of what is at hand, if that is recorded: then give its span."""
    subject, parent = current.get(), span()
    if subject is None or parent is None:
        yield None
        return
    part = parent.child(name, attributes, calls_out=calls_out)
    place = part.place
    token = current.set(_Part(subject.request_id, Trace(place.trace_id, place.span_id, part)))
    try:
        yield part
    except BaseException as error:
        part.fail(_kind_of(error))
        raise
    finally:
        current.reset(token)
        part.end()


def names() -> dict[str, Value]:
    """Return the fields by which log lines name what is at hand; `calls` when it is done for several."""
    subject = current.get()
    if subject is None:
        return {}
    fields: dict[str, Value] = {"request_id": subject.request_id}
    if subject.trace is not None:
        fields |= {"trace_id": subject.trace.trace_id, "span_id": subject.trace.span_id}
    calls = getattr(subject, "calls", 1)
    return fields if calls == 1 else {**fields, "calls": calls}


def _kind_of(error: BaseException) -> str:
    """Return the SQLSTATE of an error of PostgreSQL, of others their class: texts may hold values."""
    return getattr(error, "sqlstate", None) or type(error).__name__
