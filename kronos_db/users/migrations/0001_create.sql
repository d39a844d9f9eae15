-- Users and their credentials.

CREATE TABLE users.users (
    id uuid PRIMARY KEY,
    username text NOT NULL,
    -- NFKC_Casefold of the username: what uniqueness and look-ups go by.
    username_key text COLLATE "C" NOT NULL,
    -- Sealed values: the third part is the keyed blind index that look-ups go by.
    email text,
    email_index text COLLATE "C" GENERATED ALWAYS AS (split_part(email, '.', 3)) STORED,
    phone text,
    phone_index text COLLATE "C" GENERATED ALWAYS AS (split_part(phone, '.', 3)) STORED,
    display_name text NOT NULL,
    attributes jsonb NOT NULL,
    -- 1 ACTIVE, 2 SUSPENDED; a soft-deleted user keeps the state it comes back in.
    state smallint NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    delete_time timestamptz,
    CONSTRAINT users_username UNIQUE (username_key),
    CONSTRAINT users_email UNIQUE (email_index),
    CONSTRAINT users_phone UNIQUE (phone_index),
    CONSTRAINT users_state CHECK (state IN (1, 2))
);
-- Listings by time, of all users and of those in one state.
CREATE INDEX users_create_time ON users.users (create_time, id);
CREATE INDEX users_suspended ON users.users (create_time, id) WHERE state = 2;
CREATE INDEX users_deleted ON users.users (create_time, id) WHERE delete_time IS NOT NULL;

CREATE TABLE users.credentials (
    user_id uuid PRIMARY KEY REFERENCES users.users ON DELETE CASCADE,
    -- Argon2id in PHC string format: parameters, salt and hash.
    password_hash text NOT NULL,
    update_time timestamptz NOT NULL
);
