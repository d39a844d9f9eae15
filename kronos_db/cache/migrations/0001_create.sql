-- Namespaces, their entries, and what invalidates these.

-- One order over everything that happens to entries: versions of entries, leases and invalidations of tags are drawn
-- from it. What was drawn later began later.
CREATE SEQUENCE cache.version;

CREATE TABLE cache.namespace (
    name text COLLATE "C" PRIMARY KEY,
    -- Entries belong to the id: those of a namespace that was deleted and created anew are not its entries.
    id uuid NOT NULL,
    durable boolean NOT NULL,
    sensitive boolean NOT NULL,
    -- Seconds; null: without end, and without a stale time.
    default_ttl double precision,
    default_stale_time double precision,
    -- 0: no limit.
    max_entries bigint NOT NULL,
    max_bytes bigint NOT NULL,
    max_value_bytes integer NOT NULL,
    -- A list of {name, path, type}, in the order in which `entry.indexed` has their values.
    indexes jsonb NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    CONSTRAINT namespace_id UNIQUE (id)
);

-- Entries, and keys without an entry for which somebody holds a lease (version 0). The memory part has no log: it is
-- empty after a crash.
CREATE TABLE cache.entry (
    durable boolean NOT NULL,
    namespace_id uuid NOT NULL,
    key text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    -- What was invalidated after this number was drawn makes the entry missing: the version, or of an entry that was
    -- filled the number of the lease, since the source was read after that.
    base bigint NOT NULL,
    fresh_until timestamptz NOT NULL,
    stale_until timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    -- When it was last read from here or written; reads that were answered from copies do not count.
    used_time timestamptz NOT NULL,
    -- What the lease is: who asked for it, and the number that was drawn when it was given. Null: nobody holds one.
    lease_id uuid,
    lease_base bigint,
    lease_until timestamptz,
    -- Bytes that count for the limits, and how this and the number of entries changed with the last write.
    size integer NOT NULL,
    grown integer NOT NULL,
    appeared smallint NOT NULL,
    -- The version that the write which would make this row asked for: ON CONFLICT sees nothing but columns.
    expected bigint,
    tags text[] COLLATE "C" NOT NULL,
    -- What stands in the namespace's indexes, in their order; null when it has none.
    indexed text[] COLLATE "C",
    value bytea NOT NULL,
    PRIMARY KEY (durable, namespace_id, key)
) PARTITION BY LIST (durable);

-- Rows are replaced all the time: with room in the page, and without an index over what changes, that stays there.
CREATE TABLE cache.entry_durable PARTITION OF cache.entry FOR VALUES IN (true) WITH (fillfactor = 80);
CREATE UNLOGGED TABLE cache.entry_memory PARTITION OF cache.entry FOR VALUES IN (false) WITH (fillfactor = 80);

-- What of a value stands in an index, in a form whose order as text is that of the values. A row is true as long as
-- the entry says the same in `indexed`.
CREATE TABLE cache.entry_index (
    durable boolean NOT NULL,
    namespace_id uuid NOT NULL,
    number smallint NOT NULL,
    value text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    PRIMARY KEY (durable, namespace_id, number, value, key)
) PARTITION BY LIST (durable);
CREATE TABLE cache.entry_index_durable PARTITION OF cache.entry_index FOR VALUES IN (true);
CREATE UNLOGGED TABLE cache.entry_index_memory PARTITION OF cache.entry_index FOR VALUES IN (false);

-- When a tag was last invalidated: entries with a smaller base are missing.
CREATE TABLE cache.tag (
    namespace_id uuid NOT NULL,
    tag text COLLATE "C" NOT NULL,
    sequence bigint NOT NULL,
    update_time timestamptz NOT NULL,
    PRIMARY KEY (namespace_id, tag)
);

-- How many entries and bytes there are: the sum of the rows. Each write adds one, so that none waits for another; they
-- are summed up in the background. After a crash it is counted anew.
CREATE UNLOGGED TABLE cache.usage (
    namespace_id uuid NOT NULL,
    entries bigint NOT NULL,
    bytes bigint NOT NULL,
    -- Whether it is what the others are added to. Without such a row the sum means nothing.
    is_base boolean NOT NULL DEFAULT false
);
CREATE INDEX usage_namespace_id ON cache.usage (namespace_id);

-- What all processes have counted.
CREATE UNLOGGED TABLE cache.stat (
    namespace_id uuid PRIMARY KEY,
    hits bigint NOT NULL,
    misses bigint NOT NULL,
    puts bigint NOT NULL,
    evictions bigint NOT NULL,
    expirations bigint NOT NULL
);

-- Which keys are asked for, by looking at some calls.
CREATE UNLOGGED TABLE cache.key_use (
    namespace_id uuid NOT NULL,
    key text COLLATE "C" NOT NULL,
    uses bigint NOT NULL,
    PRIMARY KEY (namespace_id, key)
);
