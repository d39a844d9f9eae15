-- The SQL of the messages domain. States: 0 READY, 1 DELAYED, 2 LEASED, 3 BLOCKED.

-- fragment: queue_columns
-- What makes a Queue, in the order of its fields.
name, id::text, bin::text, dead_bin::text, ordered, lease_duration, max_attempts, min_backoff, max_backoff,
dead_letter_queue, message_retention, dead_letter_retention, max_backlog, max_payload_bytes, version, create_time,
update_time

-- name: get_queues
-- Queues by name; unknown names are passed over.
SELECT {queue_columns}
FROM messages.queue
WHERE name = ANY(%(names)s::text[]);

-- name: all_queues
-- Every queue, for what is done in the background.
SELECT {queue_columns}
FROM messages.queue
ORDER BY name;

-- name: list_queues
-- A page of queues by name. plan: custom.
SELECT {queue_columns}
FROM messages.queue
WHERE (%(prefix)s::text IS NULL OR name ^@ %(prefix)s) AND (%(after)s::text IS NULL OR name > %(after)s)
ORDER BY name
LIMIT %(limit)s;

-- name: create_queue
-- Creates a queue with empty bins.
WITH created AS (
    INSERT INTO messages.queue (
        name, id, bin, dead_bin, ordered, lease_duration, max_attempts, min_backoff, max_backoff, dead_letter_queue,
        message_retention, dead_letter_retention, max_backlog, max_payload_bytes, create_time, update_time
    ) VALUES (
        %(name)s, %(id)s::uuid, %(bin)s::uuid, %(dead_bin)s::uuid, %(ordered)s, %(lease_duration)s, %(max_attempts)s,
        %(min_backoff)s, %(max_backoff)s, %(dead_letter_queue)s, %(message_retention)s, %(dead_letter_retention)s,
        %(max_backlog)s, %(max_payload_bytes)s, now(), now()
    )
    RETURNING {queue_columns}
), opened AS (
    INSERT INTO messages.total (bin) VALUES (%(bin)s::uuid), (%(dead_bin)s::uuid)
)
SELECT * FROM created;

-- name: update_queue
-- Changes the rules of a queue that, when a version is given, is at that version.
UPDATE messages.queue
SET lease_duration = %(lease_duration)s, max_attempts = %(max_attempts)s, min_backoff = %(min_backoff)s,
    max_backoff = %(max_backoff)s, dead_letter_queue = %(dead_letter_queue)s,
    message_retention = %(message_retention)s, dead_letter_retention = %(dead_letter_retention)s,
    max_backlog = %(max_backlog)s, max_payload_bytes = %(max_payload_bytes)s, version = version + 1, update_time = now()
WHERE name = %(name)s
RETURNING {queue_columns};

-- name: lock_queue
-- A queue, so that it does not change until the transaction ends.
SELECT {queue_columns}
FROM messages.queue
WHERE name = %(name)s
FOR UPDATE;

-- name: delete_queue
-- Deletes a queue and abandons its bins.
WITH gone AS (
    DELETE FROM messages.queue WHERE name = %(name)s RETURNING {queue_columns}
), abandoned AS (
    INSERT INTO messages.abandoned_bin (bin)
    SELECT unnest(ARRAY[bin::uuid, dead_bin::uuid]) FROM gone
)
SELECT * FROM gone;

-- name: empty_queue
-- Gives a queue new bins in place of the ones that are given, and abandons those.
WITH emptied AS (
    UPDATE messages.queue
    SET bin = COALESCE(%(bin)s::uuid, bin), dead_bin = COALESCE(%(dead_bin)s::uuid, dead_bin), version = version + 1,
        update_time = now()
    WHERE name = %(name)s
    RETURNING {queue_columns}
), abandoned AS (
    INSERT INTO messages.abandoned_bin (bin)
    SELECT unnest(%(old)s::uuid[])
), opened AS (
    INSERT INTO messages.total (bin)
    SELECT unnest(%(new)s::uuid[])
)
SELECT * FROM emptied;

-- name: remember
-- Remembers deduplication keys; returns those that were not known, or not any more.
INSERT INTO messages.deduplication AS known (bin, key, message_id, expire_time)
SELECT bin, key, message_id, now() + make_interval(secs => span)
FROM unnest(%(bins)s::uuid[], %(keys)s::text[], %(ids)s::uuid[], %(spans)s::float8[]) AS new (bin, key, message_id, span)
ORDER BY bin, key
ON CONFLICT (bin, key) DO UPDATE SET message_id = EXCLUDED.message_id, expire_time = EXCLUDED.expire_time
WHERE known.expire_time <= now()
RETURNING bin::text, key;

-- name: remembered
-- The messages that deduplication keys stand for.
SELECT known.bin::text, known.key, known.message_id::text
FROM unnest(%(bins)s::uuid[], %(keys)s::text[]) AS asked (bin, key)
JOIN messages.deduplication AS known USING (bin, key);

-- name: lock_lanes
-- Locks keys, those that are not there yet too, in an order that all keep: nobody waits for who waits for him. A row
-- that is there is locked and not written.
INSERT INTO messages.lane AS lane (bin, ordering_key)
SELECT DISTINCT bin, ordering_key
FROM unnest(%(bins)s::uuid[], %(keys)s::text[]) AS asked (bin, ordering_key)
ORDER BY bin, ordering_key
ON CONFLICT (bin, ordering_key) DO UPDATE SET ordering_key = EXCLUDED.ordering_key WHERE false;

