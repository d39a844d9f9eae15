"""Figures of queues for /metrics: read now and then by one process of the fleet, and told by that one alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from kronos_db.messages.model import RANKS
from kronos_db.messages.queues import QueuesStore
from kronos_db.messages.store import MessagesStore
from kronos_db.runtime.database.background import BackgroundWork, Held
from kronos_db.runtime.ops.metrics import Reading, gauges

# Queues with series of their own, the first by name; all others share one.
MOST_LABELS = 100
# No queue may be called so.
OTHERS = "(others)"
# Seconds between two looks.
_INTERVAL = 15.0
_STATES = ("ready", "delayed", "leased", "blocked", "dead")
_RATES = ("enqueued", "leased", "acknowledged")


class Figures(NamedTuple):
    """How a queue is: messages by state, the age in seconds of the oldest ready one, messages a second."""

    name: str
    counts: Sequence[int]
    oldest: float | None
    rates: Sequence[float]


class QueueFigures:
    """The background work `look-at-queues`, and what it found."""

    def __init__(self, store: MessagesStore, queues: QueuesStore) -> None:
        self._store = store
        self._queues = queues
        self._found: Sequence[Figures] = ()
        self.work = BackgroundWork(store.database, "look-at-queues", _INTERVAL, self.look)

    def look(self, _held: Held | None = None) -> None:
        """Look at all queues."""
        queues = self._queues.every()
        marks = [(queue.bin, self._store.low_water.places(queue.bin)) for queue in queues]
        params = {
            "bins": [bin_id for queue in queues for bin_id in (queue.bin, queue.dead_bin)],
            "places": [bin_id for bin_id, _ in marks for _ in RANKS],
            "ranks": [rank for _ in marks for rank in RANKS],
            "lows": [low for _, lows in marks for low in lows],
        }
        found = self._store.database.fetch_all(self._store.queries["figures"], params, _figures)
        self._found = [*found[:MOST_LABELS], *_together(found[MOST_LABELS:])]

    def watch(self, registry: CollectorRegistry) -> None:
        """Register the metrics of queues; a process that does not do the work tells none."""

        def told(read: Callable[[Figures], Iterable[Reading]]) -> Callable[[], list[Reading]]:
            return lambda: [each for queue in self._found for each in read(queue)] if self.work.holds else []

        gauges(
            registry,
            "kronos_db_queue_messages",
            "Messages of the queue: `ready`, `delayed`, `leased`, `blocked` behind another of their key, or `dead`.",
            ["queue", "state"],
            told(lambda queue: [((queue.name, state), n) for state, n in zip(_STATES, queue.counts, strict=True)]),
        )
        gauges(
            registry,
            "kronos_db_queue_rate",
            "Messages a second, over ten seconds or a little more: `enqueued`, `leased` or `acknowledged`.",
            ["queue", "event"],
            told(lambda queue: [((queue.name, event), rate) for event, rate in zip(_RATES, queue.rates, strict=True)]),
        )
        gauges(
            registry,
            "kronos_db_queue_oldest_ready_seconds",
            "For how long the oldest message that is ready has been in the queue; 0 when none is.",
            ["queue"],
            told(lambda queue: [((queue.name,), queue.oldest or 0.0)]),
        )


def _figures(name: str, *columns: float | None) -> Figures:
    counts = tuple(int(count or 0) for count in columns[:5])
    return Figures(name, counts, columns[5], tuple(float(rate or 0.0) for rate in columns[6:]))


def _together(queues: Sequence[Figures]) -> Iterable[Figures]:
    """Return what several queues come to, as one; nothing of none."""
    if queues:
        counts = tuple(map(sum, zip(*(queue.counts for queue in queues), strict=True)))
        rates = tuple(map(sum, zip(*(queue.rates for queue in queues), strict=True)))
        yield Figures(OTHERS, counts, max(queue.oldest or 0.0 for queue in queues), rates)
