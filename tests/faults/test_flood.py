"""A flood of one domain: what it cannot have is refused at once, and the other domain hardly notices."""

from __future__ import annotations

from benchmarks.overload import target

_ROUNDS = 10
# Milliseconds. Beside one thread that computes, another waits for the interpreter lock so long: a figure below it says
# more about the machine than about the server.
_SWITCH_INTERVAL = 5.0


def test_a_flood_is_refused_within_50_ms_and_another_domain_keeps_its_latency() -> None:
    told = []
    with target() as on:
        for _ in range(_ROUNDS):
            found = on.flood(1.5)
            told.append(found)
            # A tenth of the flood is served, and nothing fails in another way.
            assert set(found.flooded) <= {"OK", "RESOURCE_EXHAUSTED"}
            assert found.refusals.count > 5 * found.flooded["OK"].count
            within = 2 * max(_SWITCH_INTERVAL, found.undisturbed.p99_ms)
            if found.refusals.p99_ms <= 50 and found.disturbed.p99_ms <= within:
                return
    # Machines are shared: one round that nobody disturbed is proof enough, and none in ten is a fault.
    raise AssertionError(told)