-- name: lock_lanes_of
-- Locks the keys of messages, in the same order.
SELECT lane.ordering_key
FROM messages.lane AS lane
WHERE (lane.bin, lane.ordering_key) IN (
    SELECT message.bin, message.ordering_key
    FROM unnest(%(bins)s::uuid[], %(ids)s::uuid[]) AS asked (bin, id)
    JOIN messages.message AS message USING (bin, id)
)
ORDER BY lane.bin, lane.ordering_key
FOR UPDATE;

-- fragment: base
-- What the positions of this transaction begin with.
(SELECT pg_current_xact_id()::text::bigint << 16)

-- fragment: new_messages
-- Messages to be stored. Columns that no message has are sent empty.
SELECT item.*, CASE WHEN due > now() THEN due WHEN wait > 0 THEN now() + make_interval(secs => wait) END AS not_before
FROM unnest(
    %(bins)s::uuid[], %(ids)s::uuid[], %(ranks)s::smallint[], %(payloads)b::bytea[], %(headers)s::jsonb[],
    %(delays)s::float8[], %(due_times)s::timestamptz[], %(lives)s::float8[], %(keys)s::text[]
) WITH ORDINALITY AS item (bin, id, rank, payload, headers, wait, due, life, ordering_key, place)

-- fragment: count_stored
-- Counts what `stored` returns.
INSERT INTO messages.tally (bin, ready, delayed, blocked, enqueued_total)
SELECT bin, count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 3),
    count(*)
FROM stored
GROUP BY bin

-- name: enqueue
-- Stores messages without ordering keys.
WITH new AS ({new_messages}), stored AS (
    INSERT INTO messages.message (
        bin, id, state, rank, position, due_time, expire_time, enqueue_time, payload, headers
    )
    SELECT bin, id, CASE WHEN not_before IS NULL THEN 0 ELSE 1 END, rank, {base} + place, not_before,
        now() + make_interval(secs => life), now(), payload, headers
    FROM new
    RETURNING bin, state
)
{count_stored};

-- name: enqueue_in_order
-- Stores messages of which some have ordering keys, which are locked: the first message of a key may be delivered, all
-- behind it are blocked.
WITH new AS ({new_messages}), placed AS (
    SELECT *, ordering_key IS NOT NULL AND (
        row_number() OVER (PARTITION BY bin, ordering_key ORDER BY place) > 1
        OR EXISTS (
            SELECT FROM messages.message AS earlier
            WHERE earlier.bin = new.bin AND earlier.ordering_key = new.ordering_key
        )
    ) AS blocked
    FROM new
), stored AS (
    INSERT INTO messages.message (
        bin, id, state, rank, position, due_time, expire_time, enqueue_time, payload, headers, ordering_key, number,
        not_before
    )
    SELECT bin, id, CASE WHEN blocked THEN 3 WHEN not_before IS NULL THEN 0 ELSE 1 END, rank, {base} + place,
        CASE WHEN NOT blocked THEN not_before END, now() + make_interval(secs => life), now(), payload, headers,
        ordering_key, CASE WHEN ordering_key IS NOT NULL THEN (SELECT nextval('messages.message_number')) * 65536 + place END,
        CASE WHEN blocked THEN not_before END
    FROM placed
    RETURNING bin, state
)
{count_stored};

-- name: find_existing
-- The first of several ids that a message of the bin has.
SELECT place
FROM unnest(%(ids)s::uuid[]) WITH ORDINALITY AS asked (id, place)
WHERE EXISTS (SELECT FROM messages.message AS message WHERE message.bin = %(bin)s::uuid AND message.id = asked.id)
ORDER BY place
LIMIT 1;

-- fragment: message_columns
-- What makes a Message, in the order of its fields.
id::text, payload, headers, rank, ordering_key, enqueue_time, expire_time, attempts, history

-- fragment: leased_columns
-- What makes a Leased, in the order of its fields.
rank, position, lease_token::text, due_time, {message_columns}

-- name: lease
-- Leases messages that are ready: band after band (of one priority each), from the place on below which there are none.
-- A message beyond the limit of bytes is left alone, but for the first.
WITH candidate AS MATERIALIZED (
    SELECT found.id, found.rank, found.position, found.size
    FROM unnest(%(ranks)s::smallint[], %(lows)s::bigint[]) AS band (rank, low)
    CROSS JOIN LATERAL (
        SELECT id, rank, position, octet_length(payload) AS size
        FROM messages.message
        WHERE bin = %(bin)s::uuid AND state = 0 AND rank = band.rank AND position >= band.low
            AND (expire_time IS NULL OR expire_time > now())
        ORDER BY position
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ) AS found
    LIMIT %(limit)s
), chosen AS MATERIALIZED (
    SELECT id
    FROM (SELECT id, sum(size) OVER (ORDER BY rank, position) - size AS before FROM candidate) AS summed
    WHERE before < %(bytes)s
), leased AS (
    UPDATE messages.message
    SET state = 2, due_time = now() + make_interval(secs => %(seconds)s), lease_token = %(token)s::uuid,
        attempts = attempts + 1
    WHERE bin = %(bin)s::uuid AND id = ANY(ARRAY(SELECT id FROM chosen))
    RETURNING {leased_columns}
), counted AS (
    INSERT INTO messages.tally (bin, ready, leased, leased_total)
    SELECT %(bin)s::uuid, -count(*), count(*), count(*) FROM leased HAVING count(*) > 0
)
SELECT *, pg_current_xact_id_if_assigned()::text::bigint FROM leased;

