"""The generated pages: the same each time, complete, and checked against what is committed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from kronos.users.v1 import users_pb2

from kronos_db.config import Settings, environment_name
from kronos_db.domains import ERRORS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_committed_is_what_the_code_gives(reference: ModuleType) -> None:
    assert reference.drifted(ROOT) == []


def test_pages_are_the_same_in_another_process(reference: ModuleType) -> None:
    program = (
        "import runpy; pages = runpy.run_path('scripts/reference.py')['PAGES'];"
        "print(''.join(page() for page in pages.values()), end='')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "COLUMNS": "40", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "".join(page() for page in reference.PAGES.values())


@pytest.mark.parametrize("change", ["one more line\n", None])
def test_drift_is_found(reference: ModuleType, tmp_path: Path, change: str | None) -> None:
    reference.write(tmp_path)
    assert reference.drifted(tmp_path) == []
    for name in reference.PAGES:
        page = tmp_path / name
        before = page.read_text(encoding="utf-8")
        if change is None:
            page.unlink()
        else:
            page.write_text(before + change, encoding="utf-8")
        assert reference.drifted(tmp_path) == [name]
        page.write_text(before, encoding="utf-8")


def test_a_table_keeps_its_columns(reference: ModuleType) -> None:
    assert reference.table(("a", "b"), [("x|y", "z")]) == "| a | b |\n| --- | --- |\n| x\\|y | z |\n"


def test_nothing_is_left_out(reference: ModuleType) -> None:
    settings, errors, contract = (
        reference.settings_page(),
        reference.errors_page(),
        reference.contract_page(),
    )
    assert all(f"`{environment_name(name)}`" in settings for name in Settings.model_fields)
    assert all(f"| `{answer.reason}` | `{answer.code.name}` |" in errors for answer in ERRORS.rows.values())
    file = users_pb2.DESCRIPTOR
    for message in file.message_types_by_name.values():
        part = contract.partition(f"### {message.name}\n")[2].partition("\n### ")[0]
        assert all(f"| `{field.name}` | {field.number} |" in part for field in message.fields)
    for service in file.services_by_name.values():
        assert all(f"| `{method.name}` |" in contract for method in service.methods)


def test_rules_and_protection_stand_beside_their_field(reference: ModuleType) -> None:
    lines = reference.contract_page().splitlines()
    stored, asked, _verified = (line for line in lines if line.startswith("| `email` |"))
    assert "at most 254 characters; matches `^[^@" in stored
    assert "`ENCRYPTED`, index `users.email`, CASELESS" in stored
    assert "exactly one of `key`; at least 3 characters; at most 254 characters" in asked
    assert "`HASHED`, index `users.email`, CASELESS" in asked


def test_every_command_is_told(reference: ModuleType) -> None:
    page = reference.cli_page()
    for command in ("dev", "serve", "migrate", "call", "config show", "token new", "version"):
        assert f"## kronos-db {command}\n" in page
    assert "`--repeat-from FILE`" in page
