-- fragment: timeline
-- The timeline that is written to now: eight hexadecimal digits. A standby that is promoted begins another.
left(pg_walfile_name(pg_current_wal_lsn()), 8)

-- fragment: identity
-- The cluster, and the database in it.
(SELECT system_identifier FROM pg_control_system()) || '/' || (
    SELECT oid FROM pg_database WHERE datname = current_database()
)

-- fragment: newest
-- The newest transaction that changed something, as a number.
GREATEST(
    (SELECT xid FROM {schema}.change ORDER BY xid DESC LIMIT 1), (SELECT purged FROM {schema}.change_horizon)
)::text::bigint

-- name: append
-- Notes what a transaction changed, as its last statement before COMMIT. The number is drawn once for all rows.
INSERT INTO {schema}.change (place, part, kind, record_id, body, copied)
SELECT (SELECT nextval('{schema}.change_place')), part, change ->> 0, change ->> 1, change -> 2, (change ->> 3)::boolean
FROM jsonb_array_elements(%(changes)s::text::jsonb) WITH ORDINALITY AS item (change, part);

-- name: append_found
-- As `append`, behind so many that are noted already, what a query of the domain finds, which stands in the place of
-- VALUES. The first of them has those copies dropped that depend on all records of the kind.
INSERT INTO {schema}.change (place, part, kind, record_id, body, copied)
SELECT
    (SELECT CASE WHEN %(noted)s::integer > 0 THEN currval('{schema}.change_place') ELSE nextval('{schema}.change_place') END),
    %(noted)s::integer + row_number() OVER (), %(kind)s, record_id, body, row_number() OVER () = 1
FROM (VALUES ('', 'null'::jsonb)) AS found (record_id, body);

-- name: after_commit
-- The snapshot after a commit, its newest change and timeline, and whether anybody else keeps copies.
SELECT pg_current_snapshot()::text, {newest}, {timeline}, EXISTS (SELECT FROM {schema}.copy_holder WHERE id <> %(holder)s::uuid);

-- name: now
-- The snapshot now, its newest change, and its history: the cluster, the database in it, the timeline, and since when
-- the server runs.
SELECT pg_current_snapshot()::text, {newest}, {identity}, {timeline}, pg_postmaster_start_time()::text;

-- name: notify
-- Wakes those who listen for changes. They read them from the log, so this need not survive a crash.
SELECT set_config('synchronous_commit', 'off', true), pg_notify(%(channel)s, '');

-- name: since
-- What became visible after one snapshot and until another, or until now, in the order of the commits. One row at
-- least, so that the snapshot is told when there is nothing. Who only wants to know what became old gets what copies depend
-- on, and no more of bodies.
SELECT snapshot.now::text, {newest}, horizon.purged::text::bigint, {identity}, {timeline}, change.place, change.part,
    change.kind, change.record_id,
    CASE
        WHEN %(whole)s THEN change.body
        WHEN change.body ? 'bundle' THEN jsonb_build_object('bundle', change.body -> 'bundle')
        ELSE '{}'
    END,
    change.create_time
FROM (SELECT COALESCE(%(until)s::pg_snapshot, pg_current_snapshot()) AS now) AS snapshot
CROSS JOIN {schema}.change_horizon AS horizon
LEFT JOIN LATERAL (
    SELECT place, part, kind, record_id, body, create_time
    FROM {schema}.change
    WHERE xid >= pg_snapshot_xmin(%(seen)s::pg_snapshot)
        AND NOT pg_visible_in_snapshot(xid, %(seen)s::pg_snapshot)
        AND pg_visible_in_snapshot(xid, snapshot.now)
        AND (place, part) > (%(place)s::bigint, %(part)s::integer)
        AND (%(whole)s OR copied)
    ORDER BY place, part
    LIMIT %(limit)s
) AS change ON true
ORDER BY change.place, change.part;

-- name: purge
-- Removes old changes, and remembers up to where.
WITH old AS (
    SELECT xid, part
    FROM {schema}.change
    WHERE create_time < now() - make_interval(secs => %(kept)s)
    ORDER BY create_time
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {schema}.change AS change
    USING old
    WHERE change.xid = old.xid AND change.part = old.part
    RETURNING change.xid
), newest AS (
    SELECT xid FROM gone ORDER BY xid DESC LIMIT 1
), noted AS (
    UPDATE {schema}.change_horizon SET purged = GREATEST(purged, (SELECT xid FROM newest))
    WHERE EXISTS (SELECT FROM newest)
)
SELECT count(*) FROM gone;