-- name: lowest
-- Below which place there is no ready message in each band and none can come: that of the first one, if there is one, and
-- of the oldest transaction in progress.
SELECT band.rank, (
    SELECT position
    FROM messages.message
    WHERE bin = %(bin)s::uuid AND state = 0 AND rank = band.rank AND position >= band.low
    ORDER BY position
    LIMIT 1
), pg_snapshot_xmin(pg_current_snapshot())::text::bigint << 16
FROM unnest(%(ranks)s::smallint[], %(lows)s::bigint[]) AS band (rank, low);

-- name: leased_under
-- Those of several messages that are leased under a token.
SELECT {leased_columns}, NULL::bigint
FROM messages.message
WHERE bin = %(bin)s::uuid AND id = ANY(%(ids)s::uuid[]) AND lease_token = %(token)s::uuid;

-- fragment: recent_history
-- The history of a message without its oldest entry when it is full, as an array.
CASE WHEN jsonb_array_length(message.history) >= 20 THEN message.history - 0 ELSE COALESCE(message.history, '[]') END

-- fragment: expired_history
-- The history of a message whose lease ran out.
{recent_history} || jsonb_build_object(
    'attempt', message.attempts, 'kind', 2, 'time', extract(epoch FROM now()), 'reason', ''
)

-- name: revive
-- Makes messages ready whose time has come: delayed ones, and those whose lease ran out and that have attempts left.
-- Tells how many, and until when it looked.
WITH due AS MATERIALIZED (
    SELECT id, state
    FROM messages.message
    WHERE bin = %(bin)s::uuid AND due_time <= now() AND due_time >= %(low)s::timestamptz
        AND (state = 1 OR attempts < %(max_attempts)s)
    ORDER BY due_time
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), revived AS (
    UPDATE messages.message AS message
    SET state = 0, position = {base} + array_position(ARRAY(SELECT id FROM due), message.id), due_time = NULL,
        lease_token = NULL,
        history = CASE WHEN message.state = 2 THEN {expired_history} ELSE message.history END
    WHERE message.bin = %(bin)s::uuid AND message.id = ANY(ARRAY(SELECT id FROM due))
    RETURNING message.id
), counted AS (
    INSERT INTO messages.tally (bin, ready, delayed, leased)
    SELECT %(bin)s::uuid, count(*), -count(*) FILTER (WHERE state = 1), -count(*) FILTER (WHERE state = 2)
    FROM revived JOIN due USING (id)
    HAVING count(*) > 0
)
SELECT (SELECT count(*) FROM revived), now();

-- name: exhausted
-- Messages whose last lease ran out.
SELECT id::text
FROM messages.message
WHERE bin = %(bin)s::uuid AND due_time <= now() AND due_time >= %(low)s::timestamptz AND state = 2
    AND attempts >= %(max_attempts)s
ORDER BY due_time
LIMIT %(limit)s;

-- fragment: missed
-- Why a receipt was not taken: 2 LEASE_LOST, 3 NOT_FOUND.
CASE
    WHEN EXISTS (SELECT FROM messages.message AS left_over WHERE left_over.bin = asked.bin AND left_over.id = asked.id)
        OR EXISTS (
            SELECT FROM messages.queue AS queue
            JOIN messages.dead_letter AS dead ON dead.bin = queue.dead_bin
            WHERE queue.bin = asked.bin AND dead.id = asked.id
        )
    THEN 2 ELSE 3
END

-- fragment: acknowledged
-- Removes messages under the leases that are asked for.
asked AS MATERIALIZED (
    SELECT * FROM unnest(%(bins)s::uuid[], %(ids)s::uuid[], %(tokens)s::uuid[]) WITH ORDINALITY
        AS item (bin, id, token, place)
), gone AS (
    DELETE FROM messages.message AS message
    USING asked
    WHERE message.bin = asked.bin AND message.id = asked.id AND message.lease_token = asked.token
    RETURNING message.bin, message.id, asked.token, message.ordering_key, message.number
), counted AS (
    INSERT INTO messages.tally (bin, leased, acked_total)
    SELECT bin, -count(*), count(*) FROM gone GROUP BY bin
)

-- name: ack
-- Removes messages under the leases that are asked for; returns those that were not, and why.
WITH {acknowledged}
SELECT asked.place, {missed}
FROM asked
WHERE NOT EXISTS (SELECT FROM gone WHERE gone.bin = asked.bin AND gone.id = asked.id AND gone.token = asked.token);

-- name: ack_in_order
-- The same, and the keys whose first message was removed; the keys are locked.
WITH {acknowledged}
SELECT asked.place, {missed}, NULL AS bin, NULL AS ordering_key, NULL::bigint AS number
FROM asked
WHERE NOT EXISTS (SELECT FROM gone WHERE gone.bin = asked.bin AND gone.id = asked.id AND gone.token = asked.token)
UNION ALL
SELECT NULL, NULL, bin::text, ordering_key, number FROM gone WHERE ordering_key IS NOT NULL;

