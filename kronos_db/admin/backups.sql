-- The SQL of backups: runs, policy, summary.

-- fragment: run
-- What makes a Run, in the order of its fields.
id::text, kind, state, request, attempt, progress, result, failure, detail

-- name: lock
-- Lets one transaction at a time add runs: two that exclude each other would not see each other.
SELECT version
FROM admin.backup_policy
FOR UPDATE;

-- name: active
-- The runs that are not over, oldest first.
SELECT {run}
FROM admin.backup_run
WHERE state IN ('waiting', 'running')
ORDER BY id;

-- name: add
-- Writes down a run.
INSERT INTO admin.backup_run (id, kind, task, request, not_before, create_time)
VALUES (%(id)s::uuid, %(kind)s, %(task)s, %(request)s::text::jsonb, now(), now());

-- name: scheduled
-- Notes when the schedule began its tasks; by the clock that found them due.
UPDATE admin.backup_policy
SET last_full = CASE WHEN %(task)s = 'full' THEN %(time)s::timestamptz ELSE last_full END,
    last_incremental = CASE WHEN %(task)s = 'incremental' THEN %(time)s::timestamptz ELSE last_incremental END,
    last_drill = CASE WHEN %(task)s = 'drill' THEN %(time)s::timestamptz ELSE last_drill END;

-- name: get_many
-- Runs by id.
SELECT {run}
FROM admin.backup_run
WHERE id = ANY(%(ids)s::uuid[]);

-- name: open
-- What the holder of a lease is to take up: what waits for its time, and what a holder before it left behind.
SELECT {run}
FROM admin.backup_run
WHERE (state = 'waiting' OR (state = 'running' AND fence < %(fence)s)) AND not_before <= now()
ORDER BY id;

-- name: take
-- Takes a run up, unless somebody else did.
UPDATE admin.backup_run
SET state = 'running', fence = %(fence)s, attempt = attempt + 1, progress = NULL
WHERE id = %(id)s::uuid AND (state = 'waiting' OR (state = 'running' AND fence < %(fence)s));

-- name: tell
-- Notes how far a run has come.
UPDATE admin.backup_run
SET progress = %(progress)s::text::jsonb
WHERE id = %(id)s::uuid AND state = 'running' AND fence = %(fence)s;

-- name: finish
-- Notes how a run ended.
UPDATE admin.backup_run
SET state = %(state)s, result = %(result)s::text::jsonb, failure = %(failure)s, detail = %(detail)s, end_time = now()
WHERE id = %(id)s::uuid AND state = 'running' AND fence = %(fence)s;

-- name: put_back
-- Lets a run be begun anew later.
UPDATE admin.backup_run
SET state = 'waiting', not_before = now() + make_interval(secs => %(seconds)s)
WHERE id = %(id)s::uuid AND state = 'running' AND fence = %(fence)s;

-- name: forget
-- Removes runs that ended long ago: later than any repeat of the call may come.
DELETE FROM admin.backup_run
WHERE end_time < now() - make_interval(days => 90);

-- name: last_create
-- When the last backup was made, and when retention was last applied.
SELECT max(end_time) FILTER (WHERE kind = 'create'), max(end_time) FILTER (WHERE kind = 'retain')
FROM admin.backup_run
WHERE state = 'done';

-- name: policy
-- The policy, with what changes with it, and when the schedule last began each task.
SELECT full_schedule, incremental_schedule, drill_schedule, keep_count, keep_age, version, update_time,
    last_full, last_incremental, last_drill
FROM admin.backup_policy;

-- name: set_policy
-- Changes the policy; times are those of the schedules.
UPDATE admin.backup_policy
SET full_schedule = %(full_schedule)s,
    incremental_schedule = %(incremental_schedule)s,
    drill_schedule = %(drill_schedule)s,
    keep_count = %(keep_count)s,
    keep_age = %(keep_age)s,
    version = version + 1,
    update_time = now();

-- name: summary
-- What was last found in the destination, and how many seconds ago.
SELECT summary, extract(epoch FROM clock_timestamp() - update_time)::float8
FROM admin.backup_summary;

-- name: set_summary
-- Notes what was found in the destination.
INSERT INTO admin.backup_summary (summary, update_time)
VALUES (%(summary)s::text::jsonb, clock_timestamp())
ON CONFLICT (is_only) DO UPDATE
SET summary = EXCLUDED.summary, update_time = EXCLUDED.update_time;
