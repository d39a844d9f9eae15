"""Turns records into rows of a COPY: the road that every record goes, so each step of it was weighed.

The messages are those of our contract or of OTLP. They agree in names and meaning but for times and ids, which are
read apart. docs/decisions/0013-logs.md has what a record takes, and what was left out.
"""

from __future__ import annotations

import hmac
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from json.encoder import encode_basestring
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from kronos_db.logs.keys import Keys
from kronos_db.logs.model import (
    DAY,
    EARLY,
    LATEST,
    MINUTE,
    SECOND,
    SEVERITIES,
    Batch,
    Count,
    Origin,
    Refusal,
    RefusedError,
    Retention,
)
from kronos_db.logs.values import MOST_ATTRIBUTES, SCALARS, Spelling
from kronos_db.runtime.crypto.sealing import Index, Sealer
from kronos_db.runtime.identifiers import uuid7_text

SUBJECT = Index("logs.subject")
# Characters of a record as it is stored.
_LARGEST = 256 * 1024
_NULL = "\\N"
_TRACE_DIGITS, _SPAN_DIGITS = 32, 16
_NO_TRACE, _NO_SPAN = "0" * _TRACE_DIGITS, "0" * _SPAN_DIGITS
_NO_TRACE_BYTES, _NO_SPAN_BYTES = bytes(16), bytes(8)
_is_hexadecimal = re.compile("[0-9a-fA-F]*").fullmatch
# U+0000 as JSON escapes it, and not a backslash that is followed by u0000.
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# What PostgreSQL's text format escapes.
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
# Origins that a process remembers, and for how many seconds: then it notes again that they are in use.
_REMEMBERED = 4096
_NOTED_FOR = 3600.0
_SHORT_TEXTS, _SHORT = 10_000, 256


class Known(NamedTuple):
    """An origin that this process has noted: its id, its service, and time.monotonic() until which that holds."""

    id: str
    service: str
    until: float


# What a record says of when and where in a trace it happened, 0 and "" for what it does not say: time, observed time,
# trace id, span id, flags, dropped attributes, severity. No NamedTuple: that takes twice as long.
Moments: TypeAlias = tuple[int, int, str, str, int, int, int]


class Intake:
    """What one process needs to take records in. `key` makes the ids of origins."""

    def __init__(self, keys: Keys, sealer: Sealer, key: bytes) -> None:
        self.keys = keys
        self.sealer = sealer
        self._key = key
        self._origins: OrderedDict[bytes, Known] = OrderedDict()
        self._lock = threading.Lock()
        # Records of batches that were answered.
        self.stored = 0
        self.refused = 0
        # Columns of texts of which there are few.
        self.texts: dict[str, str] = {"": _NULL}

    def begin(self, retention: Retention) -> Taking:
        """Begin a batch."""
        return Taking(self, retention)

    def noted(self, batch: Batch) -> None:
        """Take note that a batch was committed, and the origins that it brought with it."""
        with self._lock:
            self.stored += len(batch.rows)
            self.refused += len(batch.refusals)
        until = time.monotonic() + _NOTED_FOR
        for origin in batch.origins.values():
            self._origins[UUID(origin.id).bytes] = Known(origin.id, origin.service, until)
            if len(self._origins) > _REMEMBERED:
                self._origins.popitem(last=False)

    def known(self, digest: bytes) -> Known | None:
        """Return an origin that need not be noted again."""
        found = self._origins.get(digest)
        return found if found is not None and found.until > time.monotonic() else None

    def digest(self, *parts: bytes) -> bytes:
        """Return a keyed hash of 16 bytes over `parts`."""
        framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._key, framed, "sha256")[:16]

    def short(self, text: str) -> str:
        """Return a text of which there are few as a column, and remember that."""
        column = escaped(text)
        if len(self.texts) < _SHORT_TEXTS and len(text) < _SHORT:
            self.texts[text] = column
        return column


def escaped(text: str) -> str:
    """Return `text` as PostgreSQL's text format has it."""
    return text.translate(_ESCAPES)


