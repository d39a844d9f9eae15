-- Backups: their policy, the long work on them, and what is known of them all.

CREATE TABLE admin.backup_policy (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    -- Cron expressions in UTC; '' is never.
    full_schedule text NOT NULL,
    incremental_schedule text NOT NULL,
    drill_schedule text NOT NULL,
    -- NULL: this rule keeps nothing.
    keep_count integer,
    keep_age interval,
    version bigint NOT NULL DEFAULT 1,
    update_time timestamptz NOT NULL,
    -- When what was last done of each schedule was begun, by the clock of the schedules.
    last_full timestamptz,
    last_incremental timestamptz,
    last_drill timestamptz,
    CONSTRAINT backup_policy_keeps CHECK (num_nonnulls(keep_count, keep_age) > 0)
);
INSERT INTO admin.backup_policy (full_schedule, incremental_schedule, drill_schedule, keep_count, keep_age, update_time)
VALUES ('0 2 * * 0', '0 2 * * 1-6', '0 4 * * 0', 2, '14 days', now());

CREATE TABLE admin.backup_run (
    id uuid PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('create', 'verify', 'restore', 'delete', 'retain')),
    -- What it does by itself, and since when that was due; '' when somebody asked for it.
    task text NOT NULL,
    due_time timestamptz,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'done', 'failed')),
    request jsonb NOT NULL,
    attempt integer NOT NULL DEFAULT 0,
    -- Of the holder of the lease that does it: what an older one has to say of it does not count.
    fence bigint NOT NULL DEFAULT 0,
    -- It is not begun before.
    not_before timestamptz NOT NULL,
    progress jsonb,
    result jsonb,
    failure text NOT NULL DEFAULT '',
    detail text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL,
    end_time timestamptz
);
-- One of each kind at a time; which kinds exclude each other besides is known to who adds one, with the policy locked.
CREATE UNIQUE INDEX backup_run_active ON admin.backup_run (kind) WHERE state IN ('waiting', 'running');
CREATE INDEX backup_run_end_time ON admin.backup_run (end_time);

-- What was last found in the destination, so that nobody has to look there to answer.
CREATE TABLE admin.backup_summary (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    summary jsonb NOT NULL,
    update_time timestamptz NOT NULL
);