-- name: extend
-- Makes leases last until a time from now; returns those that were not held, and why, behind a row with that time.
WITH asked AS MATERIALIZED (
    SELECT %(bin)s::uuid AS bin, item.*
    FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[]) WITH ORDINALITY AS item (id, token, place)
), extended AS (
    UPDATE messages.message AS message
    SET due_time = now() + make_interval(secs => %(seconds)s)
    FROM asked
    WHERE message.bin = asked.bin AND message.id = asked.id AND message.lease_token = asked.token
    RETURNING message.id, asked.token
)
SELECT 0 AS place, 1 AS outcome, now() + make_interval(secs => %(seconds)s)
UNION ALL
SELECT asked.place, {missed}, NULL
FROM asked
WHERE NOT EXISTS (SELECT FROM extended WHERE extended.id = asked.id AND extended.token = asked.token);

-- name: release
-- Makes messages ready again that never reached who leased them: the attempt does not count.
WITH asked AS MATERIALIZED (
    SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[]) WITH ORDINALITY AS item (id, token, place)
), released AS (
    UPDATE messages.message AS message
    SET state = 0, due_time = NULL, lease_token = NULL, position = {base} + asked.place, attempts = attempts - 1
    FROM asked
    WHERE message.bin = %(bin)s::uuid AND message.id = asked.id AND message.lease_token = asked.token
    RETURNING message.id
)
INSERT INTO messages.tally (bin, ready, leased)
SELECT %(bin)s::uuid, count(*), -count(*) FROM released HAVING count(*) > 0;

-- fragment: buried
-- Puts what `dying` returns among the dead letters, or into the dead-letter queue.
target AS MATERIALIZED (
    SELECT bin FROM messages.queue WHERE name = %(dead_letter_queue)s AND NOT ordered
), forwarded AS (
    INSERT INTO messages.message (
        bin, id, state, rank, position, expire_time, enqueue_time, payload, headers, history
    )
    SELECT target.bin, dying.id, 0, rank, {base}, NULL, enqueue_time, payload, headers, history
    FROM dying CROSS JOIN target
    WHERE NOT EXISTS (
        SELECT FROM messages.message AS other WHERE other.bin = target.bin AND other.id = dying.id
    )
    RETURNING bin, id
), kept AS (
    INSERT INTO messages.dead_letter (
        bin, id, dead_time, cause, rank, attempts, ordering_key, enqueue_time, payload, headers, history
    )
    SELECT %(dead_bin)s::uuid, id, now(), cause, rank, attempts, ordering_key, enqueue_time, payload, headers, history
    FROM dying
    WHERE NOT EXISTS (SELECT FROM forwarded WHERE forwarded.id = dying.id)
    RETURNING bin
), counted_dead AS (
    INSERT INTO messages.tally (bin, leased, ready, dead, enqueued_total)
    SELECT %(bin)s::uuid, -count(*), 0, 0, 0 FROM dying HAVING count(*) > 0
    UNION ALL
    SELECT bin, 0, 0, count(*), 0 FROM kept GROUP BY bin
    UNION ALL
    SELECT bin, 0, count(*), 0, count(*) FROM forwarded GROUP BY bin
)

-- name: bury
-- Makes dead letters of messages whose last lease ran out; returns their keys, which are locked.
WITH dying AS (
    DELETE FROM messages.message AS message
    WHERE bin = %(bin)s::uuid AND id = ANY(%(ids)s::uuid[]) AND state = 2 AND due_time <= now()
        AND attempts >= %(max_attempts)s
    RETURNING message.id, 1 AS cause, message.rank, message.attempts, message.ordering_key, message.number,
        message.enqueue_time, message.payload, message.headers, {expired_history} AS history
), {buried}
SELECT %(bin)s::uuid::text, ordering_key, number FROM dying;

-- name: nack
-- Takes messages back under the leases that are asked for: ready, delayed or dead. Returns those that were not, and why;
-- and the keys whose first message is dead, which are locked.
WITH asked AS MATERIALIZED (
    SELECT %(bin)s::uuid AS bin, item.*
    FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[], %(delays)s::float8[], %(reasons)s::text[], %(rejected)s::boolean[])
        WITH ORDINALITY AS item (id, token, delay, reason, rejected, place)
), returned AS (
    UPDATE messages.message AS message
    SET state = CASE WHEN pause.seconds > 0 THEN 1 ELSE 0 END,
        due_time = CASE WHEN pause.seconds > 0 THEN now() + make_interval(secs => pause.seconds) END,
        position = {base} + asked.place, lease_token = NULL,
        history = {recent_history} || jsonb_build_object(
            'attempt', message.attempts, 'kind', 1, 'time', extract(epoch FROM now()), 'reason', asked.reason
        )
    FROM asked, messages.message AS old, LATERAL (
        SELECT COALESCE(
            asked.delay,
            LEAST(%(max_backoff)s::float8, %(min_backoff)s::float8 * 2.0 ^ LEAST(old.attempts - 1, 64))
        ) AS seconds
    ) AS pause
    WHERE old.bin = asked.bin AND old.id = asked.id AND message.bin = asked.bin AND message.id = asked.id
        AND message.lease_token = asked.token AND NOT asked.rejected AND message.attempts < %(max_attempts)s
    RETURNING message.id, asked.token, message.state
), dying AS (
    DELETE FROM messages.message AS message
    USING asked
    WHERE message.bin = asked.bin AND message.id = asked.id AND message.lease_token = asked.token
        AND (asked.rejected OR message.attempts >= %(max_attempts)s)
    RETURNING message.id, asked.token, CASE WHEN asked.rejected THEN 2 ELSE 1 END AS cause, message.rank, message.attempts,
        message.ordering_key, message.number, message.enqueue_time, message.payload, message.headers,
        {recent_history} || jsonb_build_object(
            'attempt', message.attempts, 'kind', 1, 'time', extract(epoch FROM now()), 'reason', asked.reason
        ) AS history
), {buried}, counted AS (
    INSERT INTO messages.tally (bin, ready, delayed, leased)
    SELECT %(bin)s::uuid, count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 1), -count(*)
    FROM returned
    HAVING count(*) > 0
)
SELECT asked.place, {missed}, NULL AS bin, NULL AS ordering_key, NULL::bigint AS number
FROM asked
WHERE NOT EXISTS (SELECT FROM returned WHERE returned.id = asked.id AND returned.token = asked.token)
    AND NOT EXISTS (SELECT FROM dying WHERE dying.id = asked.id AND dying.token = asked.token)
