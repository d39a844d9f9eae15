-- The SQL of the tokens domain.

-- fragment: cut
-- When a token was revoked together with others, null when it was not.
CROSS JOIN LATERAL (
    SELECT max(cutoff.revoke_time) AS revoke_time
    FROM tokens.cutoff
    WHERE cutoff.key = ANY(ARRAY[
            'subject:' || token.subject, 'family:' || token.family_id, 'client:' || token.client_id,
            'device:' || token.device_id, 'everything:'
        ])
        AND (token.number <= cutoff.number OR token.grant_time < cutoff.before)
) AS cut

-- fragment: idle_slack
-- IDLE_SLACK of the model, in seconds.
90

-- fragment: seen_lag
-- SEEN_LAG of the model, in seconds.
65

-- fragment: idle_time
-- When a token ends for want of use. Uses are noted late, hence the slack.
token.seen_time + make_interval(secs => token.idle_seconds + {idle_slack})

-- fragment: state
-- What has become of a token: 1 ACTIVE, 2 EXPIRED, 3 REVOKED, 4 USED, 5 IDLE.
CASE
    WHEN token.revoke_time IS NOT NULL OR cut.revoke_time IS NOT NULL THEN 3
    WHEN token.use_time IS NOT NULL THEN 4
    WHEN token.expire_time <= clock_timestamp() THEN 2
    WHEN {idle_time} <= clock_timestamp() THEN 5
    ELSE 1
END

-- fragment: columns
-- What makes a Token, in the order of its fields.
token.id::text, token.family_id::text, token.kind, token.subject_kind, token.subject, token.client_id, token.device_id,
token.device_name, token.ip_address, token.scope, NULLIF(token.claims, '{}'), token.sensitive_claims, token.expire_time,
token.idle_seconds, token.access_seconds, token.grace_seconds, token.jwt_id, token.grant_time, token.issue_time,
token.seen_time, token.use_time, COALESCE(token.revoke_time, cut.revoke_time), token.version, {state}

-- name: load
-- Tokens by id, with hash and for how many seconds the state stays, unless something is changed. Of a token that ends
-- for want of use: until it would have ended, had every use been noted.
SELECT token.hash,
    extract(epoch FROM LEAST(
        token.expire_time, token.seen_time + make_interval(secs => token.idle_seconds + {seen_lag})
    ) - clock_timestamp())::float8,
    {columns}
FROM tokens.token
{cut}
WHERE token.id = ANY(%(ids)s::uuid[]);

-- name: get
-- One token by id.
SELECT {columns}
FROM tokens.token
{cut}
WHERE token.id = %(id)s::uuid;

-- name: add
-- Adds tokens, and passes over JWTs that are there already. They share a number: all that counts is that it is drawn now.
WITH new AS (
    SELECT *
    FROM json_to_recordset(%(rows)s::json) AS item (
        id uuid, family_id uuid, kind smallint, hash bytea, mark text, subject_kind smallint, subject text,
        client_id text, device_id text, device_name text, ip_address text, scope text, claims jsonb,
        sensitive_claims text, jwt_id text, issue_time timestamptz, expire_time timestamptz, idle_seconds integer,
        access_seconds integer, grace_seconds integer
    )
), drawn AS MATERIALIZED (
    SELECT nextval('tokens.number') AS number
), added AS (
    INSERT INTO tokens.token (
        id, family_id, kind, hash, mark, number, subject_kind, subject, client_id, device_id, device_name, ip_address,
        scope, claims, sensitive_claims, jwt_id, expire_time, idle_seconds, access_seconds, grace_seconds, grant_time,
        issue_time, seen_time, purge_time
    )
    SELECT id, family_id, kind, hash, mark, number, subject_kind, subject, client_id, device_id, device_name,
        ip_address, scope, claims, sensitive_claims, jwt_id, expire_time, idle_seconds, access_seconds, grace_seconds,
        COALESCE(issue_time, now()), COALESCE(issue_time, now()), now(),
        COALESCE(expire_time + make_interval(secs => %(kept)s), 'infinity')
    FROM new, drawn
    ON CONFLICT (id) DO NOTHING
    RETURNING id, grant_time, issue_time, seen_time
)
SELECT id::text, grant_time, issue_time, seen_time FROM added;

