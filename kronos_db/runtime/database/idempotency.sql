-- name: keep
-- Stores the answer of a call; conflicts on the primary key when the call was answered before.
INSERT INTO {schema}.idempotency (caller, request_id, fingerprint, reply, tags, expire_time)
VALUES (
    %(caller)s, %(request_id)s, %(fingerprint)s, %(reply)s, %(tags)s::text[],
    now() + make_interval(secs => %(window)s)
);

-- name: keep_all
-- Stores the answers of several calls; conflicts like `keep` when any of them was answered before.
INSERT INTO {schema}.idempotency (caller, request_id, fingerprint, reply, tags, expire_time)
SELECT caller, request_id, fingerprint, reply, %(tags)s::text[], now() + make_interval(secs => kept)
FROM unnest(
    %(callers)s::text[], %(request_ids)s::uuid[], %(fingerprints)b::bytea[], %(replies)b::bytea[], %(windows)s::float8[]
) AS item (caller, request_id, fingerprint, reply, kept);

-- name: recall
-- The answer of a call: for its window at least, and until it is purged. The lock makes this a write, whose own commit
-- waits until a synchronous standby has it, and with it the commit that it tells of.
SELECT fingerprint, reply, tags
FROM {schema}.idempotency
WHERE caller = %(caller)s AND request_id = %(request_id)s
FOR SHARE;

-- name: settle
-- What stands in the place of a receipt: the receipt, or what is put there now, on which its transaction then fails,
-- should the COMMIT still be on its way. A write in any case: its own commit waits until a synchronous standby has it,
-- and with it the commit that it tells of.
INSERT INTO {schema}.idempotency AS kept (caller, request_id, fingerprint, reply, tags, expire_time)
VALUES (
    %(caller)s, %(request_id)s, %(fingerprint)s, %(reply)s, %(tags)s::text[],
    now() + make_interval(secs => %(window)s)
)
ON CONFLICT (caller, request_id) DO UPDATE SET expire_time = excluded.expire_time
RETURNING kept.fingerprint;

-- name: purge
-- Removes some rows whose window is over; whoever else purges at the same time takes others. A plan that was kept from
-- when the table was small would read all of it. plan: custom.
DELETE FROM {schema}.idempotency
WHERE ctid = ANY (ARRAY(
    SELECT ctid
    FROM {schema}.idempotency
    WHERE expire_time < now()
    ORDER BY expire_time
    LIMIT 5000
    FOR UPDATE SKIP LOCKED
));
