-- Tokens, and revocations of many of them at once.

-- One number for each family of tokens, drawn when it begins. A revocation of many tokens draws one too, and concerns
-- those below: clocks are not compared for it, since they may go back. Successors have the number of the first token, so
-- that none escapes by being made meanwhile.
CREATE SEQUENCE tokens.number;

CREATE TABLE tokens.token (
    -- UUIDv7; of a JWT a UUIDv8 made of its `jti`.
    id uuid PRIMARY KEY,
    family_id uuid NOT NULL,
    -- 1 SESSION, 2 REFRESH, 3 ACCESS, 4 API_KEY, 5 JWT.
    kind smallint NOT NULL,
    -- Keyed hash of the text, and the mark in the text that names the key; of a JWT nothing and ''.
    hash bytea,
    mark text NOT NULL,
    number bigint NOT NULL,
    -- 1 USER, 2 SERVICE.
    subject_kind smallint NOT NULL,
    subject text COLLATE "C" NOT NULL,
    client_id text COLLATE "C" NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    -- Sealed values.
    device_name text,
    ip_address text,
    sensitive_claims text,
    -- Scopes, with a blank between each two.
    scope text NOT NULL,
    claims jsonb NOT NULL,
    jwt_id text,
    expire_time timestamptz,
    idle_seconds integer,
    -- Of a refresh token: how long its access tokens last, and for how long its successor is given again.
    access_seconds integer NOT NULL,
    grace_seconds integer NOT NULL,
    grant_time timestamptz NOT NULL,
    issue_time timestamptz NOT NULL,
    -- Last use that was noted.
    seen_time timestamptz NOT NULL,
    -- Of a refresh token that was exchanged: when, and for which tokens.
    use_time timestamptz,
    successor_id uuid,
    successor_access_id uuid,
    revoke_time timestamptz,
    -- From when on the row may be removed.
    purge_time timestamptz NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    CONSTRAINT token_kind CHECK (kind BETWEEN 1 AND 5),
    CONSTRAINT token_subject_kind CHECK (subject_kind IN (1, 2)),
    CONSTRAINT token_hash CHECK ((hash IS NULL) = (kind = 5)),
    CONSTRAINT token_jwt_id CHECK ((jwt_id IS NULL) = (kind <> 5))
)
-- Room for the last use, which no index has: noting it moves no row to another page.
WITH (fillfactor = 90);

-- What revocations, and the listing of a subject's tokens, look for. Revoked ones are looked for by their id alone.
CREATE INDEX token_subject ON tokens.token (subject, id) WHERE revoke_time IS NULL;
CREATE INDEX token_family ON tokens.token (family_id) WHERE revoke_time IS NULL;
CREATE INDEX token_client ON tokens.token (client_id) WHERE revoke_time IS NULL AND client_id <> '';
CREATE INDEX token_device ON tokens.token (device_id) WHERE revoke_time IS NULL AND device_id <> '';
CREATE INDEX token_grant_time ON tokens.token (grant_time) WHERE revoke_time IS NULL;
-- What can be removed.
CREATE INDEX token_purge_time ON tokens.token (purge_time);
-- API keys that end by not being used alone; there is no time at which their row can be removed beforehand.
CREATE INDEX token_idle ON tokens.token (id) WHERE expire_time IS NULL AND idle_seconds IS NOT NULL;
-- JWTs that were revoked before they expired, for those who verify JWTs alone.
CREATE INDEX token_revoked_jwt ON tokens.token (revoke_time) WHERE kind = 5 AND revoke_time IS NOT NULL;

-- Revocations of many tokens: by what, `subject:ANN` for one. All with a number up to `number` are revoked, and all
-- whose family began before `before`. `until` is when the last JWT expires that was revoked: so long those who verify
-- JWTs alone have to be told. `marked`: its tokens are marked one by one, so that the row can go after that time.
CREATE TABLE tokens.cutoff (
    key text COLLATE "C" PRIMARY KEY,
    number bigint NOT NULL,
    before timestamptz NOT NULL,
    revoke_time timestamptz NOT NULL,
    until timestamptz NOT NULL,
    marked boolean NOT NULL DEFAULT false
);
-- What those who verify JWTs alone are told. Every sign-out revokes a family, and few of these have a JWT.
CREATE INDEX cutoff_told ON tokens.cutoff (revoke_time) WHERE key NOT LIKE 'family:%' OR until > revoke_time;
-- What is to be marked, and what can go.
CREATE INDEX cutoff_unmarked ON tokens.cutoff (revoke_time) WHERE NOT marked;
CREATE INDEX cutoff_marked ON tokens.cutoff (until) WHERE marked;
