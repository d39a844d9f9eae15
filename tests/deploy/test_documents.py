"""Every command of the documents is typed, as the page has it and in its order; what cannot be is named, with why.

The pages of operators are typed one after another as a new operator would: docs/deployment.md from nothing to a server
that is backed up, then docs/operations.md on that server. The README is typed beside what its `make run` starts.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer

from benchmarks.ports import free_address
from kronos_db import cli
from kronos_db.config import DOMAINS, Settings, load, require_for_serving
from tests.admin import test_backup_commands
from tests.clients.stories import STORIES
from tests.conftest import lacking
from tests.deploy import pools
from tests.deploy.commands import Command, commands, pages, spans
from tests.deploy.dockerfile import ROOT
from tests.deploy.shell import Shell
from tests.deploy.test_systemd import service
from tests.parts.dev import Dev
from tests.parts.eventually import eventually
from tests.parts.place import Place, clean_environment

LIMIT = 120.0
# On a machine that is busy.
pytestmark = pytest.mark.timeout(600)
BIN = Path(sys.executable).parent
OPERATORS = ("docs/deployment.md", "docs/operations.md", "docs/runbook.md")

# Commands that no test can type, by how they begin, with what shows instead that they are right.
NOT_HERE: Mapping[str, str] = {
    "make test": "it is what runs this",
    "make install": "CI runs it before all tests; it would remove the environment that they run in",
    "make clients": "CI runs it before all tests; tests/clients installs what it makes",
    ".ci/install": "CI runs it before all tests; it installs packages as root",
    "docker build ": "there is no engine: hadolint reads the Dockerfile, test_container.py replays its steps",
    "docker run ": "there is no engine: test_container.py runs secrets.sh in the replayed image",
    "docker compose ": "there is no engine: test_compose.py has Compose read the file, test_engines.py the command",
    "export KRONOS_TOKEN=$(cat deploy/secrets/token)": "the container's: test_container.py calls with it",
    "python3 -m venv /opt/": "test_container.py does the same, in its long form with the packages by their hashes",
    "/opt/kronos-db/bin/pip ": "the same",
    "cp deploy/postgresql.conf ": "it wants Debian's PostgreSQL: the one of this test starts with that file",
    'echo "host replication ': "it wants Debian's PostgreSQL: test_container.py shows the same line of init.sh",
    "systemctl ": "there is no systemd: test_systemd.py has it read the units",
    "KRONOS_DB_POSTGRES_DSN='host=pg1,pg2 ": "tests/scale/test_standbys.py has two hosts and promotes one",
    "SELECT citus_": "there is no Citus: tests/scale/test_page.py reads the catalog instead",
    "SELECT create_distributed_table": "the same",
    "kubectl ": "there is no cluster: test_kubernetes.py validates the same folder, test_engines.py the command",
}
# What tests/admin/test_backup_commands.py takes from the same page, and types.
HEADINGS = (
    "### Day by day",
    "**PostgreSQL and its disk are gone.**",
    "**Somebody deleted or changed",
    "**One domain is broken",
)


def not_here(command: Command) -> str | None:
    """Return why a command is not typed, None when it is."""
    if command in typed_elsewhere():
        return "tests/admin/test_backup_commands.py types it"
    return next((why for begin, why in NOT_HERE.items() if command.name.startswith(begin)), None)


def typed_elsewhere() -> list[Command]:
    """Return those of operations.md that are typed by the test of backups; the line before them sets what it sets."""
    page = "docs/operations.md"
    lines = [line for heading in HEADINGS for line in test_backup_commands.commands(heading)]
    lines.append("export KRONOS_DB_BACKUP_DESTINATION=/mnt/backups KRONOS_DB_MASTER_KEY_FILE=/etc/kronos/master.key")
    return [Command(page, re.sub(r"\s+# .*$", "", line)) for line in lines]


def of(page: str) -> list[Command]:
    """Return the commands of a page that are to be typed here."""
    return [command for command in commands(ROOT / page) if not_here(command) is None]


def ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Operator:
    """A shell on a machine that has PostgreSQL and Redis and nothing else yet, to follow the pages in."""

    def __init__(self, folder: Path, place: Place, pgbouncer: Path) -> None:
        self.folder = folder
        self.place = place
        self.pgbouncer = pgbouncer
        self.said: dict[str, str] = {}
        self.grpc, self.ops, self.prometheus = free_address(), free_address(), free_address()
        for name in (
            "etc/kronos-db",
            "etc/pgbouncer",
            "etc/prometheus",
            "etc/systemd/system",
            "var/lib/kronos-db",
            "tmp",
        ):
            (folder / name).mkdir(parents=True)
        with psycopg.connect(place.postgres.dsn_for("postgres"), autocommit=True) as connection:
            connection.execute("DROP DATABASE kronos")
        environment = {
            **clean_environment(),
            **place.superuser(),
            "PGDATABASE": "postgres",
            "PATH": f"{place.programs}:{ROOT}/.cache/bin:{os.environ['PATH']}",
            "TMPDIR": str(folder / "tmp"),
            # The addresses of the page may be taken on this machine; and it has few cores.
            "KRONOS_DB_GRPC_LISTEN": self.grpc,
            "KRONOS_DB_OPS_LISTEN": self.ops,
            "KRONOS_DB_PROCESSES": "1",
        }
        self.shell = Shell(
            ROOT,
            environment,
            {
                "redis://127.0.0.1:6379/0": place.redis_url,
                "127.0.0.1:50051": self.grpc,
                "127.0.0.1:9464": self.ops,
                "127.0.0.1:9090": self.prometheus,
                "127.0.0.1:5432": place.postgres_address,
                "127.0.0.1:6432": place.pgbouncer_address,
                "/opt/kronos-db/bin": str(BIN),
                " /etc/": f" {folder}/etc/",
                '"/etc/': f'"{folder}/etc/',
                "=/etc/": f"={folder}/etc/",
                "/var/lib/": f"{folder}/var/lib/",
            },
        )

    def follow(self, page: str) -> None:
        """Type the commands of a page."""
        for command in commands(ROOT / page):
            if command.name == "systemctl restart pgbouncer":
                etc = self.folder / "etc" / "pgbouncer"
                self.place.start_pgbouncer(self.pgbouncer, etc / "pgbouncer.ini", etc / "userlist.txt")
            elif not_here(command) is None:
                # Of one that comes again, what it said first.
                self.said.setdefault(command.name, self.type(command))

    def type(self, command: Command) -> str:
        """Type one command."""
        if command.sql:
            return self.shell.run(f"psql --dbname kronos --set ON_ERROR_STOP=1 <<'SQL'\n{command.text};\nSQL")
        if command.name == "kronos-db serve":
            return self.serve()
        if command.name.startswith("prometheus "):
            log = self.folder / "prometheus.log"
            return self.shell.run(f"{command.text} > {log} 2>&1 &")
        if "VerifyAuditLog" in command.name:
            # The page has the end of last time there.
            told = json.loads(self.shell.run("kronos-db call AdminService/VerifyAuditLog '{}'"))
            self.shell.replace |= {'"4711"': f'"{told["lastSequence"]}"', '"…"': f'"{told["lastHash"]}"'}
        return self.shell.run(command.text)

    def serve(self) -> str:
        """Start the server, as in a terminal of its own; it goes on serving."""
        if not ready(self.ops):
            log = self.folder / "log"
            self.shell.run(f"kronos-db serve > {log} 2>&1 &")
            eventually(lambda: ready(self.ops), LIMIT, log.read_text)
        return ""


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory, place: Place, pgbouncer_binary: Path) -> Iterator[Operator]:
    if shutil.which("curl") is None:
        lacking("There is no curl on PATH.")
    if shutil.which("prometheus", path=f"{ROOT}/.cache/bin:{os.environ['PATH']}") is None:
        lacking("There is no prometheus on PATH or in .cache/bin, where .ci/install puts it.")
    at_work = Operator(tmp_path_factory.mktemp("operator"), place, pgbouncer_binary)
    try:
        for page in OPERATORS:
            at_work.follow(page)
        yield at_work
    finally:
        at_work.shell.close()


def test_every_command_is_typed_or_named() -> None:
    """A page that has commands and is not followed here is one that somebody forgot."""
    followed = {*OPERATORS, "README.md", "examples/README.md"}
    forgotten = [
        f"{command.page}: {command.name}"
        for page in pages()
        for command in commands(page)
        if command.page not in followed and not_here(command) is None
    ]
    assert forgotten == []


def test_what_is_named_is_there() -> None:
    """No exception outlives its command, and the files that exceptions name are there."""
    every = [command for page in pages() for command in commands(page)]
    for begin in NOT_HERE:
        assert any(command.name.startswith(begin) for command in every), begin
    assert set(typed_elsewhere()) <= set(every)
    for command in every:
        for path in re.findall(r"(?<![\w/])(?:deploy|locks)/[\w./-]+\w", command.name):
            made = ("deploy/secrets/", "deploy/prometheus")
            assert path.startswith(made) or (ROOT / path).exists(), f"{command.page}: {path}"


def test_from_nothing_to_a_server_that_is_backed_up(operator: Operator) -> None:
    said = operator.said
    assert "users: users/0001_create" in said["kronos-db migrate"]
    assert json.loads(said["kronos-db ready"])["status"] == "ok"
    listed = said["kronos-db backup list --address $KRONOS_ADDRESS"]
    assert "full" in listed
    assert "sound" in said["kronos-db backup verify --drill --address $KRONOS_ADDRESS"]
    assert 'tokens = ["hmac-sha256:' in next(text for name, text in said.items() if "token new" in name)
    assert "kronos_db_build_info" in said["curl --fail --silent http://127.0.0.1:9464/metrics"]
    eventually(lambda: last_verified(operator.ops) > 0, LIMIT / 2)
    assert stored(operator.folder / "var/lib/kronos-db/backups")


def last_verified(address: str) -> float:
    """Return when a scrape says that a backup was last drilled, 0 for never; backups are looked at every 15 seconds."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(r"^kronos_backup_last_verified_timestamp_seconds (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_it_is_scraped_and_has_alerts(operator: Operator) -> None:
    assert "SUCCESS" in operator.said["promtool check config /etc/prometheus/prometheus.yml"]
    eventually(lambda: asked(operator.prometheus, 'query?query=up{job="kronos-db"}')["result"], LIMIT)
    [sample] = asked(operator.prometheus, 'query?query=up{job="kronos-db"}')["result"]
    assert (sample["metric"]["instance"], sample["value"][1]) == (operator.ops, "1")
    groups = asked(operator.prometheus, "rules?type=alert")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 10
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}


