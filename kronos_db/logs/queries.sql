-- The SQL of the logs domain.

-- name: copy_records
-- Takes records in. The columns are in the order in which `intake.py` writes them.
COPY logs.record (
    batch, part, keep_days, severity, time, own_time, observed_time, service, origin, trace_id, span_id, flags, dropped,
    severity_text, event_name, structured, body, attributes, subject
) FROM STDIN;

-- name: add_counts
-- Adds to the counts by minute.
INSERT INTO logs.count_delta (minute, service, severity, keep_days, count)
SELECT * FROM unnest(
    %(minutes)s::integer[], %(services)s::text[], %(severities)s::smallint[], %(keep_days)s::smallint[],
    %(counts)s::bigint[]
);

-- name: note_origins
-- Keeps origins that are new, and notes of the others that they are in use.
INSERT INTO logs.origin AS known (id, service, attributes, scope_name, scope_version, scope_attributes)
SELECT * FROM unnest(
    %(ids)s::uuid[], %(services)s::text[], %(attributes)s::jsonb[], %(scope_names)s::text[], %(scope_versions)s::text[],
    %(scope_attributes)s::jsonb[]
) AS new
ORDER BY 1
ON CONFLICT (id) DO UPDATE SET seen_time = now() WHERE known.seen_time < now() - interval '1 hour';

-- name: origins
-- Origins by id.
SELECT id::text, service, attributes::text, scope_name, scope_version, scope_attributes::text
FROM logs.origin
WHERE id = ANY(%(ids)s::uuid[]);

-- name: forget_origins
-- Removes origins that nobody has met for longer than any record is kept.
DELETE FROM logs.origin WHERE seen_time < now() - make_interval(days => %(days)s);

-- fragment: columns
-- What makes a Record, in the order of its fields.
batch::text, part, time, own_time, observed_time, severity, severity_text, structured, body, attributes::text,
    replace(trace_id::text, '-', ''), encode(span_id, 'hex'), flags, event_name, dropped, service, origin::text

-- fragment: filters_of_service
-- What a Filter asks for beside the service; null filters nothing.
time >= %(time_from)s::bigint AND time < %(time_until)s::bigint
    AND (%(minimum_severity)s::smallint IS NULL OR severity >= %(minimum_severity)s)
    AND (%(maximum_severity)s::smallint IS NULL OR severity <= %(maximum_severity)s)
    AND (%(trace_id)s::uuid IS NULL OR trace_id = %(trace_id)s::uuid)
    AND (%(span_id)s::bytea IS NULL OR span_id = %(span_id)s)
    AND (%(event_name)s::text IS NULL OR event_name = %(event_name)s)
    AND (%(attributes)s::jsonb IS NULL OR attributes @> %(attributes)s::jsonb)
    AND (%(present)s::text[] IS NULL OR attributes ?& %(present)s)
    AND (%(absent)s::text[] IS NULL OR NOT attributes ?| %(absent)s)
    AND (%(body)s::text IS NULL OR strpos(body, %(body)s) > 0)

-- fragment: filters
-- All that a Filter asks for.
{filters_of_service} AND (%(service)s::text IS NULL OR service = %(service)s)

-- fragment: newest
-- The end of a page that goes back in time, behind the last record seen.
AND (time, batch, part) < (%(after_time)s::bigint, %(after_batch)s::uuid, %(after_part)s::integer)
ORDER BY time DESC, batch DESC, part DESC
LIMIT %(limit)s

-- fragment: oldest
-- The end of a page that goes on in time.
AND (time, batch, part) > (%(after_time)s::bigint, %(after_batch)s::uuid, %(after_part)s::integer)
ORDER BY time, batch, part
LIMIT %(limit)s

-- fragment: of_service
-- The records of one service in a range of time. `time + 0` is what the index by service has: were it `time`, PostgreSQL
-- would often take the index by time alone, and walk past all that other services wrote since this one was last heard of.
service = %(service)s AND time + 0 >= %(time_from)s::bigint AND time + 0 < %(time_until)s::bigint

-- fragment: newest_of_service
-- As `newest`, in the order of that index.
AND (time, batch, part) < (%(after_time)s::bigint, %(after_batch)s::uuid, %(after_part)s::integer)
ORDER BY time + 0 DESC, batch DESC, part DESC
LIMIT %(limit)s

-- fragment: oldest_of_service
-- As `oldest`, in the order of that index.
AND (time, batch, part) > (%(after_time)s::bigint, %(after_batch)s::uuid, %(after_part)s::integer)
ORDER BY time + 0, batch, part
LIMIT %(limit)s

-- fragment: within
-- Of the records of a page those that fit into so many bytes, one at least; and how many there were.
SELECT {columns}, found
FROM (
    SELECT *, count(*) OVER () AS found,
        sum(octet_length(COALESCE(body, '')) + pg_column_size(attributes)) OVER (ROWS UNBOUNDED PRECEDING)
            - octet_length(COALESCE(body, '')) - pg_column_size(attributes) AS before

-- fragment: room
-- Closes `within`.
) AS page WHERE before < %(most_bytes)s

