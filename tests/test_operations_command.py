"""`kronos-db slow-queries` and `kronos-db advise`, against a server that serves."""

from __future__ import annotations

import json
import re
import uuid

import grpc
import psycopg
import pytest
import typer
from kronos.users.v1 import users_pb2

from kronos_db import cli
from tests.parts.domain import LIMIT
from tests.parts.eventually import eventually
from tests.parts.serving import Serving

pytestmark = pytest.mark.usefixtures("untold")


def run(serving: Serving, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command against the server; return what it prints."""
    place = ["--address", serving.server.grpc_address, "--token", serving.tokens["operator"]]
    cli.app([*arguments, *place], standalone_mode=False)
    # The server serves in this process, and its access log is on standard output too.
    return re.sub(r"^\d{4}-\d\d-\d\d .*\n", "", capsys.readouterr().out, flags=re.MULTILINE)


def test_slow_queries_are_a_table(serving: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(grpc.RpcError):
        serving.users().GetUser(users_pb2.GetUserRequest(id=str(uuid.uuid4())))

    def shown() -> bool:
        # Readings within two seconds are one.
        return "UsersService/GetUser" in run(serving, capsys, "slow-queries", "--domain", "users", "--limit", "1000")

    eventually(shown, LIMIT)
    found = json.loads(run(serving, capsys, "slow-queries", "--order", "calls", "--limit", "3", "--json"))
    assert len(found["slowQueries"]) == 3
    assert len(found["sources"]) == 7
    with pytest.raises(typer.TyperException, match="SLOW_QUERY_ORDER_AGE"):
        run(serving, capsys, "slow-queries", "--order", "age")


def test_advice_is_a_table_and_is_done(serving: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Nothing to do." in run(serving, capsys, "advise", "--domain", "cache")
    with psycopg.connect(serving.settings.domain_direct_dsn("cache") or "", autocommit=True) as owner:
        owner.execute("CREATE INDEX namespace_once ON cache.namespace (create_time)")
        owner.execute("CREATE INDEX namespace_twice ON cache.namespace (create_time)")
        try:
            printed = run(serving, capsys, "advise", "--domain", "cache")
            assert "DUPLICATE" in printed
            found = json.loads(run(serving, capsys, "advise", "--domain", "cache", "--json"))
            (advice,) = found["advices"]
            assert advice["id"] in printed
            assert re.search(r"^DONE$", run(serving, capsys, "advise", "--apply", advice["id"]), re.MULTILINE)
            assert "Nothing to do." in run(serving, capsys, "advise", "--domain", "cache")
        finally:
            owner.execute("DROP INDEX IF EXISTS cache.namespace_once, cache.namespace_twice")
