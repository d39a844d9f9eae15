"""`kronos-db backup`: makes, lists, checks, restores and removes backups, through a server or, in need, without one."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from kronos_db.config import Settings, SettingsError, load

if TYPE_CHECKING:
    from kronos_db.backup.engine import Engine
    from kronos_db.backup.model import RestoreTarget, Work
    from kronos_db.client import Client

app = typer.Typer(help="Make, list, check, restore and remove backups.", no_args_is_help=True)

# Seconds between two attempts to follow a run whose server went away, and how many there are.
_PAUSE, _MOST_ATTEMPTS = 1.0, 60
_NONE = "-"

_Address = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Server; default: KRONOS_DB_GRPC_LISTEN.")]
_Token = Annotated[str | None, typer.Option(envvar="KRONOS_TOKEN", help="Bearer token.", show_default=False)]
_Ca = Annotated[Path | None, typer.Option("--tls-ca", metavar="FILE", help="PEM authorities; speaks TLS.")]
_Offline = Annotated[
    bool,
    typer.Option("--offline", help="Without a server: with KRONOS_DB_BACKUP_DESTINATION and the master key alone."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command()
def create(  # noqa: PLR0917 - typer reads the options off the parameters
    full: Annotated[bool, typer.Option("--full", help="A full one; default: incremental where it can be.")] = False,
    label: Annotated[str, typer.Option(help="What to call it.")] = "",
    as_json: _Json = False,
    address: _Address = None,
    token: _Token = None,
    tls_ca: _Ca = None,
) -> None:
    """Make a backup, behind the run that is under way. The server goes on when this is interrupted."""
    asked = {"kind": "BACKUP_KIND_FULL" if full else "BACKUP_KIND_UNSPECIFIED", "label": label}
    with _connected(address, token, tls_ca) as client:
        backup = _followed(client, "CreateBackup", asked)["backup"]
    if as_json:
        print(json.dumps(backup, indent=2))
    else:
        print(
            f"{backup['id']}: {_kind(backup)}, {_size(backup.get('database_bytes'))} in "
            f"{_size(backup.get('stored_bytes'))}."
        )


@app.command("list")
def list_backups(
    offline: _Offline = False,
    as_json: _Json = False,
    address: _Address = None,
    token: _Token = None,
    tls_ca: _Ca = None,
) -> None:
    """List all backups, newest first, and the state of the archive."""
    if offline:
        found = _listed_offline(_engine())
    else:
        with _connected(address, token, tls_ca) as client:
            found = _listed(client)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table("id", "kind", "state", "complete at", "holds", "stored", "builds on", "label")
    for backup in found["backups"]:
        table.add_row(
            backup["id"],
            _kind(backup),
            backup["state"].removeprefix("BACKUP_STATE_"),
            backup.get("stop_time", _NONE),
            _size(backup.get("database_bytes")),
            _size(backup.get("stored_bytes")),
            backup.get("parent_id", ""),
            backup.get("label", ""),
        )
    _printed(table)
    archive = found["archive"]
    print(f"Archive: up to {archive.get('last_lsn', 'nothing')}, durable at {archive.get('last_time', _NONE)}.")
    for gap in archive.get("gaps", ()):
        print(f"GAP on timeline {gap['timeline']}: {gap['start_lsn']} to {gap['end_lsn']} is missing.")


@app.command()
def verify(  # noqa: PLR0917 - typer reads the options off the parameters
    backup_id: Annotated[str, typer.Argument(metavar="[ID]", help="Default: the newest.")] = "",
    drill: Annotated[bool, typer.Option("--drill", help="Restore it too, and compare its content.")] = False,
    offline: _Offline = False,
    as_json: _Json = False,
    address: _Address = None,
    token: _Token = None,
    tls_ca: _Ca = None,
) -> None:
    """Check a backup, its chain and the archive behind it; exit code 1 when anything is wrong."""
    if offline:
        report = _verified_offline(_engine(), backup_id, drill)
    else:
        with _connected(address, token, tls_ca) as client:
            report = _followed(client, "VerifyBackup", {"id": backup_id, "drill": drill})["report"]
    sound = report.get("sound", False)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        for fault in report.get("faults", ()):
            print(f"{fault['where']}: {fault['what']}")
        until = report.get("restorable_until_lsn")
        verdict = "sound" if sound else "NOT SOUND"
        print(f"{report['backup_id']}: {verdict}{f', restorable until {until}' if until else ''}.")
    raise typer.Exit(0 if sound else 1)


@app.command()
def restore(  # noqa: PLR0917 - typer reads the options off the parameters
    into: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="New data directory here; needs no server and no database.")
    ] = None,
    instance: Annotated[
        str | None, typer.Option(metavar="NAME", help="New data directory at the server, in its restore folder.")
    ] = None,
    domain: Annotated[
        str | None, typer.Option(metavar="NAME", help="The tables of this domain, back into the live database.")
    ] = None,
    at: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="Up to this time, as 2026-11-26T12:00:00Z.")
    ] = None,
    lsn: Annotated[str | None, typer.Option(metavar="LSN", help="Up to this position in the WAL.")] = None,
    backup: Annotated[str | None, typer.Option(metavar="ID", help="The state at the end of this backup.")] = None,
    before: Annotated[
        int | None, typer.Option("--before-transaction", metavar="XID", help="Just before this transaction.", min=3)
    ] = None,
    as_json: _Json = False,
    address: _Address = None,
    token: _Token = None,
    tls_ca: _Ca = None,
) -> None:
    """Restore: the last moment in the archive unless told otherwise."""
    from kronos_db.backup.as_json import target_json  # noqa: PLC0415 - only here

    target = _target(at, lsn, backup, before)
    if sum(place is not None for place in (into, instance, domain)) != 1:
        raise typer.BadParameter("Say where to: one of --into, --instance and --domain.")
    if into is not None:
        restored = _restored_offline(_engine(), into, target)
    else:
        place = {"instance": instance} if instance else {"domain": domain}
        with _connected(address, token, tls_ca) as client:
            restored = _followed(client, "RestoreBackup", {"target": target_json(target), **place})["restored"]
    if as_json:
        print(json.dumps(restored, indent=2))
        return
    if not restored.get("target_reached", False):
        print("The archive ends before the target: whether more was written until then, nobody knows.")
    if restored.get("domain"):
        rows = sum(int(count) for count in restored.get("rows", {}).values())
        print(f"{restored['domain']}: {rows} rows are back.")
    else:
        where = f" on {restored['host']}" if restored.get("host") else ""
        print(f"{restored['folder']}{where}: restored up to {restored.get('lsn', _NONE)}, stopped and ready to start.")


@app.command()
def delete(
    backup_id: Annotated[str, typer.Argument(metavar="ID", help="The backup.")],
    force: Annotated[bool, typer.Option("--force", help="Also those that build on it.")] = False,
    address: _Address = None,
    token: _Token = None,
    tls_ca: _Ca = None,
) -> None:
    """Remove a backup."""
    with _connected(address, token, tls_ca) as client:
        gone = _followed(client, "DeleteBackup", {"id": backup_id, "force": force})["deleted_ids"]
    print("\n".join(f"{each} removed." for each in gone))


@app.command("fetch-wal")
def fetch_wal(
    name: Annotated[str, typer.Argument(help="%f of restore_command: a segment of WAL, or a timeline's history.")],
    path: Annotated[Path, typer.Argument(help="%p of restore_command: where to put it.")],
    system_identifier: Annotated[
        int | None, typer.Option(help="The database cluster; default: the only one in the destination.")
    ] = None,
) -> None:
    """Bring one file of WAL out of the archive, for a restore_command of your own; exit code 1 when it is not there."""
    from kronos_db.backup.fetch import main as fetch  # noqa: PLC0415 - only here

    settings = _settings()
    backups = [each for each in _engine().list() if system_identifier in (None, each.system_identifier)]
    clusters = {each.system_identifier for each in backups}
    if len(clusters) != 1:
        raise typer.BadParameter(f"--system-identifier must name one of: {', '.join(map(str, sorted(clusters)))}.")
    [cluster] = clusters
    size = str(backups[-1].segment_size)
    place = (str(settings.backup_destination), str(settings.master_key_file))
    raise typer.Exit(fetch([*place, str(cluster), size, name, str(path)]))


def _settings() -> Settings:
    """Return the settings, with what `kronos-db dev` makes in its data directory for what is not set."""
    settings = load()
    found: dict[str, Any] = {}
    if settings.backup_destination is None and (settings.data_dir / "backups").is_dir():
        found["backup_destination"] = str(settings.data_dir / "backups")
    key = settings.data_dir / "keys" / "master.key"
    if settings.master_key_file is None and key.is_file():
        found["master_key_file"] = key
    return settings.model_copy(update=found)


def _engine() -> Engine:
    from kronos_db.backup_setup import open_engine  # noqa: PLC0415 - only here

    engine = open_engine(_settings())
    if engine is None:
        raise SettingsError("KRONOS_DB_BACKUP_DESTINATION is not set, and without a server it must be.")
    return engine


@contextmanager
def _connected(address: str | None, token: str | None, ca: Path | None) -> Iterator[Client]:
    # The core of gRPC would print what the error says anyway.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from kronos_db import call_command  # noqa: PLC0415 - gRPC costs start time, and only here

    place = address or load().grpc_listen
    with call_command.connected(place, token=token, headers=[], ca=ca, cert=None, key=None) as client:
        yield client


def _followed(client: Client, name: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Call a method that follows a run, show how far it is, and return its last message.

    Calls again when the server ends, and waits for another run that must end first: many begin by themselves.
    """
    from kronos_db.client import CallError  # noqa: PLC0415 - only here

    method = client.method(f"AdminService/{name}")
    request = method.request(json.dumps({**asked, "request_id": str(uuid.uuid4())}))
    last: dict[str, Any] = {}
    attempts = 0
    with _Bar(name) as bar:
        while True:
            try:
                for message in client.call(method, [request]):
                    last = method.fields(message)
                    bar.show(last.get("progress"))
            except CallError as error:
                if error.reason == "BACKUP_RUN_ACTIVE":
                    bar.wait(f"behind {error.metadata['kind']} {error.metadata['run_id']}")
                else:
                    attempts += 1
                    gone = error.code == "UNAVAILABLE" and error.reason in {None, "BACKUP_STREAM_ENDING"}
                    if not gone or attempts == _MOST_ATTEMPTS or not last:
                        raise
                time.sleep(_PAUSE)
            else:
                return last