UNION ALL
SELECT NULL, NULL, %(bin)s::uuid::text, ordering_key, number FROM dying WHERE ordering_key IS NOT NULL;

-- name: promote
-- Lets the next message of each key be delivered, behind a first one that is gone; the keys are locked.
WITH following AS MATERIALIZED (
    SELECT next.bin, next.id, next.not_before
    FROM unnest(%(bins)s::uuid[], %(keys)s::text[], %(numbers)s::bigint[]) AS gone (bin, ordering_key, number)
    CROSS JOIN LATERAL (
        SELECT bin, id, state, not_before
        FROM messages.message
        WHERE bin = gone.bin AND ordering_key = gone.ordering_key AND number > gone.number
        ORDER BY number
        LIMIT 1
    ) AS next
    WHERE next.state = 3
), promoted AS (
    UPDATE messages.message AS message
    SET state = CASE WHEN message.not_before > now() THEN 1 ELSE 0 END,
        due_time = CASE WHEN message.not_before > now() THEN message.not_before END, not_before = NULL,
        position = {base}
    FROM following
    WHERE message.bin = following.bin AND message.id = following.id
    RETURNING message.bin, message.state
)
INSERT INTO messages.tally (bin, ready, delayed, blocked)
SELECT bin, count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 1), -count(*)
FROM promoted
GROUP BY bin;

-- fragment: count_removed
-- Counts what `gone` returns.
INSERT INTO messages.tally (bin, ready, delayed, blocked)
SELECT %(bin)s::uuid, -count(*) FILTER (WHERE state = 0), -count(*) FILTER (WHERE state = 1),
    -count(*) FILTER (WHERE state = 3)
FROM gone
HAVING count(*) > 0

-- name: cancel
-- Removes messages that are not leased; tells of each what became of it: 1 removed, 2 leased, 3 not there. Keys, which
-- are locked, come with the first message removed.
WITH asked AS MATERIALIZED (
    SELECT * FROM unnest(%(ids)s::uuid[]) WITH ORDINALITY AS item (id, place)
), gone AS (
    DELETE FROM messages.message AS message
    WHERE bin = %(bin)s::uuid AND id = ANY(%(ids)s::uuid[]) AND state <> 2
    RETURNING message.id, message.state, message.ordering_key, message.number
), counted AS ({count_removed})
SELECT asked.place, CASE
    WHEN gone.id IS NOT NULL THEN 1
    WHEN EXISTS (SELECT FROM messages.message AS other WHERE other.bin = %(bin)s::uuid AND other.id = asked.id) THEN 2
    ELSE 3
END, CASE WHEN gone.state <> 3 THEN gone.ordering_key END, gone.number
FROM asked LEFT JOIN gone ON gone.id = asked.id;

-- name: overdue
-- Messages whose time to live is over, or that are ready and older than the queue keeps them. Of the latter only those
-- at the front are looked at.
SELECT id::text FROM (
    SELECT id
    FROM messages.message
    WHERE bin = %(bin)s::uuid AND expire_time <= now() AND state <> 2
    ORDER BY expire_time
    LIMIT %(limit)s
) AS expired
UNION
SELECT old.id::text
FROM unnest(%(ranks)s::smallint[], %(lows)s::bigint[]) AS band (rank, low)
CROSS JOIN LATERAL (
    SELECT id, enqueue_time
    FROM messages.message
    WHERE bin = %(bin)s::uuid AND state = 0 AND rank = band.rank AND position >= band.low
    ORDER BY position
    LIMIT %(limit)s
) AS old
WHERE old.enqueue_time < now() - make_interval(secs => %(retention)s);

-- name: remove_overdue
-- Removes messages that are overdue still; returns the keys, which are locked, of those that were first.
WITH gone AS (
    DELETE FROM messages.message
    WHERE bin = %(bin)s::uuid AND id = ANY(%(ids)s::uuid[]) AND state <> 2
        AND (expire_time <= now() OR enqueue_time < now() - make_interval(secs => %(retention)s))
    RETURNING id, state, ordering_key, number
), counted AS ({count_removed})
SELECT %(bin)s::uuid::text, ordering_key, number FROM gone WHERE state <> 3 AND ordering_key IS NOT NULL;

-- fragment: page_columns
-- The same of a row of a page; those behind as many bytes as a page has come without their payload.
id::text, CASE WHEN before <= %(bytes)s THEN payload END, headers, rank, ordering_key, enqueue_time, expire_time,
attempts, history

