-- Log records, in partitions by how long they are kept and by time; counts of them; where they come from.
-- Times are nanoseconds since 1970 as OTLP has them: timestamptz has microseconds, and costs more to read as text.

CREATE TABLE logs.record (
    -- UUIDv7 of the call that brought it, and the index in its request: together they name a record.
    batch uuid NOT NULL,
    part integer NOT NULL,
    -- The class of retention.
    keep_days smallint NOT NULL,
    severity smallint NOT NULL,
    -- The time that it is filed under.
    time bigint NOT NULL,
    -- Its own time, where that is another: it lies outside of what there are partitions for.
    own_time bigint,
    observed_time bigint,
    service text COLLATE "C" NOT NULL,
    origin uuid NOT NULL,
    trace_id uuid,
    span_id bytea,
    flags bigint NOT NULL,
    dropped bigint NOT NULL,
    severity_text text COLLATE "C",
    event_name text COLLATE "C",
    -- Whether the body is JSON of a structured value.
    structured boolean NOT NULL,
    body text,
    attributes jsonb NOT NULL,
    -- Keyed hash of whom it is about.
    subject text COLLATE "C",
    PRIMARY KEY (batch, part, time, keep_days)
) PARTITION BY LIST (keep_days);
-- Each costs every record that is taken in: docs/decisions/0013-logs.md has how much.
CREATE INDEX record_time ON logs.record (time);
-- By an expression, so that for the pages of a service no other index has their order: see queries.sql.
CREATE INDEX record_service ON logs.record (service, (time + 0));
CREATE INDEX record_failures ON logs.record (service, (time + 0)) WHERE severity >= 17;
CREATE INDEX record_trace ON logs.record (trace_id) WHERE trace_id IS NOT NULL;
CREATE INDEX record_subject ON logs.record (subject) WHERE subject IS NOT NULL;
CREATE INDEX record_attributes ON logs.record USING gin (attributes jsonb_path_ops);

-- The partitions that there are: from `time_from` until before `time_until`.
CREATE TABLE logs.partition (
    name text PRIMARY KEY,
    keep_days smallint NOT NULL,
    time_from bigint NOT NULL,
    time_until bigint NOT NULL
);

-- Resources and scopes, each once. The id is a keyed hash of the content.
CREATE TABLE logs.origin (
    id uuid PRIMARY KEY,
    service text NOT NULL,
    attributes jsonb NOT NULL,
    scope_name text NOT NULL,
    scope_version text NOT NULL,
    scope_attributes jsonb NOT NULL,
    -- When a process last met it anew; one that is still in use is noted at least once a day.
    seen_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX origin_seen_time ON logs.origin (seen_time);

-- How many records there are, by minute since 1970. What a write adds, or an erasure takes away, is appended to
-- `count_delta` in its own transaction, so that no two writes wait for one row; `merge_counts` moves it to
-- `minute_count`. Both together are exact in every snapshot.
CREATE TABLE logs.count_delta (
    minute integer NOT NULL,
    service text COLLATE "C" NOT NULL,
    severity smallint NOT NULL,
    keep_days smallint NOT NULL,
    count bigint NOT NULL
);
CREATE TABLE logs.minute_count (
    minute integer NOT NULL,
    service text COLLATE "C" NOT NULL,
    severity smallint NOT NULL,
    keep_days smallint NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (minute, service, severity, keep_days)
);

CREATE TABLE logs.retention (
    -- Empty for all services; severity 0 for all severities, else 1 TRACE to 6 FATAL.
    service text COLLATE "C" NOT NULL,
    severity smallint NOT NULL,
    keep_days smallint NOT NULL,
    PRIMARY KEY (service, severity)
);

-- Erasures that have begun: how many records are gone already.
CREATE TABLE logs.erasure (
    subject text COLLATE "C" PRIMARY KEY,
    erased bigint NOT NULL
);

-- The login role has no rights on structure; these functions make and drop partitions for it, and nothing else.

-- Makes the partitions of a class from one time until another, in steps of `width`. Tables are made apart and then
-- attached: that lets reads and writes of the others go on.
CREATE FUNCTION logs.make_partitions(keep smallint, width bigint, time_from bigint, time_until bigint)
RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent text := 'record_' || keep;
    child text;
    place bigint := time_from - time_from % width;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('logs.partition'));
    IF to_regclass('logs.' || parent) IS NULL THEN
        EXECUTE format('CREATE TABLE logs.%I (LIKE logs.record INCLUDING ALL) PARTITION BY RANGE (time)', parent);
        EXECUTE format('ALTER TABLE logs.record ATTACH PARTITION logs.%I FOR VALUES IN (%s)', parent, keep);
    END IF;
    WHILE place < time_until LOOP
        child := parent || '_' || to_char(to_timestamp(place / 1000000000) AT TIME ZONE 'UTC', 'YYYYMMDD');
        IF NOT EXISTS (SELECT FROM logs.partition AS known WHERE known.name = child) THEN
            EXECUTE format('CREATE TABLE logs.%I (LIKE logs.%I INCLUDING ALL)', child, parent);
            EXECUTE format(
                'ALTER TABLE logs.%I ATTACH PARTITION logs.%I FOR VALUES FROM (%s) TO (%s)',
                parent, child, place, place + width
            );
            INSERT INTO logs.partition VALUES (child, keep, place, place + width);
            made := made + 1;
        END IF;
        place := place + width;
    END LOOP;
    RETURN made;
END $$;

-- Drops the oldest partition of a class that ends at or before a time, with its counts; returns its name, or null when
-- there is none or when somebody reads it for longer than the lock is waited for.
CREATE FUNCTION logs.drop_partition(keep smallint, before bigint)
RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    old logs.partition;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('logs.partition'));
    SELECT * INTO old FROM logs.partition AS known
    WHERE known.keep_days = keep AND known.time_until <= before ORDER BY known.time_until LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- First: it waits for writes in progress, whose counts are to go too.
    EXECUTE format('DROP TABLE logs.%I', old.name);
    DELETE FROM logs.count_delta AS counted WHERE counted.keep_days = keep
        AND counted.minute >= old.time_from / 60000000000 AND counted.minute < old.time_until / 60000000000;
    DELETE FROM logs.minute_count AS counted WHERE counted.keep_days = keep
        AND counted.minute >= old.time_from / 60000000000 AND counted.minute < old.time_until / 60000000000;
    DELETE FROM logs.partition AS known WHERE known.name = old.name;
    RETURN old.name;
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END $$;

-- Moves what was appended to the counts by minute; returns how many rows that were.
CREATE FUNCTION logs.merge_counts(most integer) RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    moved bigint;
BEGIN
    -- Not while a partition is dropped, whose counts would come back.
    PERFORM pg_advisory_xact_lock(hashtext('logs.partition'));
    WITH chosen AS (
        SELECT ctid FROM logs.count_delta LIMIT most
    ), gone AS (
        DELETE FROM logs.count_delta USING chosen WHERE count_delta.ctid = chosen.ctid RETURNING count_delta.*
    ), added AS (
        INSERT INTO logs.minute_count AS known
        SELECT minute, service, severity, keep_days, sum(count) FROM gone GROUP BY minute, service, severity, keep_days
        ON CONFLICT (minute, service, severity, keep_days) DO UPDATE SET count = known.count + EXCLUDED.count
    )
    SELECT count(*) INTO moved FROM gone;
    RETURN moved;
END $$;

REVOKE ALL ON FUNCTION logs.make_partitions, logs.drop_partition, logs.merge_counts FROM PUBLIC;
