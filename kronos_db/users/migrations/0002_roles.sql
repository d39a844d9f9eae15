-- Roles, what they inherit, and who has them where.

CREATE TABLE users.roles (
    id uuid PRIMARY KEY,
    -- Short, dense, and never given twice: what grants and copies in memory name a role by.
    number integer GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    -- NFKC_Casefold of the name: what uniqueness and look-ups go by.
    name_key text COLLATE "C" NOT NULL,
    description text NOT NULL,
    -- Its own, sorted, each once.
    permissions text[] NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    CONSTRAINT roles_number UNIQUE (number),
    CONSTRAINT roles_name UNIQUE (name_key)
);
-- Which roles carry a permission.
CREATE INDEX roles_permissions ON users.roles USING gin (permissions);

-- From which roles a role inherits: a graph without cycles. Whoever adds to it holds the lock of `lock_graph`.
CREATE TABLE users.role_parents (
    role integer NOT NULL REFERENCES users.roles (number) ON DELETE CASCADE,
    parent integer NOT NULL REFERENCES users.roles (number),
    PRIMARY KEY (role, parent)
);
CREATE INDEX role_parents_parent ON users.role_parents (parent);

CREATE TABLE users.grants (
    user_id uuid NOT NULL REFERENCES users.users ON DELETE CASCADE,
    id uuid NOT NULL,
    role integer NOT NULL REFERENCES users.roles (number),
    -- '' or a path that ends with '/', so that one scope lies in another exactly when it begins with it.
    scope text COLLATE "C" NOT NULL,
    expire_time timestamptz,
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    -- All that a check needs of a user's grants lies together in the index.
    CONSTRAINT grants_pkey PRIMARY KEY (user_id, id) INCLUDE (role, scope, expire_time),
    -- In the order in which the holders of a permission are listed.
    CONSTRAINT grants_once UNIQUE (role, scope, user_id)
);
CREATE INDEX grants_id ON users.grants (id);
CREATE INDEX grants_role ON users.grants (role, id);
CREATE INDEX grants_expire_time ON users.grants (expire_time) WHERE expire_time IS NOT NULL;
