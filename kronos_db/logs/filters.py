"""Filters: read from the contract, and applied to records that a tail is told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kronos.logs.v1 import logs_pb2 as pb

from kronos_db.logs.intake import without_nul
from kronos_db.logs.keys import Keys
from kronos_db.logs.model import Filter, Record, RefusedError
from kronos_db.logs.values import Spelling, index_of
from kronos_db.runtime.crypto.sealing import Sealer
from kronos_db.runtime.errors import BadRequestError

_LONGEST_VALUE = 4096


@dataclass(frozen=True, slots=True)
class Filters:
    """Reads filters: values are spelled as intake spells those that they are to match."""

    keys: Keys
    sealer: Sealer

    def read(self, request: pb.LogFilter) -> Filter:
        """Return what a filter asks for. Raises BadRequestError."""
        entries: dict[str, str] = {}
        present: list[str] = []
        absent: list[str] = []
        for index, condition in enumerate(request.attributes):
            where = f"filter.attributes[{index}]"
            if condition.WhichOneof("condition") == "exists":
                (present if condition.exists else absent).append(condition.key)
            elif condition.key in entries:
                raise BadRequestError.of(f"{where}.key", "is asked for twice")
            else:
                entries[condition.key] = self._spelled(condition, where)
        attributes = ",".join(f"{json.dumps(key)}:{value}" for key, value in entries.items())
        return Filter(
            service=request.service or None,
            minimum_severity=request.minimum_severity or None,
            maximum_severity=request.maximum_severity or None,
            trace_id=request.trace_id.lower() or None,
            span_id=request.span_id.lower() or None,
            event_name=request.event_name or None,
            attributes=f"{{{attributes}}}" if attributes else None,
            present=tuple(present),
            absent=tuple(absent),
            body_contains=request.body_contains or None,
        )

    def _spelled(self, condition: pb.AttributeCondition, where: str) -> str:
        special = self.keys.special(condition.key)
        if special is not None and "redacted" in special.treatments:
            raise BadRequestError.of(f"{where}.key", "is redacted and cannot be asked for")
        try:
            text = without_nul(Spelling(self.keys, self.sealer, "").value(condition.equals, 1), "")
        except RefusedError as refused:
            raise BadRequestError.of(f"{where}.equals", refused.description) from None
        if len(text) > _LONGEST_VALUE:
            raise BadRequestError.of(f"{where}.equals", f"must not be longer than {_LONGEST_VALUE} characters as JSON")
        if special is not None and "sealed" in special.treatments:
            return json.dumps({"$index": self.sealer.blind_index(text, index_of(special.name))})
        return text


def matches(record: Record, wanted: Filter) -> bool:
    """Tell whether a record is one of those meant, as the queries decide it."""
    if (
        (wanted.service is not None and record.service != wanted.service)
        or (wanted.minimum_severity is not None and record.severity < wanted.minimum_severity)
        or (wanted.maximum_severity is not None and record.severity > wanted.maximum_severity)
        or (wanted.trace_id is not None and record.trace_id != wanted.trace_id)
        or (wanted.span_id is not None and record.span_id != wanted.span_id)
        or (wanted.event_name is not None and record.event_name != wanted.event_name)
        or (wanted.body_contains is not None and wanted.body_contains not in (record.body or ""))
    ):
        return False
    if wanted.attributes is None and not wanted.present and not wanted.absent:
        return True
    attributes = json.loads(record.attributes)
    return (
        (wanted.attributes is None or contains(attributes, _parsed(wanted.attributes)))
        and all(key in attributes for key in wanted.present)
        and not any(key in attributes for key in wanted.absent)
    )


def contains(whole: Any, part: Any) -> bool:
    """Tell whether one JSON value contains another, as jsonb's `@>` does below the top level."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], part[key]) for key in part)
    if isinstance(part, list):
        return isinstance(whole, list) and all(any(contains(item, each) for item in whole) for each in part)
    # True is 1 to Python.
    return isinstance(whole, bool) == isinstance(part, bool) and bool(whole == part)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Any:
    return json.loads(text)