-- fragment: bytes_before
-- How many bytes the rows of a page before one have, in the order of `by_order`.
sum(octet_length(payload)) OVER by_order - octet_length(payload) AS before

-- name: peek_ready
-- A page of ready messages, in the order of delivery.
SELECT rank, position, {page_columns}
FROM (
    SELECT *, {bytes_before}
    FROM (
        SELECT *
        FROM messages.message
        WHERE bin = %(bin)s::uuid AND state = 0
            AND (rank, position, id) > (%(after_rank)s::smallint, %(after_position)s::bigint, %(after_id)s::uuid)
        ORDER BY rank, position, id
        LIMIT %(limit)s
    ) AS found
    WINDOW by_order AS (ORDER BY rank, position, id)
) AS page
ORDER BY page.rank, position, page.id;

-- name: peek_due
-- A page of delayed or of leased messages, by when they are due.
SELECT due_time, NULL, {page_columns}
FROM (
    SELECT *, {bytes_before}
    FROM (
        SELECT *
        FROM messages.message
        WHERE bin = %(bin)s::uuid AND due_time IS NOT NULL AND state = %(state)s
            AND (due_time, id) > (%(after_time)s::timestamptz, %(after_id)s::uuid)
        ORDER BY due_time, id
        LIMIT %(limit)s
    ) AS found
    WINDOW by_order AS (ORDER BY due_time, id)
) AS page
ORDER BY due_time, page.id;

-- name: peek_blocked
-- A page of blocked messages, by key and number.
SELECT page.ordering_key, number, {page_columns}
FROM (
    SELECT *, {bytes_before}
    FROM (
        SELECT *
        FROM messages.message
        WHERE bin = %(bin)s::uuid AND ordering_key IS NOT NULL AND state = 3
            AND (ordering_key, number) > (%(after_key)s::text, %(after_number)s::bigint)
        ORDER BY ordering_key, number
        LIMIT %(limit)s
    ) AS found
    WINDOW by_order AS (ORDER BY ordering_key, number)
) AS page
ORDER BY page.ordering_key, number;

-- name: list_dead_letters
-- A page of dead letters, the oldest first.
SELECT cause, dead_time, {page_columns}
FROM (
    SELECT *, NULL::timestamptz AS expire_time, {bytes_before}
    FROM (
        SELECT *
        FROM messages.dead_letter
        WHERE bin = %(bin)s::uuid AND (dead_time, id) > (%(after_time)s::timestamptz, %(after_id)s::uuid)
        ORDER BY dead_time, id
        LIMIT %(limit)s
    ) AS found
    WINDOW by_order AS (ORDER BY dead_time, id)
) AS page
ORDER BY dead_time, page.id;

-- name: pick_dead_letters
-- Dead letters by id, or the oldest ones, locked; the oldest of those with one id.
SELECT id::text, dead_time, ordering_key
FROM messages.dead_letter
WHERE bin = %(bin)s::uuid AND (%(ids)s::uuid[] IS NULL OR id = ANY(%(ids)s::uuid[]))
ORDER BY dead_time, dead_letter.id
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED;

-- name: replay
-- Makes messages of dead letters again, but for those whose id a message has; the keys are locked.
WITH picked AS MATERIALIZED (
    SELECT id, dead_time, place
    FROM unnest(%(ids)s::uuid[], %(dead_times)s::timestamptz[]) WITH ORDINALITY AS item (id, dead_time, place)
    WHERE NOT EXISTS (SELECT FROM messages.message AS other WHERE other.bin = %(bin)s::uuid AND other.id = item.id)
), risen AS (
    DELETE FROM messages.dead_letter AS dead
    USING picked
    WHERE dead.bin = %(dead_bin)s::uuid AND dead.id = picked.id AND dead.dead_time = picked.dead_time
    RETURNING dead.*, picked.place
), placed AS (
    SELECT *, ordering_key IS NOT NULL AND (
        row_number() OVER (PARTITION BY ordering_key ORDER BY place) > 1
        OR EXISTS (
            SELECT FROM messages.message AS earlier
            WHERE earlier.bin = %(bin)s::uuid AND earlier.ordering_key = risen.ordering_key
        )
    ) AS blocked
    FROM risen
), stored AS (
    INSERT INTO messages.message (
        bin, id, state, rank, position, enqueue_time, payload, headers, history, ordering_key, number
    )
    SELECT %(bin)s::uuid, id, CASE WHEN blocked THEN 3 ELSE 0 END, rank, {base} + place, now(), payload, headers,
        history, ordering_key, CASE WHEN ordering_key IS NOT NULL THEN (SELECT nextval('messages.message_number')) * 65536 + place END
    FROM placed
    RETURNING bin, id, state
), counted AS ({count_stored}), counted_dead AS (
    INSERT INTO messages.tally (bin, dead) SELECT %(dead_bin)s::uuid, -count(*) FROM risen HAVING count(*) > 0
)
SELECT id::text FROM stored;