-- name: newest_by_time
-- A page by time alone. All pages have plan: custom, since filters and partitions that play no part are then left out.
{within} FROM (SELECT * FROM logs.record WHERE {filters} {newest}) AS records {room};

-- name: oldest_by_time
-- The same, oldest first. plan: custom.
{within} FROM (SELECT * FROM logs.record WHERE {filters} {oldest}) AS records {room};

-- name: newest_by_service
-- A page of one service. plan: custom.
{within} FROM (SELECT * FROM logs.record WHERE {of_service} AND {filters_of_service} {newest_of_service}) AS records {room};

-- name: oldest_by_service
-- The same, oldest first. plan: custom.
{within} FROM (SELECT * FROM logs.record WHERE {of_service} AND {filters_of_service} {oldest_of_service}) AS records {room};

-- name: newest_hundred
-- The first page of one service, of at most 100 records and by no other filter. It is asked most, so its plan is kept: to
-- make it takes longer than to run it. With a range of time, a kept plan would be made for very few records.
{within} FROM (
    SELECT * FROM logs.record WHERE service = %(service)s ORDER BY time + 0 DESC, batch DESC, part DESC LIMIT 101
) AS records {room} LIMIT %(limit)s;

-- name: oldest_hundred
-- The same, oldest first.
{within} FROM (
    SELECT * FROM logs.record WHERE service = %(service)s ORDER BY time + 0, batch, part LIMIT 101
) AS records {room} LIMIT %(limit)s;

-- name: newest_failures
-- A page of what one service has logged as errors: they are rare, and have an index of their own.
-- plan: custom.
{within} FROM (
    SELECT * FROM logs.record WHERE severity >= 17 AND {of_service} AND {filters_of_service} {newest_of_service}
) AS records {room};

-- name: oldest_failures
-- The same, oldest first. plan: custom.
{within} FROM (
    SELECT * FROM logs.record WHERE severity >= 17 AND {of_service} AND {filters_of_service} {oldest_of_service}
) AS records {room};

-- name: newest_by_trace
-- A page of one trace. plan: custom. Sorted apart, so that no index by time is walked for it.
{within} FROM (
    SELECT * FROM (
        SELECT * FROM logs.record WHERE trace_id = %(trace_id)s::uuid AND {filters} OFFSET 0
    ) AS traced WHERE true {newest}
) AS records {room};

-- name: oldest_by_trace
-- The same, oldest first. plan: custom.
{within} FROM (
    SELECT * FROM (
        SELECT * FROM logs.record WHERE trace_id = %(trace_id)s::uuid AND {filters} OFFSET 0
    ) AS traced WHERE true {oldest}
) AS records {room};

-- name: newest_by_attribute
-- A page of records whose attributes contain some. plan: custom, since the value decides whether to go by it or by time.
{within} FROM (
    SELECT * FROM logs.record WHERE attributes @> %(attributes)s::jsonb AND {filters} {newest}
) AS records {room};

-- name: oldest_by_attribute
-- The same, oldest first. plan: custom.
{within} FROM (
    SELECT * FROM logs.record WHERE attributes @> %(attributes)s::jsonb AND {filters} {oldest}
) AS records {room};

-- name: portions
-- The records of portions of batches, in the order of the portions.
SELECT portion.number::integer, {columns}
FROM unnest(
    %(numbers)s::integer[], %(batches)s::uuid[], %(firsts)s::integer[], %(lasts)s::integer[]
) AS portion (number, of, first, last)
JOIN logs.record ON batch = portion.of AND part BETWEEN portion.first AND portion.last
ORDER BY portion.number, batch, part;

-- fragment: counts
-- All counts by minute in a range, of the services and severities that a Filter asks for.
SELECT minute, service, severity, count
FROM (
    SELECT * FROM logs.minute_count UNION ALL SELECT * FROM logs.count_delta
) AS counted
WHERE minute >= %(minute_from)s AND minute < %(minute_until)s
    AND (%(service)s::text IS NULL OR service = %(service)s)
    AND (%(minimum_severity)s::smallint IS NULL OR severity >= %(minimum_severity)s)
    AND (%(maximum_severity)s::smallint IS NULL OR severity <= %(maximum_severity)s)

-- fragment: tally
-- From `counted` (interval, name, count): the counts of the largest groups, and a first row with all groups and records.
totals AS (
    SELECT name, sum(count)::bigint AS count FROM counted GROUP BY name HAVING sum(count) <> 0
), largest AS (
    SELECT name, count FROM totals ORDER BY count DESC, name LIMIT %(limit)s
)
SELECT NULL::integer, NULL::text, (SELECT count(*) FROM totals), COALESCE((SELECT sum(count) FROM totals), 0)::bigint
UNION ALL
(
    SELECT counted.number, counted.name, counted.count, largest.count
    FROM counted JOIN largest ON largest.name = counted.name
    WHERE counted.count <> 0
    ORDER BY counted.number, largest.count DESC, counted.name
)