def _done(name: str, work: Work[Any]) -> Any:
    """Do work of the engine here, show how far it is, and return what comes of it."""
    from kronos_db.backup.as_json import progress_json  # noqa: PLC0415 - only here
    from kronos_db.backup.engine import finish  # noqa: PLC0415

    with _Bar(name) as bar:
        return finish(work, lambda progress: bar.show(progress_json(progress)))


def _listed(client: Client) -> dict[str, Any]:
    method = client.method("AdminService/ListBackups")
    backups: list[Any] = []
    token = ""
    while True:
        request = method.request(json.dumps({"page_size": 1000, "page_token": token}))
        [page] = (method.fields(message) for message in client.call(method, [request], deadline=60.0))
        backups += page.get("backups", [])
        token = page.get("next_page_token", "")
        if not token:
            return {"backups": backups, "archive": page.get("archive", {})}


def _listed_offline(engine: Engine) -> dict[str, Any]:
    from kronos_db.backup.as_json import archive_json, backup_json  # noqa: PLC0415 - only here

    backups = sorted(engine.list(), key=lambda backup: backup.start_time, reverse=True)
    return {"backups": [*map(backup_json, backups)], "archive": archive_json(engine.archive_state())}


def _verified_offline(engine: Engine, backup_id: str, drill: bool) -> dict[str, Any]:
    from kronos_db.backup.as_json import report_json  # noqa: PLC0415 - only here
    from kronos_db.backup.choosing import newest  # noqa: PLC0415

    wanted = backup_id or newest(engine.list()).id
    work: Work[Any] = engine.drill(wanted) if drill else engine.verify(wanted)
    return report_json(_done("VerifyBackup", work))


