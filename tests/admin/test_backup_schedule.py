"""When backups are due: by cron expressions, once for whatever was missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from kronos_db.admin.backup_schedule import Done, due, fault_of, next_times
from kronos_db.backup.model import Policy

SUNDAY = datetime(2026, 1, 4, tzinfo=UTC)
MONDAY = SUNDAY + timedelta(days=1)
POLICY = Policy(full_schedule="0 2 * * 0", incremental_schedule="0 2 * * 1-6", drill_schedule="0 4 * * 0")


def hours(of: datetime, count: float) -> datetime:
    return of + timedelta(hours=count)


def done(**changes: datetime | None) -> Done:
    before = SUNDAY - timedelta(days=30)
    first = hours(SUNDAY, 2)
    known: dict[str, datetime | None] = {
        "full": first,
        "incremental": None,
        "drill": hours(SUNDAY, 4),
        "changed": before,
        "created": None,
        "retained": None,
    }
    return Done(**{**known, **changes})  # type: ignore[arg-type]  # changed is never None


@pytest.mark.parametrize("expression", ["", "0 2 * * *", "*/15 * * * *", "30 1 1-7 * MON", "0 0 29 2 *"])
def test_cron_expressions_are_taken(expression: str) -> None:
    assert fault_of(expression) is None


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("nightly", "five fields"),
        ("0 2 * *", "five fields"),
        ("0 0 2 * * *", "five fields"),
        ("61 2 * * *", "no cron expression"),
        ("0 2 * * 9", "no cron expression"),
        ("0 2 30 2 *", "no cron expression"),
    ],
)
def test_others_are_refused_with_the_reason(expression: str, fault: str) -> None:
    assert fault in str(fault_of(expression))


def test_nothing_is_due_before_its_time_and_each_task_at_it() -> None:
    assert due(POLICY, done(), hours(MONDAY, 1.99)) == []
    assert due(POLICY, done(), hours(MONDAY, 2)) == ["incremental"]


def test_the_first_full_backup_does_not_wait() -> None:
    assert due(POLICY, done(full=None, changed=MONDAY), MONDAY) == ["full"]
    assert due(Policy(full_schedule=""), done(full=None), MONDAY) == ["incremental"]


def test_what_was_missed_for_weeks_is_made_up_for_once() -> None:
    late = SUNDAY + timedelta(days=24)
    assert due(POLICY, done(), late) == ["full", "drill"]
    after = done(full=late, drill=late)
    assert due(POLICY, after, late + timedelta(hours=1)) == []


def test_a_full_backup_stands_in_for_an_incremental_one() -> None:
    both = Policy(full_schedule="0 2 * * *", incremental_schedule="0 2 * * *", drill_schedule="")
    assert due(both, done(), hours(MONDAY, 2)) == ["full"]


def test_a_new_schedule_does_not_make_up_for_times_before_it() -> None:
    changed = hours(MONDAY, 3)
    assert due(POLICY, done(changed=changed), hours(MONDAY, 4)) == []
    assert next_times(POLICY, done(changed=changed))["incremental"] == hours(MONDAY, 26)


def test_times_are_those_of_utc_wherever_the_process_runs() -> None:
    east = hours(MONDAY, 1).astimezone(tz=None)
    assert next_times(POLICY, done(full=east))["incremental"] == hours(MONDAY, 2)


def test_retention_follows_each_backup_and_comes_once_a_day() -> None:
    never = Policy(full_schedule="", incremental_schedule="", drill_schedule="")
    assert due(never, done(), MONDAY) == []
    assert due(never, done(created=SUNDAY), MONDAY) == ["retain"]
    assert due(never, done(created=SUNDAY, retained=hours(SUNDAY, 1)), MONDAY) == []
    assert due(never, done(created=SUNDAY, retained=hours(SUNDAY, 1)), hours(MONDAY, 1.1)) == ["retain"]
