-- What hostile statements aim at: a table with a secret, and functions that write behind all that may hide a function.
CREATE ROLE stand_owner LOGIN;
CREATE SCHEMA stand;
CREATE TYPE stand.kind AS ENUM ('a', 'b');
CREATE TYPE stand.mark AS (number integer);
CREATE TABLE stand.t (id integer PRIMARY KEY, secret text, kind stand.kind, mark stand.mark);
INSERT INTO stand.t VALUES (1, 'nobody may read this', 'a', ROW(1)), (2, 'nobody may read this', 'b', ROW(2));
CREATE TABLE stand.u (id integer);
INSERT INTO stand.u SELECT generate_series(1, 100);
CREATE TABLE stand.hidden (secret text);
CREATE TABLE stand.waited (id integer);
GRANT SELECT ON stand.waited TO PUBLIC;
CREATE SEQUENCE stand.number;
CREATE FUNCTION stand.write() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO stand.hidden VALUES ('written');
    RETURN 1;
END $$;
CREATE FUNCTION stand.write(integer, integer) RETURNS integer LANGUAGE sql SECURITY DEFINER AS 'SELECT stand.write()';
CREATE FUNCTION stand.write(stand.mark) RETURNS integer LANGUAGE sql SECURITY DEFINER AS 'SELECT stand.write()';
CREATE FUNCTION stand.less(integer, integer) RETURNS boolean LANGUAGE sql SECURITY DEFINER AS 'SELECT stand.write() > 0';
CREATE FUNCTION stand.shout(text) RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT stand.write()::text';
CREATE FUNCTION stand.kind_text(stand.kind) RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT stand.write()::text';
CREATE PROCEDURE stand.proceed() LANGUAGE sql AS 'INSERT INTO stand.hidden VALUES (1)';
CREATE OPERATOR stand.@@@ (LEFTARG = integer, RIGHTARG = integer, FUNCTION = stand.write);
CREATE OPERATOR stand.<<< (LEFTARG = integer, RIGHTARG = integer, FUNCTION = stand.less);
CREATE CAST (stand.mark AS integer) WITH FUNCTION stand.write(stand.mark);
CREATE DOMAIN stand.checked AS integer CHECK (stand.write() > 0);
CREATE AGGREGATE stand.total(integer) (SFUNC = stand.write, STYPE = integer, INITCOND = '0');
CREATE VIEW stand.view AS SELECT stand.write() AS made;
GRANT SELECT ON stand.view TO PUBLIC;
CREATE EXTENSION dblink SCHEMA stand;
CREATE EXTENSION pg_stat_statements SCHEMA public;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA stand TO PUBLIC;
