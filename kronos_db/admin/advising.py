"""Puts together what is known of every domain, and advises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from kronos_db.admin.advice import PERIOD, Advice, Facts, Kind, Limits, Statement
from kronos_db.admin.advice_existing import advise_existing
from kronos_db.admin.advice_missing import advise_missing
from kronos_db.admin.changes import AdviceGoneError, Mean
from kronos_db.admin.index_store import facts_of
from kronos_db.admin.predicates import accesses
from kronos_db.admin.reading import Reader
from kronos_db.admin.statement_store import Sources, StatementStore
from kronos_db.admin.statements import Cost, Period, SourceState
from kronos_db.runtime.errors import UnavailableError

_MOST_STATEMENTS = 1_000


class Skipped(NamedTuple):
    """A domain that nothing, or not everything, can be said about, and why."""

    domain: str
    reason: str


class Advisor:
    """Advises on the indexes of all domains."""

    def __init__(self, sources: Sources, store: StatementStore, reader: Reader, limits: Limits | None = None) -> None:
        self._sources = sources
        self._store = store
        self._reader = reader
        self._limits = limits or Limits()

    def advise(self, domain: str | None = None) -> tuple[list[tuple[Facts, Advice]], list[Skipped]]:
        """Return what there is to do for one domain or for all, each with what it was concluded from."""
        self._reader.refresh()
        advices: list[tuple[Facts, Advice]] = []
        skipped = self._uncounted(domain)
        for each in self._sources.domains if domain is None else (domain,):
            try:
                facts = self._facts(each)
            except UnavailableError:
                skipped.append(Skipped(each, "PostgreSQL does not answer."))
                continue
            found = advise_existing(facts, self._limits) + advise_missing(facts, self._limits)
            advices += [(facts, advice) for advice in found]
        return advices, skipped

    def find(self, advice_id: str) -> tuple[Facts, Advice]:
        """Return the advice of that id. Raises AdviceGoneError when it is not given any more."""
        advices, _skipped = self.advise()
        for facts, advice in advices:
            if advice.id == advice_id:
                return facts, advice
        raise AdviceGoneError

    def before(self, facts: Facts, advice: Advice) -> dict[str, Mean]:
        """Return what the statements took that a change will be judged by."""
        if advice.kind is Kind.MISSING:
            concerned = [each for each in facts.statements if each.id in advice.queries]
        else:
            columns = {name: list(table.columns) for name, table in facts.tables.items()}
            concerned = [
                each
                for each in facts.statements
                if any(
                    access.table == advice.table
                    for query in accesses(each.text, facts.schema, columns)
                    for access in query
                )
            ]
        return {each.id: Mean(each.calls, each.mean_ms) for each in concerned}

    def means(self, domain: str, after: datetime, until: datetime) -> Mapping[str, Mean]:
        """Return what the statements of a domain took between two times."""
        costs = self._store.costs(Period(after, until, domain=domain, limit=_MOST_STATEMENTS))
        return {str(cost.query_id): Mean(cost.calls, cost.total_us / cost.calls / 1000) for cost in costs}

    def _facts(self, domain: str) -> Facts:
        with self._sources.connected(domain) as direct, self._sources.replicas(domain) as replicas:
            return facts_of(direct, domain, self._statements(domain), replicas)

    def _statements(self, domain: str) -> Sequence[Statement]:
        now = datetime.now(UTC)
        # A reading may be a moment ahead of this clock.
        period = Period(now - PERIOD, now + timedelta(minutes=1), domain=domain, limit=_MOST_STATEMENTS)
        return [_statement(cost) for cost in self._store.costs(period)]

    def _uncounted(self, domain: str | None) -> list[Skipped]:
        return [
            Skipped(source.domain, f"What is missing is not known: {source.state.remedy}")
            for source in self._store.sources()
            if source.state is not SourceState.COUNTED
            and source.state is not SourceState.UNREACHABLE
            and domain in {None, source.domain}
        ]


def _statement(cost: Cost) -> Statement:
    return Statement(
        str(cost.query_id),
        cost.source,
        cost.calls,
        cost.total_us / 1000,
        cost.rows,
        ", ".join(cost.queries),
        cost.methods,
    )
