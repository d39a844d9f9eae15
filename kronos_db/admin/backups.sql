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
INSERT INTO admin.backup_run (id, kind, task, due_time, request, not_before, create_time)
VALUES (%(id)s::uuid, %(kind)s, %(task)s, %(due)s::timestamptz, %(request)s::text::jsonb, now(), now());

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
-- Notes how a run ended; when it did something of a schedule, that it was done.
WITH ended AS (
    UPDATE admin.backup_run
    SET state = %(state)s, result = %(result)s::text::jsonb, failure = %(failure)s, detail = %(detail)s, end_time = now()
    WHERE id = %(id)s::uuid AND state = 'running' AND fence = %(fence)s
    RETURNING task, due_time, state
)
UPDATE admin.backup_policy
SET last_full = CASE WHEN task = 'full' THEN due_time ELSE last_full END,
    last_incremental = CASE WHEN task = 'incremental' THEN due_time ELSE last_incremental END,
    last_drill = CASE WHEN task = 'drill' THEN due_time ELSE last_drill END
FROM ended
WHERE state = 'done' AND task <> '';

-- name: put_back
-- Lets a run be begun anew later.
UPDATE admin.backup_run
SET state = 'waiting', not_before = now() + make_interval(secs => %(seconds)s)
WHERE id = %(id)s::uuid AND state = 'running' AND fence = %(fence)s;

-- name: forget
-- Removes runs that ended long ago: later than any repeat of the call may come.
DELETE FROM admin.backup_run
WHERE end_time < now() - make_interval(days => 90);

-- name: policy
-- The policy, when what was last done, and which tasks are not begun again yet since they failed a moment ago.
SELECT full_schedule, incremental_schedule, drill_schedule, keep_count, keep_age, version, update_time,
    last_full, last_incremental, last_drill,
    (SELECT max(end_time) FROM admin.backup_run WHERE state = 'done' AND kind = 'create'),
    (SELECT max(end_time) FROM admin.backup_run WHERE state = 'done' AND kind = 'retain'),
    ARRAY(
        SELECT DISTINCT task
        FROM admin.backup_run
        WHERE state = 'failed' AND task <> '' AND end_time > now() - interval '10 minutes'
    )
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
