-- What the runtime keeps in the schema of every domain. Unqualified names: the migrator sets the search path.

-- Answers of mutating calls, so that a retry gets the first one again.
CREATE TABLE idempotency (
    caller text NOT NULL,
    request_id uuid NOT NULL,
    fingerprint bytea NOT NULL,
    reply bytea NOT NULL,
    expire_time timestamptz NOT NULL,
    CONSTRAINT idempotency_pkey PRIMARY KEY (caller, request_id)
);
CREATE INDEX idempotency_expire_time ON idempotency (expire_time);

-- The domain's data keys, wrapped by a master key that is kept outside of the database.
CREATE TABLE data_key (
    id uuid PRIMARY KEY,
    purpose text NOT NULL,
    person uuid,
    master_key_id text NOT NULL,
    wrapped bytea NOT NULL,
    is_current boolean NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);
-- One key of each purpose is current: for the domain, and for each person who has keys of their own.
CREATE UNIQUE INDEX data_key_current ON data_key (purpose, person) NULLS NOT DISTINCT WHERE is_current;
