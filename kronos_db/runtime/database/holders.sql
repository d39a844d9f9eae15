-- fragment: timeline
-- The timeline that is written to now: eight hexadecimal digits.
left(pg_walfile_name(pg_current_wal_lsn()), 8)

-- name: enter
-- Begins to keep copies, or begins anew.
INSERT INTO {schema}.copy_holder (id, beat, timeline, applied)
VALUES (%(id)s::uuid, 1, {timeline}, 0)
ON CONFLICT (id) DO UPDATE SET beat = copy_holder.beat + 1, timeline = EXCLUDED.timeline, applied = 0;

-- name: beat
-- Says that a holder lives, and up to which moment it has dropped what was changed: of the timeline that it follows.
UPDATE {schema}.copy_holder
SET beat = beat + 1, applied = %(applied)s
WHERE id = %(id)s::uuid AND timeline = %(timeline)s AND timeline = {timeline};

-- name: leave
-- Ends keeping copies.
DELETE FROM {schema}.copy_holder
WHERE id = %(id)s::uuid;

-- name: behind
-- The other holders that may still answer from copies of before a moment.
SELECT id, beat
FROM {schema}.copy_holder
WHERE id <> %(id)s::uuid AND (timeline <> {timeline} OR applied < %(moment)s);

-- name: expel
-- Counts out a holder that has given no sign of life since it was at this beat.
DELETE FROM {schema}.copy_holder
WHERE id = %(id)s::uuid AND beat = %(beat)s;

-- name: call
-- Wakes up those who listen.
SELECT pg_notify(%(channel)s::text, '');
