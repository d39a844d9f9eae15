"""`kronos-db query`: rows as a table, CSV or JSON; from an argument, a file or standard input."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kronos_db.query_command import CUT
from tests.parts.dev import PROGRAM
from tests.parts.serving import Serving

SQL = "SELECT 1 AS n, 'a,\"b\"' AS t, NULL AS nothing, ARRAY[1, 2] AS list, '{\"k\": 1}'::jsonb AS j, 1.50 AS d"


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(serving: Serving) -> Run:
    def call(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        options = ["--address", serving.server.grpc_address, "--token", serving.tokens["operator"]]
        command = [PROGRAM, "query", *arguments, *options]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60)

    return call


def test_csv_is_for_spreadsheets(run: Run) -> None:
    done = run(SQL, "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'n,t,nothing,list,j,d\n1,"a,""b""",,"[1, 2]","{""k"": 1}",1.50\n'


def test_json_is_an_object_on_each_line(run: Run) -> None:
    done = run(SQL + " UNION ALL SELECT 2, NULL, NULL, NULL, NULL, NULL", "--format", "json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == {"n": 1, "t": 'a,"b"', "nothing": None, "list": [1, 2], "j": {"k": 1}, "d": "1.50"}
    assert second == {"n": 2, "t": None, "nothing": None, "list": None, "j": None, "d": None}


def test_a_table_is_for_people(run: Run) -> None:
    lines = run(SQL).stdout.splitlines()
    assert [cell.strip() for cell in lines[1].strip("┃").split("┃")] == ["n", "t", "nothing", "list", "j", "d"]
    assert "NULL" in lines[3]
    assert lines[-1] == "1 rows"


def test_the_statement_comes_from_a_file_or_standard_input(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_text("-- ä\nSELECT 7 AS n;\n", encoding="utf-8")
    assert run("--file", str(tmp_path / "a.sql"), "--format", "csv").stdout == "n\n7\n"
    assert run("-", "--format", "csv", stdin="SELECT 8 AS n").stdout == "n\n8\n"
    assert run().returncode != 0
    assert run("--file", str(tmp_path / "none.sql")).returncode != 0


def test_what_was_cut_is_said_and_has_an_returncode(run: Run) -> None:
    done = run("SELECT generate_series(1, 5) AS n", "--max-rows", "2", "--format", "csv")
    assert done.returncode == CUT
    assert done.stdout == "n\n1\n2\n"
    assert "Cut after 2 rows" in done.stderr


def test_a_plan_is_shown(run: Run) -> None:
    done = run("SELECT 1", "--explain")
    assert json.loads(done.stdout)[0]["Plan"]["Node Type"] == "Result"


def test_a_refusal_names_the_rule(run: Run) -> None:
    done = run("SELECT pg_sleep(1)")
    assert done.returncode != 0
    assert "rule = function" in done.stderr
