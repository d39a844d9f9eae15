-- Queues and their messages. docs/decisions/0012-messages.md says why the tables are as they are.

CREATE TABLE messages.queue (
    name text COLLATE "C" PRIMARY KEY,
    id uuid NOT NULL,
    -- Under which its messages and its dead letters are kept. To empty a queue is to give it another bin.
    bin uuid NOT NULL,
    dead_bin uuid NOT NULL,
    ordered boolean NOT NULL,
    -- All durations in seconds.
    lease_duration double precision NOT NULL,
    max_attempts integer NOT NULL,
    min_backoff double precision NOT NULL,
    max_backoff double precision NOT NULL,
    dead_letter_queue text COLLATE "C" NOT NULL,
    message_retention double precision NOT NULL,
    dead_letter_retention double precision NOT NULL,
    max_backlog bigint NOT NULL,
    max_payload_bytes integer NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL
);
CREATE UNIQUE INDEX queue_bin ON messages.queue (bin);

-- Bins that no queue has any more: what is in them is removed in the background. Kept for a while after that, since a
-- call that began before may still put something in.
CREATE TABLE messages.abandoned_bin (
    bin uuid PRIMARY KEY,
    abandon_time timestamptz NOT NULL DEFAULT now()
);

-- Orders the messages of one key: drawn while the key is locked, so that it grows as their enqueues are committed.
CREATE SEQUENCE messages.message_number;

-- Every message is in one state, and in the index of that state alone.
CREATE TABLE messages.message (
    bin uuid NOT NULL,
    id uuid NOT NULL,
    -- 0 READY, 1 DELAYED, 2 LEASED, 3 BLOCKED.
    state smallint NOT NULL,
    -- 9 less the priority.
    rank smallint NOT NULL,
    -- Of a ready message, its place: the transaction that made it ready times 2^16, and its place in that.
    position bigint NOT NULL,
    -- When it may be delivered (DELAYED), or its lease runs out (LEASED); null in other states.
    due_time timestamptz,
    lease_token uuid,
    attempts integer NOT NULL DEFAULT 0,
    ordering_key text COLLATE "C",
    number bigint,
    -- Of a blocked message: when it may be delivered at the earliest.
    not_before timestamptz,
    expire_time timestamptz,
    enqueue_time timestamptz NOT NULL,
    -- Sealed.
    payload bytea NOT NULL,
    headers jsonb,
    -- Attempts that failed, oldest first: attempt, kind, time (Unix seconds), reason.
    history jsonb,
    PRIMARY KEY (bin, id),
    CONSTRAINT message_state CHECK (state BETWEEN 0 AND 3),
    CONSTRAINT message_due CHECK ((due_time IS NOT NULL) = (state IN (1, 2))),
    CONSTRAINT message_leased CHECK ((lease_token IS NOT NULL) = (state = 2))
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
-- A sealed payload does not compress, and to try takes time.
ALTER TABLE messages.message ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE INDEX message_ready ON messages.message (bin, rank, position) WHERE state = 0;
CREATE INDEX message_due ON messages.message (bin, due_time) WHERE due_time IS NOT NULL;
CREATE INDEX message_key ON messages.message (bin, ordering_key, number) WHERE ordering_key IS NOT NULL;
CREATE INDEX message_expiry ON messages.message (bin, expire_time) WHERE expire_time IS NOT NULL;

-- Locked by whoever adds a message of a key, or takes away the first one. Rows of keys without messages are removed in
-- the background.
CREATE TABLE messages.lane (
    bin uuid NOT NULL,
    ordering_key text COLLATE "C" NOT NULL,
    PRIMARY KEY (bin, ordering_key)
);

CREATE TABLE messages.deduplication (
    bin uuid NOT NULL,
    key text COLLATE "C" NOT NULL,
    message_id uuid NOT NULL,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (bin, key)
);
CREATE INDEX deduplication_expire_time ON messages.deduplication (expire_time);

CREATE TABLE messages.dead_letter (
    bin uuid NOT NULL,
    id uuid NOT NULL,
    dead_time timestamptz NOT NULL,
    -- 1 ATTEMPTS_USED_UP, 2 REJECTED.
    cause smallint NOT NULL,
    rank smallint NOT NULL,
    attempts integer NOT NULL,
    ordering_key text COLLATE "C",
    enqueue_time timestamptz NOT NULL,
    payload bytea NOT NULL,
    headers jsonb,
    history jsonb,
    PRIMARY KEY (bin, id, dead_time)
);
ALTER TABLE messages.dead_letter ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE INDEX dead_letter_dead_time ON messages.dead_letter (bin, dead_time, id);

-- What a transaction changed in the counts of a bin: added up into `total` in the background, and by who asks.
CREATE TABLE messages.tally (
    bin uuid NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    part bigint GENERATED ALWAYS AS IDENTITY,
    ready bigint NOT NULL DEFAULT 0,
    delayed bigint NOT NULL DEFAULT 0,
    leased bigint NOT NULL DEFAULT 0,
    blocked bigint NOT NULL DEFAULT 0,
    dead bigint NOT NULL DEFAULT 0,
    enqueued_total bigint NOT NULL DEFAULT 0,
    leased_total bigint NOT NULL DEFAULT 0,
    acked_total bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (bin, xid, part)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);

CREATE TABLE messages.total (
    bin uuid PRIMARY KEY,
    -- Tallies of all transactions before this one are in it.
    folded xid8 NOT NULL DEFAULT '0',
    ready bigint NOT NULL DEFAULT 0,
    delayed bigint NOT NULL DEFAULT 0,
    leased bigint NOT NULL DEFAULT 0,
    blocked bigint NOT NULL DEFAULT 0,
    dead bigint NOT NULL DEFAULT 0,
    enqueued_total bigint NOT NULL DEFAULT 0,
    leased_total bigint NOT NULL DEFAULT 0,
    acked_total bigint NOT NULL DEFAULT 0,
    -- The counts at an earlier time, and the rates since the one before, in messages a second.
    sample_time timestamptz NOT NULL DEFAULT now(),
    sample_enqueued bigint NOT NULL DEFAULT 0,
    sample_leased bigint NOT NULL DEFAULT 0,
    sample_acked bigint NOT NULL DEFAULT 0,
    enqueue_rate double precision NOT NULL DEFAULT 0,
    lease_rate double precision NOT NULL DEFAULT 0,
    ack_rate double precision NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
