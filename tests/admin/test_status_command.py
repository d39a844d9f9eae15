"""`kronos-db status`: a table, again and again, and JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import pytest
from kronos.admin.v1 import status_pb2 as pb

from kronos_db import cli, status_command
from kronos_db.schemas import SERVED
from tests.parts.serving import Serving

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(serving: Serving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `kronos-db status` as the operator; return exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "250")

    def run(*arguments: str, caller: str = "operator") -> tuple[int, str, str]:
        place = ["--address", serving.server.grpc_address, "--token", serving.tokens[caller]]
        monkeypatch.setattr(sys, "argv", ["kronos-db", "status", *place, *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        # The server of the tests logs to the same place.
        out = "".join(line for line in said.out.splitlines(keepends=True) if "[info " not in line)
        return int(stopped.value.code or 0), out, said.err

    return run


def test_a_table_has_a_line_for_each_part(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    for part in ("postgres ", "process 0", "backup", *(f"domain {domain}" for domain in SERVED)):
        assert sum(part in line for line in out.splitlines()) == 1, part
    assert "18." in out
    assert "migrations" in out


def test_json_is_what_the_method_answers(run: Run) -> None:
    code, out, _ = run("--json")
    assert code == 0
    assert [domain["domain"] for domain in json.loads(out)["domains"]] == list(SERVED)


def test_watching_ends_with_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def sleep(seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        if seconds != status_command.PACE:
            sleep(seconds)
            return
        asked.append(seconds)
        if len(asked) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    code, out, _ = run("--watch")
    assert code == 0
    assert "domain users" in out
    assert len(asked) == 3


def test_who_may_not_is_told_so(run: Run) -> None:
    code, out, err = run(caller="reader")
    assert (code, out) == (1, "")
    assert err.startswith("PERMISSION_DENIED (METHOD_NOT_ALLOWED)")


def test_both_forms_at_once_are_refused(run: Run) -> None:
    assert run("--watch", "--json")[0] == 2


def test_what_is_down_is_the_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    down = pb.GetStatusResponse(state=pb.PART_STATE_DOWN)
    down.postgres.add(address="db:5432/kronos").health.state = pb.PART_STATE_DOWN
    down.postgres[0].health.detail = "connection refused"
    monkeypatch.setattr(status_command, "_ask", lambda _client: down)
    code, out, _ = run()
    assert code == 1
    assert "connection refused" in out
