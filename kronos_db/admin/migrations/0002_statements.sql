-- What statements cost, as differences between readings of pg_stat_statements.

-- One row: when the last reading was taken in. Whoever takes one in holds it meanwhile.
CREATE TABLE admin.statement_clock (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    taken_at timestamptz
);
INSERT INTO admin.statement_clock VALUES (true, NULL);

-- How reading each domain's statements went the last time.
CREATE TABLE admin.statement_sources (
    domain text PRIMARY KEY,
    state smallint NOT NULL,
    taken_at timestamptz
);

-- The statements, as pg_stat_statements normalised them; `fingerprint` is that of the parse tree without constants.
CREATE TABLE admin.statements (
    domain text NOT NULL,
    query_id bigint NOT NULL,
    fingerprint text NOT NULL,
    text text NOT NULL,
    PRIMARY KEY (domain, query_id)
);

-- Which named queries there are, and which methods issue them; no method for background work.
CREATE TABLE admin.statement_origins (
    fingerprint text NOT NULL,
    query text NOT NULL,
    method text NOT NULL,
    text text NOT NULL,
    PRIMARY KEY (fingerprint, query, method)
);
CREATE INDEX statement_origins_query ON admin.statement_origins (query);

-- The counters when they were last read. PostgreSQL begins a new series when it was reset, forgot a statement for want
-- of room, or lost its statistics: `stats_since` is when.
CREATE TABLE admin.statement_series (
    domain text NOT NULL,
    query_id bigint NOT NULL,
    top_level boolean NOT NULL,
    stats_since timestamptz NOT NULL,
    calls bigint NOT NULL,
    total_us bigint NOT NULL,
    rows bigint NOT NULL,
    blocks_hit bigint NOT NULL,
    blocks_read bigint NOT NULL,
    temp_bytes bigint NOT NULL,
    wal_bytes bigint NOT NULL,
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (domain, query_id, top_level, stats_since)
);

-- What was counted between a reading and the one before it.
CREATE TABLE admin.statement_deltas (
    taken_at timestamptz NOT NULL,
    domain text NOT NULL,
    query_id bigint NOT NULL,
    calls bigint NOT NULL,
    total_us bigint NOT NULL,
    rows bigint NOT NULL,
    blocks_hit bigint NOT NULL,
    blocks_read bigint NOT NULL,
    temp_bytes bigint NOT NULL,
    wal_bytes bigint NOT NULL,
    PRIMARY KEY (taken_at, domain, query_id),
    CONSTRAINT statement_deltas_calls CHECK (calls > 0),
    CONSTRAINT statement_deltas_rest CHECK (
        total_us >= 0 AND rows >= 0 AND blocks_hit >= 0 AND blocks_read >= 0 AND temp_bytes >= 0 AND wal_bytes >= 0
    )
);

-- Where the library is loaded and we may, statements are counted from now on; elsewhere ListSlowQueries says what to do.
DO $$ BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_stat_statements SCHEMA public;
EXCEPTION WHEN OTHERS THEN
    RAISE NOTICE 'pg_stat_statements cannot be created here: %', SQLERRM;
END $$;