def asked(address: str, path: str) -> dict[str, Any]:
    """Ask Prometheus; nothing while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{address}/api/v1/{path}", timeout=10) as answer:
            found: dict[str, Any] = json.loads(answer.read())["data"]
            return found
    except OSError:
        return {"result": []}


def stored(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_connections_are_what_the_arithmetic_of_pools_says(operator: Operator) -> None:
    """After a day of calls, and with somebody who looks at its state."""
    operator.shell.run(f"kronos-db status --address {operator.grpc}")
    [server] = [process for process in operator.shell.running() if "kronos_db" in process.cmdline()]
    ends = Counter(f"{end.raddr.ip}:{end.raddr.port}" for end in server.net_connections("tcp") if end.raddr)
    place = operator.place
    assert len(DOMAINS) <= ends[place.pgbouncer_address] <= pools.clients_of_a_process()
    # Of backups: who receives WAL, and who looks after them.
    beside = Settings.model_fields["query_connections"].default + pools.OTHERS
    assert pools.STRAIGHT <= ends[place.postgres_address] <= pools.STRAIGHT + beside


def test_calls_went_through_pgbouncer(operator: Operator) -> None:
    log = (operator.place.folder / "bouncer" / "log").read_text()
    assert "kronos_users@" in log


def test_a_day_of_operations(operator: Operator) -> None:
    said = operator.said
    assert "applied" in said["kronos-db migrate --status"]
    assert said["kronos-db migrate --dry-run"].strip() == "Nothing to apply."
    [checked] = [text for name, text in said.items() if "VerifyAuditLog" in name]
    assert "firstBreak" not in json.loads(checked)
    [status] = [text for name, text in said.items() if name.endswith("/db/status")]
    assert '"state":' in status


def test_what_is_left_is_what_the_units_want(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the steps for systemd, files and units together are whole settings, which nobody else may read."""
    etc = operator.folder / "etc"
    for name in ("kronos-db.service", "kronos-db-migrate.service"):
        assert (etc / "systemd" / "system" / name).stat().st_mode & 0o777 == 0o644
    modes = {path.name: path.stat().st_mode & 0o777 for path in (etc / "kronos-db").iterdir()}
    assert modes["access.toml"] == 0o644
    assert {modes[name] for name in ("master.key", "role.secret", "kronos-db.toml", "token")} == {0o600}
    for name in list(os.environ):
        if name.startswith("KRONOS"):
            monkeypatch.delenv(name)
    for entry in service("kronos-db.service")["Environment"]:
        name, _, value = entry.partition("=")
        # What systemd puts there: the folders of credentials and of state.
        value = value.replace("%d/", "/etc/kronos-db/").replace("%S/", "/var/lib/")
        monkeypatch.setenv(name, f"{operator.folder}{value}")
    settings = load()
    require_for_serving(settings)
    # What it writes lies where the unit may write.
    assert str(settings.backup_destination).startswith(f"{operator.folder}/var/lib/kronos-db/")
    assert settings.drain_pause + settings.drain_timeout + 5 < float(service("kronos-db.service")["TimeoutStopSec"][0])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """The README's shell, beside what its `make run` has started."""
    grpcurl = shutil.which("grpcurl", path=os.pathsep.join([str(ROOT / ".cache" / "bin"), os.environ["PATH"]]))
    if grpcurl is None:
        lacking("There is no grpcurl on PATH or in .cache/bin, where .ci/install puts it.")
    if shutil.which("make") is None:
        lacking("There is no make on PATH.")
    # It looks like the repository, and has a `.kronos` of its own.
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name not in {".kronos", ".git"}:
            (folder / path.name).symlink_to(path)
    dev = Dev(folder / ".kronos", {"KRONOS_DB_PROCESSES": "1"})
    try:
        dev.serve()
        path = os.pathsep.join([str(Path(grpcurl).parent), os.environ["PATH"]])
        # The page means the default address, which may be taken on this machine.
        environment = {**clean_environment(), "PATH": path, "KRONOS_DB_GRPC_LISTEN": dev.address}
        shell = Shell(folder, environment, {"127.0.0.1:50051": dev.address})
        try:
            yield shell
        finally:
            shell.close()
    finally:
        dev.close()