-- name: lock
-- A refresh token that is to be exchanged, locked until the end of the transaction: of those who come at the same time
-- one is first. Beside the token its hash, its successor, the mark of that one's key, and whether the grace is running.
SELECT token.hash, token.successor_id::text, token.successor_access_id::text,
    COALESCE(token.use_time + make_interval(secs => token.grace_seconds) > clock_timestamp(), false),
    {columns}
FROM tokens.token
{cut}
WHERE token.id = %(id)s::uuid AND token.kind = 2
FOR UPDATE OF token;

-- name: successors
-- What a refresh token was exchanged for, locked against being used meanwhile.
SELECT token.mark, {columns}
FROM tokens.token
{cut}
WHERE token.id = ANY(%(ids)s::uuid[])
ORDER BY token.kind
FOR SHARE OF token;

-- name: use
-- Marks a refresh token as exchanged.
UPDATE tokens.token
SET use_time = clock_timestamp(), successor_id = %(refresh_id)s::uuid, successor_access_id = %(access_id)s::uuid,
    purge_time = LEAST(purge_time, clock_timestamp() + make_interval(secs => %(kept)s)), version = version + 1
WHERE id = %(id)s::uuid;

-- name: succeed
-- Adds the successor of a refresh token and its access token, with all that they take over from it.
INSERT INTO tokens.token (
    id, family_id, kind, hash, mark, number, subject_kind, subject, client_id, device_id, device_name, ip_address, scope,
    claims, sensitive_claims, expire_time, idle_seconds, access_seconds, grace_seconds, grant_time, issue_time, seen_time,
    purge_time
)
SELECT new.id, family_id, new.kind, new.hash, %(mark)s, number, subject_kind, subject, client_id, device_id, device_name,
    ip_address, scope, claims, sensitive_claims, new.expire_time, CASE new.kind WHEN 2 THEN idle_seconds END,
    CASE new.kind WHEN 2 THEN access_seconds ELSE 0 END, CASE new.kind WHEN 2 THEN grace_seconds ELSE 0 END, grant_time,
    clock_timestamp(), clock_timestamp(), new.expire_time + make_interval(secs => %(kept)s)
FROM tokens.token AS old, LATERAL (
    VALUES
        (%(refresh_id)s::uuid, 2::smallint, %(refresh_hash)s::bytea, old.expire_time),
        (%(access_id)s::uuid, 3::smallint, %(access_hash)s::bytea,
            LEAST(old.expire_time, clock_timestamp() + make_interval(secs => old.access_seconds)))
) AS new (id, kind, hash, expire_time)
WHERE old.id = %(id)s::uuid;

-- name: revoke
-- Revokes a token, and tells what it is; also one that was revoked before. Without a hash any of this id.
UPDATE tokens.token
SET revoke_time = COALESCE(revoke_time, clock_timestamp()),
    purge_time = CASE kind
        WHEN 5 THEN purge_time
        ELSE LEAST(purge_time, clock_timestamp() + make_interval(secs => %(kept)s))
    END,
    version = version + (revoke_time IS NULL)::int
WHERE id = %(id)s::uuid AND (%(hash)s::bytea IS NULL OR hash = %(hash)s)
RETURNING id::text, kind, family_id::text, jwt_id;

-- name: begin_cutoff
-- Locks the revocation of a selection, so that others of it wait, and draws the number up to which it goes.
INSERT INTO tokens.cutoff (key, number, before, revoke_time, until)
VALUES (%(key)s, 0, '-infinity', now(), now())
ON CONFLICT (key) DO UPDATE SET revoke_time = cutoff.revoke_time
RETURNING nextval('tokens.number');

