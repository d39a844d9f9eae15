-- What pgBouncer's auth_user and auth_query (pgbouncer.ini) need. Run once as superuser in every database that pgBouncer
-- leads to; then give the role a password and put it into auth_file: "pgbouncer" "PASSWORD".

-- Roles belong to the whole server: of several databases on one server the first run makes it.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'pgbouncer') THEN
        CREATE ROLE pgbouncer LOGIN;
    END IF;
END
$$;

CREATE SCHEMA pgbouncer;

-- Gives the SCRAM secrets of the domains' roles, and of no other role.
CREATE FUNCTION pgbouncer.lookup(name text) RETURNS TABLE (usename name, passwd text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
    AS $$ SELECT s.usename, s.passwd FROM pg_catalog.pg_shadow AS s WHERE s.usename = $1 AND s.usename LIKE 'kronos\_%' $$;

REVOKE ALL ON FUNCTION pgbouncer.lookup(text) FROM PUBLIC;
GRANT USAGE ON SCHEMA pgbouncer TO pgbouncer;
GRANT EXECUTE ON FUNCTION pgbouncer.lookup(text) TO pgbouncer;
