#!/bin/sh
# Run once by the image of PostgreSQL, on a new data directory (/docker-entrypoint-initdb.d), as its superuser: lets
# backups replicate, and gives pgBouncer its role. What it does is what a PostgreSQL of yours needs too.
set -eu

# The name `all` of pg_hba.conf does not stand for replication.
echo "host replication $POSTGRES_USER all scram-sha-256" >> "$PGDATA/pg_hba.conf"

sql() { psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" "$@"; }

sql --file=/etc/kronos-db/pgbouncer.sql
sql --set=password="$(cat "$PGBOUNCER_PASSWORD_FILE")" <<'SQL'
ALTER ROLE pgbouncer PASSWORD :'password';
SQL
