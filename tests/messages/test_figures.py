"""What /metrics tells of queues: what GetQueueStats tells, bounded in series, and by the process that looks alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from kronos_db.messages import figures
from kronos_db.messages.figures import QueueFigures
from tests.messages.test_keeper import World, world

__all__ = ["world"]


@pytest.fixture
def registry(world: World) -> CollectorRegistry:
    """The metrics of a process that holds the lease, of three queues."""
    for name in ("a", "b", "c"):
        world.queue(name)
    return CollectorRegistry()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"kronos_db_queue_{name}", labels)


def looked(world: World, registry: CollectorRegistry, holds: bool = True) -> QueueFigures:
    found = QueueFigures(world.store, world.queues)
    found.work = SimpleNamespace(holds=holds)  # type: ignore[assignment] # what is asked of it
    found.watch(registry)
    found.look()
    return found


def test_queues_are_told_as_they_are(world: World, registry: CollectorRegistry) -> None:
    queue = world.queues.get_many(["a"])["a"]
    world.enqueue(queue, 5)
    world.lease(queue, 2)
    world.enqueue(queue, 1, delay=60.0)
    world.admin.execute("UPDATE messages.message SET enqueue_time = enqueue_time - interval '1 h' WHERE state = 0")

    looked(world, registry)

    states = {state: value(registry, "messages", queue="a", state=state) for state in figures._STATES}
    assert states == {"ready": 3, "delayed": 1, "leased": 2, "blocked": 0, "dead": 0}
    assert 3600 <= (value(registry, "oldest_ready_seconds", queue="a") or 0) < 3700
    assert value(registry, "oldest_ready_seconds", queue="b") == 0
    assert value(registry, "rate", queue="a", event="enqueued") is not None


def test_whoever_does_not_look_tells_nothing(world: World, registry: CollectorRegistry) -> None:
    looked(world, registry, holds=False)
    assert value(registry, "messages", queue="a", state="ready") is None


def test_series_are_bounded(world: World, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_LABELS", 1)
    for name in ("b", "c"):
        world.enqueue(world.queues.get_many([name])[name], 2)

    looked(world, registry)

    assert value(registry, "messages", queue="a", state="ready") == 0
    assert value(registry, "messages", queue="b", state="ready") is None
    assert value(registry, "messages", queue=figures.OTHERS, state="ready") == 4
