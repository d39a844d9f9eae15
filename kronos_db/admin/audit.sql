-- The SQL of the audit log.

-- fragment: columns
-- What makes an Event, in the order of its fields.
sequence, id, call_id, phase, event_time, caller, method, request, detail, code, reason, request_id, call_count,
previous_hash, hash

-- name: lock
-- Lets one transaction at a time add events, of whichever process: each needs the hash of the last one.
SELECT pg_advisory_xact_lock(hashtextextended('admin.audit_events', 0));

-- name: last
-- The event at the end of the log, and which of these ids are in it already: of an attempt whose outcome was lost.
SELECT coalesce(last.sequence, 0), last.hash, ARRAY(
    SELECT audit_events.id
    FROM admin.audit_events
    WHERE audit_events.id = ANY(%(ids)s::uuid[])
)
FROM (VALUES (true)) AS always (there) LEFT JOIN (
    SELECT audit_events.sequence, audit_events.hash
    FROM admin.audit_events
    ORDER BY audit_events.sequence DESC
    LIMIT 1
) AS last ON always.there;

-- name: add
-- Adds one event.
INSERT INTO admin.audit_events ({columns})
VALUES (
    %(sequence)s, %(id)s, %(call_id)s, %(phase)s, %(event_time)s, %(caller)s, %(method)s, %(request)s, %(detail)s,
    %(code)s, %(reason)s, %(request_id)s, %(call_count)s, %(previous_hash)s, %(hash)s
);

-- name: list
-- A page of events, newest first. plan: custom.
SELECT {columns}
FROM admin.audit_events
WHERE (%(after)s::bigint IS NULL OR sequence < %(after)s)
    AND (%(from)s::timestamptz IS NULL OR event_time >= %(from)s)
    AND (%(until)s::timestamptz IS NULL OR event_time < %(until)s)
    AND (%(caller)s::text IS NULL OR caller = %(caller)s)
    AND (%(method)s::text IS NULL OR method = %(method)s)
    AND (%(phase)s::smallint IS NULL OR phase = %(phase)s)
    AND (%(code)s::text IS NULL OR code = %(code)s)
    AND (%(call_id)s::uuid IS NULL OR call_id = %(call_id)s)
ORDER BY sequence DESC
LIMIT %(limit)s;

-- name: read
-- Events in the order of the log, from a place on.
SELECT {columns}
FROM admin.audit_events
WHERE sequence >= %(from)s
ORDER BY sequence
LIMIT %(limit)s;
