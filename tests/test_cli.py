"""The command line without `call`: what it prints, how it refuses, and how it hands over to the server."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import kronos_db
from kronos_db import cli, config
from kronos_db.config import Settings
from kronos_db.runtime.errors import KronosError

TOKEN = "kdb_sesame"
Run = Callable[..., "Result"]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith((config.PREFIX, "KRONOS_TOKEN")):
            monkeypatch.delenv(name)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["kronos-db", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="ascii"))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return Result(int(stopped.value.code or 0), said.out, said.err)

    return run


def test_version(run: Run) -> None:
    assert re.match(rf"kronos-db {kronos_db.__version__} \(Python 3\.\d+\.\d+, grpcio ", run("version").out)


def test_config_show_explains_every_setting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRONOS_DB_USERS_DSN", "postgresql://ann:sesame@db/users")
    result = run("config", "show")
    assert result.code == 0
    for row in config.explain():
        assert row.name in result.out
        assert row.meaning in result.out
    assert "user=ann password=*** dbname=users host=db" in result.out
    assert "sesame" not in result.out


def test_config_show_for_programs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRONOS_DB_REDIS_URL", "redis://:sesame@cache")
    rows = {row["name"]: row for row in json.loads(run("config", "show", "--json").out)}
    assert rows["KRONOS_DB_POOL_MAX_SIZE"] == {
        "name": "KRONOS_DB_POOL_MAX_SIZE",
        "value": "4",
        "default": "4",
        "type": "whole number, 1 to 1000",
        "meaning": "Connections per domain and process, at most.",
    }
    assert rows["KRONOS_DB_REDIS_URL"]["value"] == "redis://:***@cache"


def test_a_file_of_settings_can_be_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.CONFIG_FILE, "")
    file = tmp_path / "kronos.toml"
    file.write_text("worker_threads = 7\n")
    rows = json.loads(run("--config", str(file), "config", "show", "--json").out)
    assert {row["name"]: row["value"] for row in rows}["KRONOS_DB_WORKER_THREADS"] == "7"


@pytest.mark.parametrize(
    "arguments", [["config", "show"], ["serve"], ["dev"], ["migrate"], ["token", "new", "ann"], ["call", "a/b"]]
)
def test_a_wrong_setting_stops_every_command_with_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("KRONOS_DB_POOL_MAX_SIZE", "0")
    result = run(*arguments)
    assert result == Result(2, "", "KRONOS_DB_POOL_MAX_SIZE should be greater than or equal to 1.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["brew"],
        ["call"],
        ["call", "--nonsense"],
        ["call", "a/b", "--deadline", "soon"],
        ["call", "a/b", "--in-flight", "0"],
        ["migrate", "--status", "--dry-run"],
        ["token", "new"],
        ["token", "new", "Not A Name"],
        ["serve", "extra"],
    ],
)
def test_wrong_usage_is_one_line(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


def test_without_a_command_it_explains_itself(run: Run) -> None:
    result = run()
    for command in ("dev", "serve", "migrate", "call", "config", "token", "version"):
        assert command in result.out


def test_serve_becomes_the_serving_process(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    became: list[Any] = []

    def execv(path: str, arguments: list[str]) -> None:
        became.extend([path, arguments])

    monkeypatch.setattr(os, "execv", execv)
    assert run("serve").err == "KRONOS_DB_MASTER_KEY_FILE is not set, and `serve` needs it.\n"
    assert became == []
    (tmp_path / "file").touch()
    for name in ("MASTER_KEY_FILE", "ACCESS_FILE", "POSTGRES_ROLE_SECRET_FILE"):
        monkeypatch.setenv(f"KRONOS_DB_{name}", str(tmp_path / "file"))
    monkeypatch.setenv("KRONOS_DB_POSTGRES_DSN", "host=db")
    run("serve")
    assert became == [sys.executable, [sys.executable, "-m", "kronos_db"]]


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **parts: Any) -> None:
    """Put a module of the server in place that has these parts alone."""
    module = ModuleType(name)
    vars(module).update(parts)
    monkeypatch.setitem(sys.modules, name, module)
    package, _, last = name.rpartition(".")
    monkeypatch.setattr(importlib.import_module(package), last, module, raising=False)


def test_dev_prints_calls_to_paste(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def dev(settings: Settings, say: Callable[[str], None], announce: Callable[[Settings, str], None]) -> int:
        say("Starting …")
        announce(settings.model_copy(update={"grpc_listen": "127.0.0.1:40404", "processes": 3}), TOKEN)
        return 3

    fake(monkeypatch, "kronos_db.dev", run=dev)
    result = run("dev")
    assert result.code == 3
    assert result.out.startswith("Starting …\n")
    assert re.search(r"gRPC +127\.0\.0\.1:40404 \(3 processes\)\n", result.out)
    assert "http://127.0.0.1:9464 " in result.out
    assert "Redis       none: " in result.out
    calls = [line for line in result.out.splitlines() if " call " in line]
    assert len(calls) == 3
    for line in calls:
        assert f"call --address 127.0.0.1:40404 --token {TOKEN} UsersService/" in line
        json.loads(line.partition("'")[2].rstrip("'"))


def test_what_stops_the_server_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def dev(_settings: Settings, _say: Any, _announce: Any) -> int:
        raise KronosError(".kronos is in use by another kronos-db (pid 7).")

    fake(monkeypatch, "kronos_db.dev", run=dev)
    assert run("dev") == Result(1, "", ".kronos is in use by another kronos-db (pid 7).\n")


def migrations(*states: str) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(
            domain="users",
            name=f"000{number}_step",
            state=state,
            applied_at=datetime(2026, 11, 23, tzinfo=UTC) if state == "applied" else None,
            path=Path(f"/schemas/users/000{number}_step.sql"),
        )
        for number, state in enumerate(states, 1)
    ]


def test_migrate_applies_and_reports(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pending = ["0001_create", "0002_index"]

    def migrate(_settings: Settings, report: Callable[[str, str], None]) -> None:
        while pending:
            report("users", pending.pop(0))

    fake(monkeypatch, "kronos_db.schemas", migrate=migrate)
    assert run("migrate").out == "users: 0001_create\nusers: 0002_index\n2 applied.\n"
    assert run("migrate").out == "Nothing to apply.\n"


def test_migrate_tells_without_changing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "kronos_db.schemas", migration_plan=lambda _settings: migrations("applied", "pending"))
    table = run("migrate", "--status").out
    assert re.search(r"users +│ 0001_step +│ applied +│ 2026-11-23T00:00:00\+00:00", table)
    assert re.search(r"users +│ 0002_step +│ pending", table)
    assert run("migrate", "--dry-run").out == "users: 0002_step  /schemas/users/0002_step.sql\n1 to apply.\n"
    fake(monkeypatch, "kronos_db.schemas", migration_plan=lambda _settings: migrations("applied"))
    assert run("migrate", "--dry-run").out == "Nothing to apply.\n"


def test_a_token_is_shown_with_its_line(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(monkeypatch, "kronos_db.runtime.crypto.master_key", FileMasterKeys=lambda path: f"masters of {path}")
    fake(
        monkeypatch,
        "kronos_db.runtime.interceptors.authentication",
        new_token=lambda: TOKEN,
        hash_token=lambda token, masters: f"{len(token)} by {masters}",
    )
    monkeypatch.setenv("KRONOS_DB_MASTER_KEY_FILE", str(tmp_path / "master.key"))
    result = run("token", "new", "user-service")
    assert result.code == 0
    assert result.out.count(TOKEN) == 1
    assert f'[callers.user-service]\n    tokens = ["10 by masters of {tmp_path}/master.key"]\n' in result.out


SERVING = """
import runpy, sys, types
server = types.ModuleType("kronos_db.server")
class Server:
    def __init__(self, settings):
        self.settings = settings
    def start(self, stopped):
        run(self.settings)
        return False
    def stop(self):
        pass
def run(settings):
    import kronos_db.runtime.ops.health, kronos_db.runtime.ops.http, kronos_db.runtime.ops.logs, sys
    names = ("typer", "rich", "rich.console", "click", "kronos_db.cli", "kronos_db.client")
    print([name for name in names if sys.modules.get(name)], settings.worker_threads)
server.Server = Server
sys.modules["kronos_db.server"] = server
runpy.run_module("kronos_db", run_name="__main__")
"""


def test_the_serving_process_imports_nothing_of_the_command_line() -> None:
    environment = {**os.environ, "KRONOS_DB_WORKER_THREADS": "7", "KRONOS_DB_PROCESSES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SERVING], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[] 7\n", "")


def test_the_serving_process_refuses_with_one_sentence() -> None:
    environment = {**os.environ, "KRONOS_DB_WORKER_THREADS": "none"}
    done = subprocess.run(
        [sys.executable, "-m", "kronos_db"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"KRONOS_DB_WORKER_THREADS should be a valid integer, .*\.\n", done.stderr)