-- fragment: backlog
-- Counts of a bin now: what was added up, and the tallies since.
SELECT total.bin, total.ready + COALESCE(sum(tally.ready), 0) AS ready,
    total.delayed + COALESCE(sum(tally.delayed), 0) AS delayed,
    total.leased + COALESCE(sum(tally.leased), 0) AS leased,
    total.blocked + COALESCE(sum(tally.blocked), 0) AS blocked,
    total.dead + COALESCE(sum(tally.dead), 0) AS dead,
    total.enqueued_total + COALESCE(sum(tally.enqueued_total), 0) AS enqueued_total,
    total.leased_total + COALESCE(sum(tally.leased_total), 0) AS leased_total,
    total.acked_total + COALESCE(sum(tally.acked_total), 0) AS acked_total
FROM messages.total AS total
LEFT JOIN messages.tally AS tally ON tally.bin = total.bin AND tally.xid >= total.folded
WHERE total.bin = ANY(%(bins)s::uuid[])
GROUP BY total.bin

-- name: backlogs
-- How many messages bins hold.
SELECT bin::text, (ready + delayed + leased + blocked)::bigint FROM ({backlog}) AS counts;

-- name: stats
-- Counts, rates and the oldest ready message of a queue.
WITH counts AS MATERIALIZED ({backlog})
SELECT counts.ready::bigint, counts.delayed::bigint, counts.leased::bigint, counts.blocked::bigint,
    (SELECT dead FROM counts AS other WHERE other.bin = %(dead_bin)s::uuid)::bigint, (
        SELECT min(first.enqueue_time)
        FROM unnest(%(ranks)s::smallint[], %(lows)s::bigint[]) AS band (rank, low)
        CROSS JOIN LATERAL (
            SELECT enqueue_time
            FROM messages.message
            WHERE bin = %(bin)s::uuid AND state = 0 AND rank = band.rank AND position >= band.low
            ORDER BY position
            LIMIT 1
        ) AS first
    ), counts.enqueued_total::bigint, counts.leased_total::bigint, counts.acked_total::bigint, total.enqueue_rate,
    total.lease_rate, total.ack_rate
FROM counts JOIN messages.total AS total USING (bin)
WHERE counts.bin = %(bin)s::uuid;

-- name: figures
-- Counts, rates and the age in seconds of the oldest ready message, of every queue by name. `bins` has those of messages
-- and of dead letters; `places`, `ranks` and `lows` say below which place nothing is ready, by bin and rank.
WITH counts AS MATERIALIZED ({backlog}),
oldest AS MATERIALIZED (
    SELECT band.bin, min(first.enqueue_time) AS enqueue_time
    FROM unnest(%(places)s::uuid[], %(ranks)s::smallint[], %(lows)s::bigint[]) AS band (bin, rank, low)
    CROSS JOIN LATERAL (
        SELECT enqueue_time
        FROM messages.message
        WHERE bin = band.bin AND state = 0 AND rank = band.rank AND position >= band.low
        ORDER BY position
        LIMIT 1
    ) AS first
    GROUP BY band.bin
)
SELECT queue.name, counts.ready::bigint, counts.delayed::bigint, counts.leased::bigint, counts.blocked::bigint,
    buried.dead::bigint, extract(epoch FROM clock_timestamp() - oldest.enqueue_time)::float8, total.enqueue_rate,
    total.lease_rate, total.ack_rate
FROM messages.queue AS queue
JOIN counts ON counts.bin = queue.bin
JOIN counts AS buried ON buried.bin = queue.dead_bin
JOIN messages.total AS total ON total.bin = queue.bin
LEFT JOIN oldest ON oldest.bin = queue.bin
ORDER BY queue.name;

-- name: fold
-- Adds up the tallies of transactions that are over.
WITH horizon AS MATERIALIZED (
    SELECT pg_snapshot_xmin(pg_current_snapshot()) AS xid
), folded AS (
    DELETE FROM messages.tally AS tally
    USING messages.total AS total, horizon
    WHERE tally.bin = total.bin AND tally.xid >= total.folded AND tally.xid < horizon.xid
    RETURNING tally.*
), summed AS (
    SELECT bin, sum(ready) AS ready, sum(delayed) AS delayed, sum(leased) AS leased, sum(blocked) AS blocked,
        sum(dead) AS dead, sum(enqueued_total) AS enqueued_total, sum(leased_total) AS leased_total,
        sum(acked_total) AS acked_total
    FROM folded
    GROUP BY bin
)
UPDATE messages.total AS total
SET folded = GREATEST(total.folded, horizon.xid), ready = total.ready + summed.ready,
    delayed = total.delayed + summed.delayed, leased = total.leased + summed.leased,
    blocked = total.blocked + summed.blocked, dead = total.dead + summed.dead,
    enqueued_total = total.enqueued_total + summed.enqueued_total,
    leased_total = total.leased_total + summed.leased_total, acked_total = total.acked_total + summed.acked_total
FROM summed, horizon
WHERE total.bin = summed.bin;

-- name: sample
-- Takes the rates of the last ten seconds, where there is anything to take.
UPDATE messages.total
SET enqueue_rate = (enqueued_total - sample_enqueued) / extract(epoch FROM now() - sample_time),
    lease_rate = (leased_total - sample_leased) / extract(epoch FROM now() - sample_time),
    ack_rate = (acked_total - sample_acked) / extract(epoch FROM now() - sample_time),
    sample_time = now(), sample_enqueued = enqueued_total, sample_leased = leased_total, sample_acked = acked_total
WHERE sample_time <= now() - interval '10 s'
    AND (enqueue_rate <> 0 OR lease_rate <> 0 OR ack_rate <> 0 OR enqueued_total <> sample_enqueued
        OR leased_total <> sample_leased OR acked_total <> sample_acked);