def _restored_offline(engine: Engine, folder: Path, target: RestoreTarget) -> dict[str, Any]:
    from kronos_db.backup.as_json import restored_json  # noqa: PLC0415 - only here
    from kronos_db.backup.model import RestoreRequest  # noqa: PLC0415

    return restored_json(_done("RestoreBackup", engine.restore(RestoreRequest(folder.absolute(), target))), "")


def _target(at: str | None, lsn: str | None, backup: str | None, before: int | None) -> RestoreTarget:
    from kronos_db.backup.model import AtBackup, AtLsn, AtTime, BeforeTransaction, Latest, Lsn  # noqa: PLC0415

    if sum(each is not None for each in (at, lsn, backup, before)) > 1:
        raise typer.BadParameter("--time, --lsn, --backup and --before-transaction exclude each other.")
    try:
        if at is not None:
            time_ = datetime.fromisoformat(at)
            return AtTime(time_ if time_.tzinfo else time_.replace(tzinfo=UTC))
        if lsn is not None:
            return AtLsn(Lsn.parse(lsn))
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from None
    if backup is not None:
        return AtBackup(backup)
    return Latest() if before is None else BeforeTransaction(before)


class _Bar:
    """A progress bar on standard error, one line for each step."""

    def __init__(self, name: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True, highlight=False))
        self._name = name
        self._step = ""
        self._task: Any = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def wait(self, what_for: str) -> None:
        """Show that nothing goes on yet."""
        if what_for != self._step:
            self._step = what_for
            self._progress.add_task(what_for, total=None)

    def show(self, progress: dict[str, Any] | None) -> None:
        """Show a BackupProgress."""
        if progress is None:
            return
        total = int(progress.get("bytes_total", 0)) or None
        if progress["step"] != self._step:
            self._step = progress["step"]
            self._task = self._progress.add_task(self._step, total=total)
        self._progress.update(self._task, completed=int(progress.get("bytes_done", 0)), total=total)


def _kind(backup: dict[str, Any]) -> str:
    return str(backup["kind"]).removeprefix("BACKUP_KIND_").lower()


def _size(count: object) -> str:
    size = float(str(count or 0))
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:  # noqa: PLR2004 - what a KiB has
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _printed(table: Table) -> None:
    console = Console(highlight=False, markup=False)
    # A pipe has no width: nothing is to be broken there.
    (console if console.is_terminal else Console(highlight=False, markup=False, width=500)).print(table)
