"""Cuts batches into portions: what the log of changes names, and what a tail is told in one message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kronos_db.logs.model import Batch

# A batch, and its first and last part.
Portion = tuple[str, int, int]

# What one message of a tail holds, at most: callers take 4 MiB. A message takes up to twice as much as its rows.
_MOST_RECORDS = 500
_MOST_CHARACTERS = 1 << 20


def portions_of(batches: Sequence[Batch]) -> Iterator[list[Portion]]:
    """Yield groups of portions that cover all rows of `batches`, in their order."""
    group: list[Portion] = []
    records = characters = 0
    for batch in batches:
        first: int | None = None
        last = 0
        for row, part in zip(batch.rows, batch.parts, strict=True):
            if records and (records >= _MOST_RECORDS or characters + len(row) > _MOST_CHARACTERS):
                if first is not None:
                    group.append((batch.id, first, last))
                yield group
                group, records, characters, first = [], 0, 0, None
            first = part if first is None else first
            last = part
            records += 1
            characters += len(row)
        if first is not None:
            group.append((batch.id, first, last))
    if group:
        yield group
