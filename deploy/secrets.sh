#!/bin/sh
# Makes the secrets that compose.yaml mounts, in secrets/ beside this file, and .env with whose they are. What is there
# already stays. KRONOS is how `kronos-db` is run: by default the one on PATH; README.md has it for the image.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets

random() { od -An -N 24 -t x1 /dev/urandom | tr -d ' \n'; }
make() { # NAME: the file with what comes in, unless it is there
    [ -e "secrets/$1" ] || { cat > "secrets/$1.new" && mv "secrets/$1.new" "secrets/$1" && echo "secrets/$1 made."; }
}

${KRONOS:-kronos-db} secrets secrets
for name in postgres-password pgbouncer-password redis-password grafana-password; do
    random | make "$name"
done

make userlist.txt <<LIST
"pgbouncer" "$(cat secrets/pgbouncer-password)"
LIST
make valkey.conf <<CONF
requirepass $(cat secrets/redis-password)
CONF
# Settings with a password in them. One role migrates and makes backups: the latter take a superuser.
make kronos-db.toml <<TOML
postgres_direct_dsn = "postgresql://kronos_owner:$(cat secrets/postgres-password)@postgres:5432/kronos"
redis_url = "redis://:$(cat secrets/redis-password)@valkey:6379/0"
TOML

# The containers that read the secrets run as who made them; PostgreSQL does not run as root.
owner=$(id -u) group=$(id -g)
if [ "$owner" = 0 ]; then
    owner=65532 group=65532
    chown -R "$owner:$group" secrets
fi
[ -e .env ] || printf 'KRONOS_UID=%s\nKRONOS_GID=%s\n' "$owner" "$group" > .env