class Taking:
    """A batch while it is made: `add` origin by origin, then `done`."""

    def __init__(self, intake: Intake, retention: Retention) -> None:
        self.batch = Batch(uuid7_text())
        self._intake = intake
        self._retention = retention
        # Looked up once here, and not for each record.
        self._name = self.batch.id
        self._plain = intake.keys.plain
        self._texts = intake.texts
        self._now = time.time_ns()
        self._next = 0
        # Of each service: how many records, by minute and severity in one number.
        self._counts: dict[str, dict[int, int]] = {}

    @property
    def taken(self) -> int:
        """How many records were offered so far."""
        return self._next

    def origin(self, content: Sequence[bytes], make: Callable[[str, Spelling], Origin]) -> Origin | Known:
        """Return the origin with this content, which `make` makes when this process has not met it of late."""
        digest = self._intake.digest(*content)
        known = self._intake.known(digest)
        if known is not None:
            return known
        name = str(UUID(bytes=digest))
        origin = make(name, Spelling(self._intake.keys, self._intake.sealer, name))
        self.batch.origins[name] = origin
        return origin

    def add(self, origin: Origin | Known, records: Iterable[Any], read: Callable[[Any], Moments]) -> None:
        """Add the records of one origin; those that break a rule are among the refusals."""
        keep = self._retention.days(origin.service)
        where = f"\t{escaped(origin.service)}\t{origin.id}\t"
        counts = self._counts.setdefault(origin.service, {})
        rows, parts, refusals = self.batch.rows, self.batch.parts, self.batch.refusals
        index = self._next
        for record in records:
            try:
                rows.append(self._row(record, index, read(record), keep, where, counts))
                parts.append(index)
            except RefusedError as refused:
                refusals.append(Refusal(index, refused.reason, refused.where, refused.description))
            index += 1
        self._next = index

    def refuse(self, count: int, refused: RefusedError) -> None:
        """Refuse so many records, whose origin breaks a rule."""
        for index in range(self._next, self._next + count):
            self.batch.refusals.append(Refusal(index, refused.reason, refused.where, refused.description))
        self._next += count

    def done(self) -> Batch:
        """Return the batch."""
        for service, counts in self._counts.items():
            keep = self._retention.days(service)
            for key, count in counts.items():
                minute, severity = divmod(key, SEVERITIES)
                self.batch.counts.append(Count(minute, service, severity, keep[severity], count))
        return self.batch

    def _row(  # noqa: PLR0917  # called for each record: names would cost
        self, record: Any, index: int, moments: Moments, keep: Sequence[int], where: str, counts: dict[int, int]
    ) -> str:
        when, observed, trace_id, span_id, flags, dropped, severity = moments
        if not 0 <= severity < SEVERITIES:
            raise RefusedError("SEVERITY_OUT_OF_RANGE", ".severity", f"must be 0 to {SEVERITIES - 1}")
        if not (0 <= when <= LATEST and 0 <= observed <= LATEST):
            field = ".time" if not 0 <= when <= LATEST else ".observed_time"
            raise RefusedError("TIME_OUT_OF_RANGE", field, "must be from 1970 to 2262")
        days = keep[severity]
        filed = when or observed or self._now
        # Where no partition is, it is filed under its arrival.
        if not self._now - days * DAY <= filed < self._now + EARLY:
            filed = self._now
        attributes, subject = self._attributes(record.attributes, index)
        body, structured = record.body.string_value, "f"
        if not body:
            body, structured = self._body(record.body, index)
        elif "\\" in body or "\n" in body or "\t" in body or "\r" in body:
            body = body.translate(_ESCAPES)
        level, event = record.severity_text, record.event_name
        texts = self._texts
        level = texts.get(level) or self._intake.short(level)
        event = texts.get(event) or self._intake.short(event)
        row = (
            f"{self._name}\t{index}\t{days}\t{severity}\t{filed}\t{_NULL if when == filed or not when else when}\t"
            f"{observed or _NULL}{where}{trace_id or _NULL}\t{span_id or _NULL}\t{flags}\t{dropped}\t"
            f"{level}\t{event}\t{structured}\t{body}\t{attributes}\t{subject}\n"
        )
        if len(row) > _LARGEST:
            raise RefusedError("RECORD_TOO_LARGE", "", f"must not take more than {_LARGEST // 1024} KiB")
        if "\0" in row:
            raise RefusedError("TEXT_HAS_NUL", "", "must not contain U+0000")
        counted = filed // MINUTE * SEVERITIES + severity
        counts[counted] = counts.get(counted, 0) + 1
        return row

    def _attributes(self, attributes: Iterable[Any], index: int) -> tuple[str, str]:
        """Return the attributes of a record and its subject, as columns."""
        plain = self._plain
        spelling = None
        entries = []
        for attribute in attributes:
            begin = plain.get(attribute.key)
            if begin is not None:
                value = attribute.value
                # What most values are: asked for first, since `WhichOneof` takes longer.
                text = value.string_value
                if text:
                    entries.append(begin + encode_basestring(text))
                    continue
                spell = SCALARS.get(value.WhichOneof("value"))
                if spell is not None:
                    entries.append(begin + spell(value))
                    continue
            if spelling is None:
                spelling = self._spelling(index)
            entries.append(self._entry(spelling, attribute, len(entries)))
        if len(entries) > MOST_ATTRIBUTES:
            raise RefusedError("TOO_MANY_ATTRIBUTES", ".attributes", f"must be {MOST_ATTRIBUTES} at most")
        text = f"{{{','.join(entries)}}}"
        if "\\" in text:
            text = without_nul(text, ".attributes").replace("\\", "\\\\")
        if spelling is None or spelling.subject is None:
            return text, _NULL
        return text, self._intake.sealer.blind_index(spelling.subject, SUBJECT)

    def _entry(self, spelling: Spelling, attribute: Any, index: int) -> str:
        try:
            return spelling.entry(attribute, 1)
        except RefusedError as refused:
            where = f".attributes[{index}]{refused.where}"
            raise RefusedError(refused.reason, where, refused.description) from None

    def _body(self, body: Any, index: int) -> tuple[str, str]:
        """Return a body that is empty or no text as a column, and whether it is structured."""
        kind = body.WhichOneof("value")
        if kind is None or kind == "string_value":
            return (_NULL if kind is None else ""), "f"
        try:
            spelled = self._spelling(index).value(body, 1)
        except RefusedError as refused:
            raise RefusedError(refused.reason, f".body{refused.where}", refused.description) from None
        return without_nul(spelled, ".body").replace("\\", "\\\\"), "t"

    def _spelling(self, index: int) -> Spelling:
        return Spelling(self._intake.keys, self._intake.sealer, f"{self.batch.id}-{index}")