-- name: astir
-- Tells of several bins whether a queue has them still, whether messages are ready, due, or past their time to live, and
-- in how many seconds the next one will be due.
SELECT asked.bin::text, EXISTS (SELECT FROM messages.queue AS queue WHERE queue.bin = asked.bin), EXISTS (
    SELECT FROM messages.message AS message
    WHERE message.bin = asked.bin AND state = 0 AND rank = ANY(%(ranks)s::smallint[]) AND position >= asked.low
), EXISTS (
    SELECT FROM messages.message AS message
    WHERE message.bin = asked.bin AND due_time <= now() AND due_time >= asked.due_low
), EXISTS (
    SELECT FROM messages.message AS message
    WHERE message.bin = asked.bin AND expire_time <= now() AND state <> 2
), extract(epoch FROM (
    SELECT due_time FROM messages.message AS message
    WHERE message.bin = asked.bin AND due_time > now() ORDER BY due_time LIMIT 1
) - now())::float8
FROM unnest(%(bins)s::uuid[], %(lows)s::bigint[], %(due_lows)s::timestamptz[]) AS asked (bin, low, due_low);

-- name: purge_keys
-- Removes deduplication keys whose window is over.
DELETE FROM messages.deduplication
WHERE (bin, key) IN (
    SELECT bin, key FROM messages.deduplication
    WHERE expire_time < now()
    ORDER BY expire_time
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
);

-- name: purge_dead_letters
-- Removes dead letters that are older than their queue keeps them.
WITH old AS MATERIALIZED (
    SELECT queue.dead_bin, letter.id, letter.dead_time
    FROM messages.queue AS queue
    CROSS JOIN LATERAL (
        SELECT id, dead_time
        FROM messages.dead_letter
        WHERE bin = queue.dead_bin AND dead_time < now() - make_interval(secs => queue.dead_letter_retention)
        ORDER BY dead_time
        LIMIT 500
        FOR UPDATE SKIP LOCKED
    ) AS letter
), gone AS (
    DELETE FROM messages.dead_letter AS dead
    USING old
    WHERE dead.bin = old.dead_bin AND dead.id = old.id AND dead.dead_time = old.dead_time
    RETURNING dead.bin
), counted AS (
    INSERT INTO messages.tally (bin, dead) SELECT bin, -count(*) FROM gone GROUP BY bin
)
SELECT count(*) FROM gone;

-- name: idle_lanes
-- Some keys after one, locked unless somebody else has them.
SELECT bin::text, ordering_key
FROM messages.lane
WHERE (bin, ordering_key) > (%(after_bin)s::uuid, %(after_key)s::text)
ORDER BY bin, ordering_key
LIMIT 1000
FOR UPDATE SKIP LOCKED;

-- name: drop_lanes
-- Removes those of several keys, which are locked, that no message has.
DELETE FROM messages.lane AS lane
USING unnest(%(bins)s::uuid[], %(keys)s::text[]) AS idle (bin, ordering_key)
WHERE lane.bin = idle.bin AND lane.ordering_key = idle.ordering_key AND NOT EXISTS (
    SELECT FROM messages.message AS message WHERE message.bin = idle.bin AND message.ordering_key = idle.ordering_key
);

-- name: abandoned
-- Bins that no queue has any more, and whether what they hold is all that they will ever hold.
SELECT bin::text, abandon_time < now() - interval '10 minutes' FROM messages.abandoned_bin;

-- name: clear_messages
-- Removes some messages of a bin.
DELETE FROM messages.message
WHERE bin = %(bin)s::uuid AND id = ANY(ARRAY(
    SELECT id FROM messages.message WHERE bin = %(bin)s::uuid LIMIT 1000 FOR UPDATE SKIP LOCKED
));

-- name: clear_dead_letters
-- Removes some dead letters of a bin.
DELETE FROM messages.dead_letter
WHERE bin = %(bin)s::uuid AND id = ANY(ARRAY(
    SELECT id FROM messages.dead_letter WHERE bin = %(bin)s::uuid LIMIT 1000 FOR UPDATE SKIP LOCKED
));

-- name: clear_keys
-- Removes some deduplication keys of a bin.
DELETE FROM messages.deduplication
WHERE bin = %(bin)s::uuid AND key = ANY(ARRAY(
    SELECT key FROM messages.deduplication WHERE bin = %(bin)s::uuid LIMIT 1000 FOR UPDATE SKIP LOCKED
));

-- name: clear_lanes
-- Removes some ordering keys of a bin.
DELETE FROM messages.lane
WHERE bin = %(bin)s::uuid AND ordering_key = ANY(ARRAY(
    SELECT ordering_key FROM messages.lane WHERE bin = %(bin)s::uuid LIMIT 1000 FOR UPDATE SKIP LOCKED
));

-- name: clear_tallies
-- Removes some counts of a bin.
DELETE FROM messages.tally
WHERE bin = %(bin)s::uuid AND xid = ANY(ARRAY(
    SELECT xid FROM messages.tally WHERE bin = %(bin)s::uuid LIMIT 1000 FOR UPDATE SKIP LOCKED
));

-- name: forget_bin
-- Forgets a bin that is empty for good.
WITH gone AS (
    DELETE FROM messages.total WHERE bin = %(bin)s::uuid
)
DELETE FROM messages.abandoned_bin WHERE bin = %(bin)s::uuid;