-- fragment: counted
-- Counts what a cutoff revokes, and sets it: both see the same.
WITH concerned AS (
    SELECT count(*) AS count, max(token.expire_time) FILTER (WHERE token.kind = 5) AS until
    FROM tokens.token
    {cut}
    WHERE token.revoke_time IS NULL
        AND (token.number <= %(number)s::bigint OR token.grant_time < %(before)s::timestamptz)
        AND {state} = 1

-- fragment: set
-- The end of `counted`.
), moved AS (
    UPDATE tokens.cutoff
    SET number = GREATEST(cutoff.number, %(number)s::bigint),
        before = GREATEST(cutoff.before, %(before)s::timestamptz),
        revoke_time = clock_timestamp(),
        until = GREATEST(cutoff.until, concerned.until),
        marked = false
    FROM concerned
    WHERE cutoff.key = %(key)s
    RETURNING cutoff.revoke_time
)
SELECT concerned.count, moved.revoke_time FROM concerned, moved;

-- name: cut_subject
-- Revokes the tokens of a subject.
{counted} AND token.subject = %(value)s {set}

-- name: cut_family
-- Revokes the tokens of a family.
{counted} AND token.family_id = %(value)s::uuid {set}

-- name: cut_client
-- Revokes the tokens of a client.
{counted} AND token.client_id = %(value)s AND token.client_id <> '' {set}

-- name: cut_device
-- Revokes the tokens of a device.
{counted} AND token.device_id = %(value)s AND token.device_id <> '' {set}

-- name: cut_everything
-- Revokes all tokens whose family began before a time.
{counted} AND token.grant_time < %(before)s::timestamptz AND %(value)s = '' {set}

-- name: list
-- A page of a subject's active tokens, newest first.
SELECT {columns}
FROM tokens.token
{cut}
WHERE token.revoke_time IS NULL
    AND token.subject = %(subject)s
    AND token.kind = ANY(%(kinds)s::smallint[])
    AND (%(after)s::uuid IS NULL OR token.id < %(after)s::uuid)
    AND {state} = 1
ORDER BY token.subject DESC, token.id DESC
LIMIT %(limit)s;

-- name: update
-- Changes the named fields of a token that is neither revoked one by one nor used up.
UPDATE tokens.token
SET claims = CASE WHEN 'claims' = ANY(%(fields)s) THEN %(claims)s ELSE claims END,
    sensitive_claims = CASE
        WHEN 'sensitive_claims' = ANY(%(fields)s) THEN %(sensitive_claims)s ELSE sensitive_claims
    END,
    expire_time = CASE WHEN 'expire_time' = ANY(%(fields)s) THEN %(expire_time)s ELSE expire_time END,
    purge_time = CASE
        WHEN 'expire_time' = ANY(%(fields)s)
            THEN COALESCE(%(expire_time)s::timestamptz + make_interval(secs => %(kept)s), 'infinity')
        ELSE purge_time
    END,
    version = version + 1
WHERE id = %(id)s::uuid AND revoke_time IS NULL AND use_time IS NULL;

-- name: get_locked
-- One token by id, locked until the end of the transaction.
SELECT {columns}
FROM tokens.token
{cut}
WHERE token.id = %(id)s::uuid
FOR UPDATE OF token;

-- name: see
-- Notes when tokens were last used: so many seconds ago. Not of a token that has ended for want of use, so that none
-- comes back. The ids come in ascending order from every process; to lock the rows so for certain would be a third more
-- work, and who is told of a deadlock tries again.
UPDATE tokens.token
SET seen_time = now() - make_interval(secs => seen.ago)
FROM unnest(%(ids)s::uuid[], %(agos)s::float8[]) AS seen (id, ago)
WHERE token.id = seen.id
    AND token.seen_time < now() - make_interval(secs => seen.ago)
    AND (token.idle_seconds IS NULL OR {idle_time} > now());

-- name: revoked_jwts
-- JWTs that were revoked one by one and are not expired, the latest first.
SELECT token.jwt_id, token.revoke_time
FROM tokens.token
{cut}
WHERE token.kind = 5 AND token.revoke_time IS NOT NULL AND token.expire_time > now() AND cut.revoke_time IS NULL
ORDER BY token.revoke_time DESC
LIMIT %(limit)s;

