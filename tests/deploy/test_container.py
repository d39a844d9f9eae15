"""The steps of the container, replayed: the image's tree in a clean folder, and its command as another user in it.

What is left out is said where it is: what wants root on a Debian of the image's own. The short form takes pip and the
packages of the locks from the tests' own environment; the long one installs them anew, by their hashes.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import psycopg
import pytest
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from benchmarks.ports import free_address
from kronos_db.embedded.account import Account
from tests.deploy.dockerfile import ROOT, Stage, stages
from tests.deploy.pools import postgresql
from tests.parts.eventually import eventually
from tests.parts.place import LIGHT, Place, clean_environment

LIMIT = 120.0
# On a machine that is busy.
pytestmark = pytest.mark.timeout(600)
# The packages of the tests' own environment.
LENT = Path(sysconfig.get_path("purelib"))
SOAK = os.environ.get("KRONOS_TEST_SOAK") == "1"
# The folders that a container has to be able to write.
WRITABLE = ("tmp", "var/lib/kronos-db/backups", "var/lib/kronos-db/scratch")


class Replay:
    """The image's file system below `root`, made by the steps of the Dockerfile."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.build, self.image = stages()
        uid, gid = map(int, self.image.all("USER")[0].split(":"))
        self.account = Account(uid, gid) if os.geteuid() == 0 else None
        self.left_out: list[str] = []

    def below(self, text: str) -> str:
        """Return a text with the absolute paths of the image put below our root."""
        return re.sub(r"(?<![\w.])/(opt|var/lib/kronos-db|src)\b", rf"{self.root}/\1", text)

    def make(self) -> None:
        """Do the steps of both stages."""
        (self.root / "tmp").mkdir(mode=0o1777)
        self._stage(self.build)
        self._stage(self.image)
        shutil.rmtree(self.root / "src")
        shutil.rmtree(self.root / "opt" / "build")

    def _stage(self, stage: Stage) -> None:
        folder = self.root
        for word, rest in stage.steps:
            if word == "WORKDIR" and rest != "/tmp":
                folder = Path(self.below(rest))
                folder.mkdir(parents=True)
            elif word == "COPY" and not rest.startswith("--from"):
                self._copy(rest, folder)
            elif word == "COPY":
                # From the other stage, to the same place: it is there.
                _from, source, target = rest.split()
                assert source == target
            elif word == "RUN":
                for command in rest.split(" && "):
                    self._run(command, folder)
            else:
                assert word in {"ARG", "LABEL", "ENV", "USER", "WORKDIR", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"} or (
                    word in {"ENTRYPOINT", "CMD"}
                )

    def _copy(self, rest: str, folder: Path) -> None:
        *sources, target = rest.split()
        for source in sources:
            to = folder / target / (Path(source).name if target.endswith("/") else "")
            to.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, to)

    def _run(self, command: str, folder: Path) -> None:
        if re.search(r"apt-get|apt\.postgresql\.org|/etc/|/var/lib/apt|^useradd", command):
            self.left_out.append(command)
            return
        if not SOAK and "--require-hashes" in command:
            return
        if not SOAK and command.startswith("python -m venv"):
            self._lend(Path(self.below(command.rsplit(maxsplit=1)[-1])))
            return
        if self.account is None:
            command = command.replace("-o 65532 -g 65532", "")
        environment = {
            **clean_environment(),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        done = subprocess.run(
            ["/bin/sh", "-euc", self.below(command)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT * 4,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"

    def _lend(self, venv: Path) -> None:
        """Make a virtual environment that has what the tests' own has, pip too."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=LIMIT)
        [packages] = (venv / "lib").glob("python3.*/site-packages")
        (packages / "of_the_tests.pth").write_text(f"{LENT}\n")
        pip = venv / "bin" / "pip"
        pip.write_text(f'#!/bin/sh\nexec {venv}/bin/python -m pip "$@"\n')
        pip.chmod(0o755)

    def environment(self, changes: Mapping[str, str]) -> dict[str, str]:
        """Return what a process in the container has in its environment, with `changes`."""
        own = {name: self.below(value) for name, value in self.image.environment().items()}
        own["PATH"] = own["PATH"].replace("$PATH", os.environ["PATH"])
        return {**own, "TMPDIR": str(self.root / "tmp"), "HOME": "/nonexistent", **changes}

    def start(self, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start a command of the image as its user, who owns nothing and may write nothing but what is WRITABLE."""
        words = [str(self.root / "opt" / "kronos-db" / "bin" / command[0]), *command[1:]]
        if self.account is not None:
            words = self.account.command(words, [self.root, LENT, Path(sys.executable).resolve()])
        pipe = subprocess.PIPE
        return subprocess.Popen(
            words, env=dict(environment), cwd=self.root / "tmp", stdout=pipe, stderr=subprocess.STDOUT, text=True
        )

    def run(self, command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
        """Run a command of the image and return its exit code and what it said."""
        with self.start(command, environment) as process:
            said, _ = process.communicate(timeout=LIMIT)
            return process.returncode, said

    def tree(self) -> dict[str, tuple[int, int]]:
        """Return size and time of every file but the WRITABLE ones."""
        found = {}
        for path in self.root.rglob("*"):
            name = str(path.relative_to(self.root))
            if not name.startswith((*WRITABLE, "secrets")) and path.is_file():
                found[name] = path.stat().st_size, path.stat().st_mtime_ns
        return found


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    # Below a folder that everybody may enter, as a root file system is.
    with tempfile.TemporaryDirectory(prefix="kronos-image-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        before = os.umask(0o022)
        try:
            made = Replay(root)
            made.make()
        finally:
            os.umask(before)
        subprocess.run(["chmod", "-R", "a-w", root / "opt"], check=True)
        yield made
        subprocess.run(["chmod", "-R", "u+w", root / "opt"], check=True)


@pytest.fixture(scope="module")
def surroundings(replay: Replay, place: Place, pgbouncer_binary: Path) -> dict[str, str]:
    """Secrets as of secrets.sh, PostgreSQL as init.sh leaves it, pgBouncer; return the environment of the container."""
    deploy = replay.root / "deploy"
    (deploy / "postgres").mkdir(parents=True)
    for name in ("secrets.sh", "postgres/init.sh"):
        shutil.copy(ROOT / "deploy" / name, deploy / name)
    environment = replay.environment({})
    for _ in range(2):
        # The second time changes nothing.
        subprocess.run([deploy / "secrets.sh"], env=environment, check=True, timeout=LIMIT, stdout=subprocess.DEVNULL)
    secrets = deploy / "secrets"
    assert {path.stat().st_mode & 0o777 for path in secrets.iterdir()} == {0o600}
    if replay.account is None:
        assert (deploy / ".env").read_text() == f"KRONOS_UID={os.getuid()}\nKRONOS_GID={os.getgid()}\n"
    else:
        assert (deploy / ".env").read_text() == "KRONOS_UID=65532\nKRONOS_GID=65532\n"
    initialise(place, deploy / "postgres" / "init.sh", secrets)
    place.start_pgbouncer(pgbouncer_binary, ROOT / "deploy" / "pgbouncer.ini", secrets / "userlist.txt")
    adapt(secrets / "kronos-db.toml", place)
    return replay.environment(
        {
            "KRONOS_DB_CONFIG_FILE": str(secrets / "kronos-db.toml"),
            "KRONOS_DB_POSTGRES_DSN": f"postgresql://{place.pgbouncer_address}/kronos",
            "KRONOS_DB_POSTGRES_ROLE_SECRET_FILE": str(secrets / "role.secret"),
            "KRONOS_DB_MASTER_KEY_FILE": str(secrets / "master.key"),
            "KRONOS_DB_ACCESS_FILE": str(secrets / "access.toml"),
            "KRONOS_DB_GRPC_LISTEN": free_address().replace("127.0.0.1", "0.0.0.0"),
            "KRONOS_DB_OPS_LISTEN": free_address().replace("127.0.0.1", "0.0.0.0"),
            "KRONOS_DB_PROCESSES": "2",
            "KRONOS_DB_DRAIN_PAUSE": "0",
        }
    )


def initialise(place: Place, script: Path, secrets: Path) -> None:
    """Do what the image of PostgreSQL does on a new data directory, and run init.sh there."""
    with psycopg.connect(place.postgres.dsn, autocommit=True) as connection:
        password = (secrets / "postgres-password").read_text()
        connection.execute(f"CREATE ROLE kronos_owner LOGIN SUPERUSER PASSWORD '{password}'")
    fake = script.parent / "data"
    fake.mkdir()
    own = script.read_text().replace("/etc/kronos-db/pgbouncer.sql", str(ROOT / "deploy" / "pgbouncer.sql"))
    script.write_text(own)
    environment = {
        **clean_environment(),
        **place.superuser(),
        "PATH": f"{place.programs}:{os.environ['PATH']}",
        "PGDATA": str(fake),
        "POSTGRES_USER": place.superuser()["PGUSER"],
        "POSTGRES_DB": "kronos",
        "PGBOUNCER_PASSWORD_FILE": str(secrets / "pgbouncer-password"),
    }
    done = subprocess.run(
        ["/bin/sh", script], env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"host replication \w+ all scram-sha-256\n", (fake / "pg_hba.conf").read_text())


def adapt(file: Path, place: Place) -> None:
    """Put our addresses in place of the names that compose.yaml gives."""
    text = file.read_text()
    assert "@postgres:5432/" in text
    status = file.stat()
    text = text.replace("@postgres:5432/", f"@{place.postgres_address}/")
    file.write_text(re.sub(r'redis_url = ".*"', f'redis_url = "{place.redis_url}"', text))
    assert file.stat().st_mode == status.st_mode


def test_only_what_wants_a_debian_of_its_own_is_left_out(replay: Replay) -> None:
    programs = [command.split()[0] for command in replay.left_out]
    assert programs == [
        "apt-get",
        "apt-get",
        "echo",
        "/usr/share/postgresql-common/pgdg/apt.postgresql.org.sh",
        "apt-get",
        "rm",
        "useradd",
    ]


def test_postgresql_takes_its_settings(place: Place) -> None:
    query = "SELECT name, setting, applied, error FROM pg_file_settings WHERE sourcefile LIKE '%/deployed.conf'"
    with psycopg.connect(place.postgres.dsn) as connection:
        taken = {name: rest for name, *rest in connection.execute(query)}
    for name, value in postgresql().items():
        assert taken.pop(name) == [value, name not in LIGHT, None]
    assert taken == {}


@pytest.mark.soak
def test_it_serves_as_another_user_on_a_tree_that_it_cannot_change(
    replay: Replay, surroundings: dict[str, str], place: Place
) -> None:
    before = replay.tree()
    _code, said = replay.run(["python", "-c", "import kronos_db; print(kronos_db.__file__)"], surroundings)
    assert said.startswith(f"{replay.root}/opt/kronos-db/lib/"), said
    code, said = replay.run(["kronos-db", "migrate"], surroundings)
    assert code == 0, said
    assert "users: users/0001_create" in said
    command = [*replay.image.command("ENTRYPOINT"), *replay.image.command("CMD")]
    with replay.start(command, surroundings) as server:
        try:
            healthy(replay, surroundings, server)
            ask(replay, surroundings)
            pooled_alone(place)
        finally:
            server.send_signal(getattr(signal, replay.image.all("STOPSIGNAL")[0]))
            said, _ = server.communicate(timeout=LIMIT)
    assert server.returncode == 0, said
    assert replay.tree() == before
    assert list((replay.root / "tmp").iterdir()) == []


def healthy(replay: Replay, environment: dict[str, str], server: subprocess.Popen[str]) -> None:
    """Wait until the commands by which containers are looked at say so."""
    said = ""

    def ready() -> bool:
        nonlocal said
        assert server.poll() is None, server.communicate()[0]
        code, said = replay.run(["kronos-db", "ready"], environment)
        return code == 0

    eventually(ready, LIMIT, lambda: said)
    assert replay.run(replay.image.command("HEALTHCHECK"), environment)[0] == 0


def ask(replay: Replay, environment: dict[str, str]) -> None:
    """Call the server with the token that secrets.sh made."""
    token = (replay.root / "deploy" / "secrets" / "token").read_text()
    with grpc.insecure_channel(environment["KRONOS_DB_GRPC_LISTEN"].replace("0.0.0.0", "127.0.0.1")) as channel:
        users = UsersServiceStub(channel)
        request = pb.CreateUserRequest(user=pb.User(username="ann", email="ann@example.org"))
        answer = users.CreateUser(request, timeout=30, metadata=[("authorization", f"Bearer {token}")])
    assert answer.user.username == "ann"


def pooled_alone(place: Place) -> None:
    """Check that the domains are served through pgBouncer, and what goes past it is what the arithmetic says."""
    with psycopg.connect(place.postgres.dsn) as connection:
        query = "SELECT application_name FROM pg_stat_activity WHERE usename = 'kronos_users'"
        names = [name for (name,) in connection.execute(query)]
    # Of two processes.
    assert names.count("kronos-db:listen") <= 2
    assert [name for name in names if name.startswith("kronos-db:")] == names