def without_nul(text: str, where: str) -> str:
    """Return JSON text that has no U+0000 in it. Raises RefusedError."""
    if "\\u0000" in text and _ESCAPED_NUL.search(text):
        raise RefusedError("TEXT_HAS_NUL", where, "must not contain U+0000")
    return text


def attributes_of(attributes: Sequence[Any], spelling: Spelling, where: str) -> str:
    """Return the attributes of an origin as JSON text. Raises RefusedError."""
    if len(attributes) > MOST_ATTRIBUTES:
        raise RefusedError("TOO_MANY_ATTRIBUTES", where, f"must be {MOST_ATTRIBUTES} at most")
    entries = []
    for index, attribute in enumerate(attributes):
        try:
            entries.append(spelling.entry(attribute, 1))
        except RefusedError as refused:
            raise RefusedError(refused.reason, f"{where}[{index}]{refused.where}", refused.description) from None
    text = without_nul(f"{{{','.join(entries)}}}", where)
    if len(text) > _LARGEST:
        raise RefusedError("RECORD_TOO_LARGE", where, f"must not take more than {_LARGEST // 1024} KiB")
    return text


def read_otlp(record: Any) -> Moments:
    """Read what OTLP says in its own way: nanoseconds, and ids as bytes."""
    trace_id, span_id = record.trace_id, record.span_id
    if trace_id:
        if len(trace_id) * 2 != _TRACE_DIGITS:
            raise RefusedError("TRACE_ID_INVALID", ".trace_id", "must have 16 bytes")
        trace_id = "" if trace_id == _NO_TRACE_BYTES else trace_id.hex()
    if span_id:
        if len(span_id) * 2 != _SPAN_DIGITS:
            raise RefusedError("SPAN_ID_INVALID", ".span_id", "must have 8 bytes")
        span_id = "" if span_id == _NO_SPAN_BYTES else f"\\\\x{span_id.hex()}"
    return (
        record.time_unix_nano,
        record.observed_time_unix_nano,
        trace_id or "",
        span_id or "",
        record.flags,
        record.dropped_attributes_count,
        record.severity_number,
    )


def read_ours(record: Any) -> Moments:
    """Read what our contract says in its own way: Timestamps, and ids as hexadecimal digits."""
    trace_id, span_id = record.trace_id, record.span_id
    if trace_id:
        if len(trace_id) != _TRACE_DIGITS or not _is_hexadecimal(trace_id):
            raise RefusedError("TRACE_ID_INVALID", ".trace_id", f"must be {_TRACE_DIGITS} hexadecimal digits")
        trace_id = "" if trace_id == _NO_TRACE else trace_id
    if span_id:
        if len(span_id) != _SPAN_DIGITS or not _is_hexadecimal(span_id):
            raise RefusedError("SPAN_ID_INVALID", ".span_id", f"must be {_SPAN_DIGITS} hexadecimal digits")
        span_id = "" if span_id == _NO_SPAN else f"\\\\x{span_id}"
    moment, observed = record.time, record.observed_time
    nanos, observed_nanos = moment.nanos, observed.nanos
    if not (0 <= nanos < SECOND and 0 <= observed_nanos < SECOND):
        raise RefusedError("TIME_OUT_OF_RANGE", ".time", "must have nanos of 0 to 999999999")
    return (
        moment.seconds * SECOND + nanos,
        observed.seconds * SECOND + observed_nanos,
        trace_id,
        span_id,
        record.trace_flags,
        record.dropped_attributes,
        record.severity,
    )