def test_the_readme(checkout: Shell) -> None:
    said: list[str] = []
    for command in of("README.md"):
        if command.name == "make run":
            # It has been: what it would run is what the fixture runs, on ports that are free.
            plan = subprocess.run(
                ["make", "--no-print-directory", "--dry-run", "--assume-old=.venv/.installed", "run"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
                timeout=LIMIT,
            )
            assert plan.stdout == "exec .venv/bin/kronos-db dev\n"
            continue
        refused = '"ANN"' in command.name
        # grpcurl ends with 64 and the code of the status.
        said.append(checkout.run(command.text, code=70 if refused else 0))
    assert sum('"ann"' in answer for answer in said) == 3
    assert "USERNAME_TAKEN" in said[-1]


def test_the_examples_are_run_by_their_tests() -> None:
    """Their page is a table of programs: tests/clients runs those of each domain, tests/e2e the others by name."""
    [export] = commands(ROOT / "examples" / "README.md")
    assert export in [Command(export.page, command.text) for command in commands(ROOT / "README.md")]
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "e2e").glob("test_*.py"))
    for program in re.findall(
        r"examples/\w+/(\w+\.\w+)", (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    ):
        assert program in tests or program.partition(".")[0] in STORIES, program


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_within_sentences_exist(page: Path) -> None:
    """Of `kronos-db …` in a sentence, command and options are ones of the command line."""
    for span in spans(page, "kronos-db "):
        known: Any = typer.main.get_command(cli.app)
        words = shlex.split(span.replace("…", "x"))[1:]
        while words and hasattr(known, "commands") and words[0] in known.commands:
            known = known.commands[words.pop(0)]
        assert not hasattr(known, "commands") or not words or words[0].isupper(), f"{page.name}: {span}"
        options = {name for parameter in known.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options, f"{page.name}: {span}"


def test_settings_of_this_test_are_the_defaults_of_the_pages() -> None:
    """What is replaced in the pages is what a reader would have."""
    for name, address in (("grpc_listen", "127.0.0.1:50051"), ("ops_listen", "127.0.0.1:9464")):
        assert Settings.model_fields[name].default == address
