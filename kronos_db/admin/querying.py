"""Takes a statement of an operator through all layers, in their order, and counts what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from kronos_db.admin.guard import check
from kronos_db.admin.query_model import QueryLimits
from kronos_db.admin.query_store import Column, Plan, QueryStore, Reading, Row
from kronos_db.runtime import deadline
from kronos_db.runtime.errors import BadRequestError

Cut = Literal["", "rows", "bytes"]
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Question:
    """A statement, the domain whose database is asked ("" for the common one), and what the caller can do with.

    0 in place of a limit is that of the server; more than the server allows is what it allows.
    """

    text: str
    domain: str = ""
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Result:
    """The rows of a statement, as they come; how many, and whether that was all, is known when they have come."""

    def __init__(self, columns: Sequence[Column], plan: Plan, rows: Iterator[Row], limits: QueryLimits) -> None:
        self.columns = columns
        self.plan = plan
        self.count = 0
        self.bytes = 0
        self.cut: Cut = ""
        self._rows = rows
        self._limits = limits

    def rows(self) -> Iterator[Row]:
        """Yield the rows up to the first limit."""
        for row in self._rows:
            size = sum(len(value.encode()) for value in row if value is not None)
            if self.count == self._limits.rows:
                self.cut = "rows"
            elif self.bytes + size > self._limits.bytes:
                self.cut = "bytes"
            else:
                self.count += 1
                self.bytes += size
                yield row
                continue
            return


class Querying:
    """Runs and explains. `relations` has by the name of a domain what of its database may be read."""

    def __init__(
        self,
        store: QueryStore,
        relations: Mapping[str, frozenset[str]],
        limits: QueryLimits,
        guard: Callable[[str, frozenset[str]], str] = check,
    ) -> None:
        self._store = store
        self._relations = relations
        self._limits = limits
        self._guard = guard

    @contextmanager
    def run(self, question: Question, begun: Callable[[Reading], object] = lambda _: None) -> Iterator[Result]:
        """Give the result of a statement; `begun` gets what cancels it. Raises the errors of query_model."""
        text, limits = self._checked(question)
        with self._store.reading(question.domain, limits, text) as reading:
            begun(reading)
            columns = reading.columns(text)
            plan = reading.plan(text)
            self._store.check_cost(plan, limits)
            # One more than are given tells that there are more.
            with closing(reading.rows(text, columns, limits.rows + 1)) as rows:
                yield Result(columns, plan, rows, limits)

    def explain(self, question: Question) -> tuple[Plan, float]:
        """Return the plan of a statement that may run, whatever it costs, and the cost that is allowed."""
        text, limits = self._checked(question)
        with self._store.reading(question.domain, limits, text) as reading:
            reading.columns(text)
            return reading.plan(text), limits.cost

    def _checked(self, question: Question) -> tuple[str, QueryLimits]:
        relations = self._relations.get(question.domain)
        if relations is None:
            known = ", ".join(name for name in self._relations if name)
            raise BadRequestError.of("domain", f"must be one of {known or 'none: there is no role secret'}")
        return self._guard(question.text, relations), self._limits_of(question)

    def _limits_of(self, question: Question) -> QueryLimits:
        most = self._limits
        return replace(
            most,
            seconds=deadline.remaining(_least(question.seconds, most.seconds)),
            rows=_least(question.rows, most.rows),
            bytes=_least(question.bytes, most.bytes),
        )


def _least(wanted: Number, most: Number) -> Number:
    return min(wanted or most, most)
