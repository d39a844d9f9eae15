-- fragment: local
-- Without waiting for standbys: one of them may be the archive of WAL, and wait for this lease itself.
set_config('synchronous_commit', 'local', true) IS NOT NULL

-- name: take
-- Takes the lease when nobody has it, or renews it. Looks first without a lock: who only waits leaves the row alone.
INSERT INTO {schema}.lease AS held (name, holder, fence, expire_time)
SELECT %(name)s, %(holder)s, 1, clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE NOT EXISTS (
    SELECT FROM {schema}.lease
    WHERE name = %(name)s AND holder <> %(holder)s AND expire_time > clock_timestamp()
) AND {local}
ON CONFLICT (name) DO UPDATE
SET holder = EXCLUDED.holder,
    fence = held.fence + (held.holder <> EXCLUDED.holder OR held.expire_time <= clock_timestamp())::int,
    expire_time = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE held.holder = EXCLUDED.holder OR held.expire_time <= clock_timestamp();

-- name: look
-- Who has the lease, for how many more seconds, and when the work was last done: seconds ago, and as Unix time.
SELECT
    holder = %(holder)s AND expire_time > clock_timestamp(),
    fence,
    extract(epoch FROM expire_time - clock_timestamp())::float8,
    extract(epoch FROM clock_timestamp() - success_time)::float8,
    extract(epoch FROM success_time)::float8
FROM {schema}.lease
WHERE name = %(name)s;

-- name: done
-- Notes that the work is done; not for a holder whose lease another one has by now.
UPDATE {schema}.lease
SET success_time = clock_timestamp()
WHERE name = %(name)s AND holder = %(holder)s AND fence = %(fence)s AND {local};

-- name: release
-- Lets the next one have the lease at once.
UPDATE {schema}.lease
SET expire_time = clock_timestamp()
WHERE name = %(name)s AND holder = %(holder)s AND fence = %(fence)s AND {local};