-- name: cutoffs
-- Revocations of many tokens, the latest first: with a time before which their families began. Of families those alone
-- that had a JWT.
SELECT key, GREATEST(before, CASE WHEN number > 0 THEN revoke_time END), revoke_time
FROM tokens.cutoff
WHERE (key NOT LIKE 'family:%%' OR until > revoke_time)
    AND (key NOT LIKE 'family:%%' OR until > now())
    AND (number > 0 OR before > '-infinity')
ORDER BY revoke_time DESC
LIMIT %(limit)s;

-- name: unmarked
-- Revocations of many tokens whose tokens are to be marked: older than any transaction that may still add one.
SELECT key, number, before::text
FROM tokens.cutoff
WHERE NOT marked AND revoke_time < now() - interval '1 hour'
ORDER BY revoke_time
LIMIT 100;

-- fragment: marked
-- Marks some tokens of a cutoff as revoked, one by one.
UPDATE tokens.token
SET revoke_time = cutoff.revoke_time,
    purge_time = CASE token.kind
        WHEN 5 THEN token.purge_time
        ELSE LEAST(token.purge_time, cutoff.revoke_time + make_interval(secs => %(kept)s))
    END
FROM tokens.cutoff
WHERE cutoff.key = %(key)s AND token.revoke_time IS NULL AND token.id = ANY(ARRAY(
    SELECT token.id
    FROM tokens.token
    WHERE token.revoke_time IS NULL
        AND (token.number <= %(number)s::bigint OR token.grant_time < %(before)s::timestamptz)

-- fragment: some
-- The end of `marked`.
    LIMIT 1000
    FOR NO KEY UPDATE
));

-- name: mark_subject
-- Marks some tokens of a subject.
{marked} AND token.subject = %(value)s {some}

-- name: mark_family
-- Marks some tokens of a family.
{marked} AND token.family_id = %(value)s::uuid {some}

-- name: mark_client
-- Marks some tokens of a client.
{marked} AND token.client_id = %(value)s AND token.client_id <> '' {some}

-- name: mark_device
-- Marks some tokens of a device.
{marked} AND token.device_id = %(value)s AND token.device_id <> '' {some}

-- name: mark_everything
-- Marks some of all tokens.
{marked} AND token.grant_time < %(before)s::timestamptz AND %(value)s = '' {some}

-- name: marked_all
-- Notes that all tokens of a cutoff are marked, unless it was moved meanwhile.
UPDATE tokens.cutoff
SET marked = true
WHERE key = %(key)s AND number = %(number)s::bigint AND before = %(before)s::timestamptz;

-- name: drop_cutoffs
-- Removes some cutoffs whose tokens are marked, when nobody needs to be told of them any more.
DELETE FROM tokens.cutoff
WHERE key = ANY(ARRAY(SELECT key FROM tokens.cutoff WHERE marked AND until < now() LIMIT 1000 FOR UPDATE SKIP LOCKED));

-- name: purge
-- Removes some tokens that are over for long; whoever else purges takes others.
DELETE FROM tokens.token
WHERE id = ANY(ARRAY(
    SELECT id FROM tokens.token WHERE purge_time < now() ORDER BY purge_time LIMIT 1000 FOR UPDATE SKIP LOCKED
));

-- name: purge_idle
-- Removes some tokens that were not used for long and would else never end.
DELETE FROM tokens.token
WHERE id = ANY(ARRAY(
    SELECT token.id
    FROM tokens.token
    WHERE token.expire_time IS NULL AND token.idle_seconds IS NOT NULL
        AND {idle_time} < now() - make_interval(secs => %(kept)s)
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
));

-- name: purge_lag
-- For how many seconds the oldest token that can be removed has been so.
SELECT COALESCE(extract(epoch FROM now() - min(purge_time)), 0)::float8 FROM tokens.token WHERE purge_time < now();
