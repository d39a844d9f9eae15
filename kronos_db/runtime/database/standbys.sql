-- fragment: timeline
-- The timeline that is written to now, as a number.
('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint

-- fragment: cluster
-- Which cluster it is: a standby is of the same one.
(SELECT system_identifier FROM pg_control_system())

-- name: position
-- Up to where a standby must have replayed to see everything that was acknowledged. A commit is acknowledged when it was
-- flushed, unless its session was told not to wait for that. NULL on a server that is itself a standby.
SELECT CASE
    WHEN pg_is_in_recovery() THEN NULL
    WHEN current_setting('synchronous_commit') = 'off' THEN pg_current_wal_insert_lsn()::text
    ELSE pg_current_wal_flush_lsn()::text
END, CASE WHEN pg_is_in_recovery() THEN 0 ELSE {timeline} END, {cluster};

-- name: reached
-- Whether this server is a standby of a cluster, is on a timeline for certain, and has replayed up to a position: three
-- answers. What the control file says of the timeline is true, if late: on an older one a position means nothing.
SELECT pg_is_in_recovery() AND {cluster} = %(cluster)s::bigint,
    GREATEST(
        (SELECT timeline_id FROM pg_control_checkpoint()), (SELECT min_recovery_end_timeline FROM pg_control_recovery())
    ) = %(timeline)s::bigint,
    COALESCE(pg_last_wal_replay_lsn() >= %(lsn)s::text::pg_lsn, false);
