#!/usr/bin/env bash
# Users with grpcurl, which asks the server's reflection for the types: create, repeat, get, list, meet an error.
set -euo pipefail

address=${KRONOS_ADDRESS:-127.0.0.1:50051}
service=kronos.users.v1.UsersService
name=ann-$RANDOM$RANDOM
request_id=$(cat /proc/sys/kernel/random/uuid)

call() { # METHOD JSON
    "${GRPCURL:-grpcurl}" -plaintext -max-time 5 -H "authorization: Bearer $KRONOS_TOKEN" -d "$2" "$address" "$service/$1"
}

create="{\"user\": {\"username\": \"$name\", \"email\": \"$name@example.org\"}, \"request_id\": \"$request_id\"}"
created=$(call CreateUser "$create")
echo "$created"
# The same request_id: the same answer, and no second user.
[[ $(call CreateUser "$create") == "$created" ]] && echo "repeated: the same user"
call GetUser "{\"email\": \"$name@example.org\"}"
call ListUsers "{\"username_prefix\": \"$name\", \"page_size\": 10}"
# Without a request_id it is another call: refused, with ErrorInfo in the details.
call CreateUser "{\"user\": {\"username\": \"$name\"}}" || echo "refused, as meant"
