"""Metrics of backups: told by the process that looks into the destination, so that they are there once in a fleet."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter

from kronos_db.admin.backup_runs import Kind
from kronos_db.admin.backup_upkeep import Found, Looking
from kronos_db.runtime.ops.metrics import Reading, gauges

_Value = Callable[[Found], float | None]


def _last_time(found: Found) -> float | None:
    return found.newest.stop_time.timestamp() if found.newest and found.newest.stop_time else None


def _verified_time(found: Found) -> float | None:
    return found.verified.drill.at.timestamp() if found.verified and found.verified.drill else None


def _restorable(found: Found) -> float | None:
    until = found.restorable_until
    return None if until is None else until.timestamp()


def _gap_bytes(found: Found) -> float:
    return float(sum(gap.end - gap.start for gap in found.archive.gaps))


_SINGLE: tuple[tuple[str, str, _Value], ...] = (
    ("last_success_timestamp_seconds", "End of the newest backup that can be restored, as Unix time.", _last_time),
    ("last_verified_timestamp_seconds", "Last drill that found a backup sound, as Unix time.", _verified_time),
    ("restorable_until_timestamp_seconds", "The last moment that can be restored, as Unix time.", _restorable),
    ("size_bytes", "What the newest backup holds of the database.", lambda found: _of_newest(found, "size")),
    ("stored_bytes", "What the newest backup takes in the destination.", lambda found: _of_newest(found, "stored")),
    ("duration_seconds", "What the newest backup took.", lambda found: _of_newest(found, "duration")),
    ("expected_recovery_seconds", "What a restore took in the last drill.", lambda found: found.recovery_seconds),
    ("archive_stored_bytes", "What the archive of WAL takes in the destination.", lambda found: found.archive.stored),
    ("archive_lag_bytes", "WAL that PostgreSQL has and the archive has not.", lambda found: found.archive.lag),
    ("archive_slot_bytes", "WAL that PostgreSQL keeps for the archive.", lambda found: found.archive.slot_lag),
    ("archive_gaps", "Places where the archive lacks WAL; 0 is good.", lambda found: len(found.archive.gaps)),
    ("archive_gap_bytes", "How much WAL the archive lacks there.", _gap_bytes),
    ("archive_receiving", "Whether WAL is being received (1) or not (0).", lambda found: found.archive.receiving),
)


def watch_backups(registry: CollectorRegistry, looking: Looking) -> Callable[[str, bool], None]:
    """Register them, and return what is to be called at the end of each run: with its kind, and whether it was done."""

    def found() -> Found | None:
        return looking.found if looking.work.holds else None

    for name, meaning, value in _SINGLE:
        gauges(registry, f"kronos_backup_{name}", meaning, [], _reading(found, value))
    gauges(
        registry,
        "kronos_backup_backups",
        "Backups in the destination.",
        ["kind", "state"],
        lambda: _counted(found()),
    )
    runs = Counter(
        "kronos_backup_runs_total",
        "Runs that this process did: create, verify, restore, delete or retain.",
        ["kind", "outcome"],
        registry=registry,
    )

    for kind in get_args(Kind):
        # From zero on: a rise from nothing is none for Prometheus.
        for outcome in ("OK", "FAILED"):
            runs.labels(kind, outcome)

    def ended(kind: str, done: bool) -> None:
        runs.labels(kind, "OK" if done else "FAILED").inc()

    return ended


def _of_newest(found: Found, name: str) -> float | None:
    return None if found.newest is None else getattr(found.newest, name)


def _reading(found: Callable[[], Found | None], value: _Value) -> Callable[[], Iterable[Reading]]:
    def read() -> Iterable[Reading]:
        now = found()
        told = None if now is None else value(now)
        return [] if told is None else [((), float(told))]

    return read


def _counted(found: Found | None) -> Iterable[Reading]:
    if found is None:
        return []
    tally = Tally((backup.kind.value, backup.state.value) for backup in found.backups)
    return [(labels, float(count)) for labels, count in tally.items()]
