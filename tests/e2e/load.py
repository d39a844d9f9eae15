"""Loads many users through BatchCreateUsers with `kronos-db call`, and counts them by listing every page.

Usage: python -m tests.e2e.load [USERS], with a running server in KRONOS_ADDRESS and KRONOS_TOKEN; without them it
starts one of its own in a temporary directory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from kronos.users.v1 import users_pb2, users_pb2_grpc

from tests.parts.dev import PROGRAM, Dev

BATCH = 1000
PAGE = 1000
DEADLINE = 60.0  # seconds


def write_batches(file: Path, prefix: str, users: int) -> None:
    """Write one BatchCreateUsersRequest as JSON on each line, with a request_id: the file can be loaded again."""
    with file.open("w", encoding="utf-8") as lines:
        for begin in range(0, users, BATCH):
            numbers = range(begin, min(begin + BATCH, users))
            batch = [
                {
                    "username": f"{prefix}-{number:06}",
                    "email": f"{prefix}-{number:06}@example.org",
                    "phone": f"+1 {uuid.uuid4().int % 10**12:012}",
                    "displayName": f"User {number}",
                    "attributes": {"number": number},
                }
                for number in numbers
            ]
            lines.write(json.dumps({"users": batch, "requestId": str(uuid.uuid4())}) + "\n")


def load(file: Path, address: str, token: str) -> subprocess.CompletedProcess[str]:
    """Load the file with a progress bar on standard error; return what it says in the end."""
    command = [sys.executable, PROGRAM, "call", "--address", address, "UsersService/BatchCreateUsers"]
    flags = ["--repeat-from", str(file), "--in-flight", "4", "--deadline", str(DEADLINE), "--progress"]
    environment = {**os.environ, "KRONOS_TOKEN": token}
    return subprocess.run([*command, *flags], env=environment, stdout=subprocess.PIPE, text=True, check=False)


def count(prefix: str, address: str, token: str) -> int:
    """Return how many different users listing page by page brings."""
    seen: set[str] = set()
    request = users_pb2.ListUsersRequest(username_prefix=f"{prefix}-", page_size=PAGE)
    with grpc.insecure_channel(address) as channel:
        users = users_pb2_grpc.UsersServiceStub(channel)
        while True:
            page = users.ListUsers(request, metadata=(("authorization", f"Bearer {token}"),), timeout=DEADLINE)
            seen.update(user.id for user in page.users)
            if not page.next_page_token:
                return len(seen)
            request.page_token = page.next_page_token


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield address and token of the server that the environment names, or of one of our own."""
    if "KRONOS_TOKEN" in os.environ:
        yield os.environ.get("KRONOS_ADDRESS", "127.0.0.1:50051"), os.environ["KRONOS_TOKEN"]
        return
    dev = Dev(folder / "data")
    try:
        dev.serve()
        yield dev.address, dev.token
    finally:
        dev.close()


def main(users: int) -> int:
    """Load, count, and return 0 when all are there."""
    prefix = f"load-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as scratch, server(Path(scratch)) as (address, token):
        file = Path(scratch) / "batches.ndjson"
        write_batches(file, prefix, users)
        begin = time.monotonic()
        loaded = load(file, address, token)
        seconds = time.monotonic() - begin
        found = count(prefix, address, token)
        print(loaded.stdout, end="")
        print(f"{found} of {users} users are there, loaded in {seconds:.1f} s ({users / seconds:.0f} users/s)")
        return 0 if loaded.returncode == 0 and found == users else 1


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