-- name: tally_by_counts
-- Counts by interval and group, from the counts by minute. plan: custom, for the range decides how they are read.
WITH counted AS (
    SELECT (minute - %(minute_from)s) / %(minutes)s AS number,
        CASE %(grouping)s WHEN 'severity' THEN severity::text WHEN 'service' THEN service ELSE '' END AS name,
        sum(count)::bigint AS count
    FROM ({counts}) AS counts
    GROUP BY 1, 2
), {tally};

-- name: tally_by_records
-- The same from the records themselves. plan: custom.
WITH counted AS (
    SELECT ((time - %(time_from)s::bigint) / (%(minutes)s * 60000000000))::integer AS number,
        CASE %(grouping)s WHEN 'severity' THEN severity::text WHEN 'service' THEN service
            WHEN 'attribute' THEN attributes ->> %(attribute_key)s ELSE '' END AS name,
        count(*) AS count
    FROM logs.record
    WHERE {filters} AND (%(grouping)s <> 'attribute' OR attributes ->> %(attribute_key)s IS NOT NULL)
    GROUP BY 1, 2
), {tally};

-- name: stats
-- How many records there are, of how many services, and from which minutes.
WITH counted AS (
    SELECT minute, service, sum(count) AS count
    FROM (SELECT * FROM logs.minute_count UNION ALL SELECT * FROM logs.count_delta) AS counts
    GROUP BY minute, service
    HAVING sum(count) <> 0
)
SELECT COALESCE(sum(count), 0)::bigint, count(DISTINCT service), min(minute), max(minute) FROM counted;

-- name: classes
-- What there is of each class: records, bytes, partitions.
SELECT keep_days, COALESCE(counted.records, 0)::bigint, room.bytes::bigint, room.partitions
FROM (
    SELECT keep_days, count(*) AS partitions, sum(pg_total_relation_size(('logs.' || name)::regclass)) AS bytes
    FROM logs.partition
    GROUP BY keep_days
) AS room
LEFT JOIN (
    SELECT keep_days, sum(count) AS records
    FROM (SELECT * FROM logs.minute_count UNION ALL SELECT * FROM logs.count_delta) AS counts
    GROUP BY keep_days
) AS counted USING (keep_days)
ORDER BY keep_days;

-- name: rules
-- All rules of retention.
SELECT service, severity, keep_days FROM logs.retention;

-- name: list_rules
-- A page of the rules of retention.
SELECT service, severity, keep_days
FROM logs.retention
WHERE (%(after_service)s::text IS NULL OR (service, severity) > (%(after_service)s, %(after_severity)s::smallint))
ORDER BY service, severity
LIMIT %(limit)s;

-- name: set_rule
-- Sets a rule of retention.
INSERT INTO logs.retention (service, severity, keep_days)
VALUES (%(service)s, %(severity)s, %(keep_days)s)
ON CONFLICT (service, severity) DO UPDATE SET keep_days = EXCLUDED.keep_days;

-- name: remove_rule
-- Removes a rule of retention.
DELETE FROM logs.retention WHERE service = %(service)s AND severity = %(severity)s;

-- name: erase_some
-- Removes some records of a subject, takes them out of the counts, and adds them to what its erasure has removed. Touches
-- one row when there were any, none else.
WITH chosen AS (
    SELECT batch, part, time, keep_days FROM logs.record WHERE subject = %(subject)s LIMIT %(limit)s
), gone AS (
    DELETE FROM logs.record AS record
    USING chosen
    WHERE record.batch = chosen.batch AND record.part = chosen.part AND record.time = chosen.time
        AND record.keep_days = chosen.keep_days
    RETURNING record.time, record.service, record.severity, record.keep_days
), counted AS (
    INSERT INTO logs.count_delta (minute, service, severity, keep_days, count)
    SELECT (time / 60000000000)::integer, service, severity, keep_days, -count(*)
    FROM gone
    GROUP BY 1, 2, 3, 4
)
INSERT INTO logs.erasure AS known (subject, erased)
SELECT %(subject)s, count(*) FROM gone HAVING count(*) > 0
ON CONFLICT (subject) DO UPDATE SET erased = known.erased + EXCLUDED.erased;

-- name: end_erasure
-- Ends an erasure and returns how many records it has removed.
DELETE FROM logs.erasure WHERE subject = %(subject)s RETURNING erased;

-- name: count_subject
-- How many records a subject has.
SELECT count(*) FROM logs.record WHERE subject = %(subject)s;

-- name: used_classes
-- The classes that there are partitions or rules for.
SELECT keep_days FROM logs.partition UNION SELECT keep_days FROM logs.retention;

-- name: make_partitions
-- Makes the partitions of a class from one time until another.
SELECT logs.make_partitions(%(keep_days)s::smallint, %(width)s::bigint, %(time_from)s::bigint, %(time_until)s::bigint);

-- name: drop_partition
-- Drops the oldest partition of a class that ends at or before a time.
SELECT logs.drop_partition(%(keep_days)s::smallint, %(before)s::bigint);

-- name: merge_counts
-- Moves some of what was appended to the counts.
SELECT logs.merge_counts(%(most)s);
