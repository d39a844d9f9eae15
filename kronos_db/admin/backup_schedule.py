"""When backups and drills are due: cron expressions of five fields, in UTC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

from cronsim import CronSim, CronSimError

from kronos_db.backup.model import Policy

# What is begun by itself.
Task: TypeAlias = Literal["full", "incremental", "drill", "retain"]
# Retention is applied behind each backup, and at least so often.
_RETAIN_EVERY = timedelta(days=1)
Clock: TypeAlias = Callable[[], datetime]


def now() -> datetime:
    """Return the time by the clock of this machine: the clock of schedules unless a test brings its own."""
    return datetime.now(UTC)


def fault_of(expression: str) -> str | None:
    """Return what is wrong with a cron expression as the end of a sentence, None when nothing is; empty is never."""
    if not expression:
        return None
    # CronSim also reads a sixth field, of seconds.
    if len(expression.split()) != 5:  # noqa: PLR2004  # minute, hour, day, month, day of the week
        return "must have the five fields of a cron expression"
    try:
        moment = next(CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)), None)
    except CronSimError as error:
        return f"is no cron expression: {str(error)[:1].lower()}{str(error)[1:]}"
    return "names a day that never comes" if moment is None else None


def after(expression: str, moment: datetime) -> datetime | None:
    """Return the first time behind `moment` that a valid expression names, None when it names none."""
    return next(CronSim(expression, moment.astimezone(UTC)), None) if expression else None


@dataclass(frozen=True, slots=True)
class Done:
    """When each task that was done was begun, None when it never was, and when the schedules last changed.

    `created` is the end of the last backup, whoever asked for it, `retained` that of the last retention.
    """

    full: datetime | None
    incremental: datetime | None
    drill: datetime | None
    changed: datetime
    created: datetime | None = None
    retained: datetime | None = None


def next_times(policy: Policy, done: Done) -> dict[Task, datetime]:
    """Return when each task of a schedule is due next; one that is overdue has a time in the past.

    The first full backup does not wait for its time: there is nothing to restore until it is there.
    """
    full = _next(policy.full_schedule, done.full, done.changed)
    if policy.full_schedule and done.full is None:
        full = done.changed
    times: dict[Task, datetime | None] = {
        "full": full,
        # A full backup is as good as an incremental one.
        "incremental": _next(policy.incremental_schedule, _later(done.incremental, done.full), done.changed),
        "drill": _next(policy.drill_schedule, done.drill, done.changed),
    }
    return {task: time for task, time in times.items() if time is not None}


def due(policy: Policy, done: Done, at: datetime) -> list[Task]:
    """Return what is due `at` a time; whatever was missed, each task once, and a full backup in place of both."""
    tasks = [task for task, time in next_times(policy, done).items() if time <= at]
    if done.created is not None and (
        done.retained is None or done.created > done.retained or at - done.retained > _RETAIN_EVERY
    ):
        tasks.append("retain")
    return [task for task in tasks if not (task == "incremental" and "full" in tasks)]


def _next(expression: str, last: datetime | None, changed: datetime) -> datetime | None:
    # What the schedule that was replaced would have asked for is not made up for.
    return after(expression, max(last, changed) if last else changed)


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max(one, other) if one and other else one or other
