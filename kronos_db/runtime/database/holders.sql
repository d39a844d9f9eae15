-- fragment: timeline
-- The timeline that is written to now: eight hexadecimal digits.
left(pg_walfile_name(pg_current_wal_lsn()), 8)

-- fragment: local
-- Without waiting for standbys: who keeps copies is of no interest after a crash, and one of them may be the archive of
-- WAL, which stops with this process.
set_config('synchronous_commit', 'local', true) IS NOT NULL

-- name: enter
-- Begins to keep copies, or begins anew. The beat grows from the time in microseconds, so that nobody who means an
-- earlier entry of this holder hits a later one.
INSERT INTO {schema}.copy_holder (id, beat, timeline, applied)
SELECT %(id)s::uuid, extract(epoch FROM clock_timestamp()) * 1000000, {timeline}, 0 WHERE {local}
ON CONFLICT (id) DO UPDATE
SET beat = GREATEST(copy_holder.beat + 1, EXCLUDED.beat), timeline = EXCLUDED.timeline, applied = 0
RETURNING beat;

-- name: beat
-- Says that a holder lives, and up to which moment it has dropped what was changed: of the timeline that it follows.
UPDATE {schema}.copy_holder
SET beat = beat + 1, applied = %(applied)s
WHERE id = %(id)s::uuid AND timeline = %(timeline)s AND timeline = {timeline} AND {local}
RETURNING beat;

-- name: behind
-- The other holders that may still answer from copies of before a moment.
SELECT id, beat
FROM {schema}.copy_holder
WHERE id <> %(id)s::uuid AND (timeline <> {timeline} OR applied < %(moment)s);

-- name: expel
-- Counts out a holder that has given no sign of life since it was at this beat, or that ends.
DELETE FROM {schema}.copy_holder
WHERE id = %(id)s::uuid AND beat = %(beat)s AND {local};
