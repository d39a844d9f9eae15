"""The command line `kronos-db`: starts servers, migrates, explains the settings and calls methods.

Errors are one sentence on standard error, with exit code 2 for wrong settings or usage and 1 for everything else.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table

import kronos_db
from kronos_db import backup_command
from kronos_db.config import (
    CONFIG_FILE,
    Settings,
    SettingsError,
    environment_name,
    explain,
    load,
    require_for_serving,
    shown,
)
from kronos_db.runtime.errors import KronosError

app = typer.Typer(
    name="kronos-db",
    help="The gRPC data-access server of the Kronos platform.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
config_app = typer.Typer(help="Explain the settings.", no_args_is_help=True)
token_app = typer.Typer(help="Make credentials for callers.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(token_app, name="token")
app.add_typer(backup_command.app, name="backup")


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        code = _complain(error.format_message(), error.exit_code)
    except SettingsError as error:
        code = _complain(str(error), 2)
    except KronosError as error:
        code = _complain(str(error), 1)
    except typer.Abort:
        code = 1
    sys.exit(code)


def _complain(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


@app.callback()
def common(
    config: Annotated[Path | None, typer.Option(metavar="FILE", help=f"TOML file of settings ({CONFIG_FILE}).")] = None,
) -> None:
    """Take the options of all commands."""
    if config is not None:
        # Through the environment, so that the processes this one starts read the same file.
        os.environ[CONFIG_FILE] = str(config.absolute())


@app.command()
def dev() -> None:
    """Serve with a PostgreSQL and a Redis of its own below the data directory; the first start makes them."""
    settings = load()
    from kronos_db.dev import run  # noqa: PLC0415 - only here

    raise typer.Exit(run(settings, lambda sentence: print(sentence, flush=True), _announce))


def _announce(settings: Settings, token: str) -> None:
    """Print what listens where, and calls to paste."""
    program = os.path.relpath(sys.argv[0])
    default = Settings.model_fields["grpc_listen"].default
    address = "" if settings.grpc_listen == default else f" --address {settings.grpc_listen}"
    start = f"{shlex.quote(program if len(program) < len(sys.argv[0]) else sys.argv[0])} call{address} --token {token}"
    # A name that the data directory does not hold yet, so that the first call works after every start.
    name = f"ann-{os.urandom(3).hex()}"
    user = json.dumps({"user": {"username": name, "email": f"{name}@example.org"}})
    count = settings.process_count
    print(
        f"kronos-db {kronos_db.__version__} is serving; Ctrl-C stops it.\n\n"
        f"  gRPC        {settings.grpc_listen}{f' ({count} processes)' if count > 1 else ''}\n"
        f"  ops         http://{settings.ops_listen} (/metrics /livez /readyz)\n"
        f"  PostgreSQL  {shown(settings.postgres_dsn)}\n"
        f"  Redis       {shown(settings.redis_url) or 'none: slower, never wrong'}\n"
        f"  data        {settings.data_dir}\n\n"
        "Calls to paste into another terminal:\n\n"
        f"  {start} UsersService/CreateUser '{user}'\n"
        f"  {start} UsersService/GetUser '{json.dumps({'username': name})}'\n"
        f"""  {start} UsersService/ListUsers '{{"page_size": 10}}'\n""",
        flush=True,
    )


@app.command()
def serve(
    processes: Annotated[int | None, typer.Option(help="Serving processes (KRONOS_DB_PROCESSES).", min=1)] = None,
) -> None:
    """Serve with the PostgreSQL and Redis that the settings name, until SIGTERM."""
    if processes is not None:
        os.environ[environment_name("processes")] = str(processes)
    require_for_serving(load())
    # A fresh process: it never imports what only the command line needs, and gets its signals itself.
    os.execv(sys.executable, [sys.executable, "-m", "kronos_db"])  # noqa: S606 - no shell is wanted


@app.command()
def migrate(
    status: Annotated[bool, typer.Option("--status", help="Show every migration and change nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be applied and change nothing.")] = False,
) -> None:
    """Bring the schemas of all domains up to this release."""
    if status and dry_run:
        raise typer.BadParameter("--status and --dry-run exclude each other.")
    settings = load()
    from kronos_db import schemas  # noqa: PLC0415 - only here

    if status:
        table = Table("domain", "migration", "state", "applied at")
        for row in schemas.migration_plan(settings):
            table.add_row(row.domain, row.name, row.state, row.applied_at.isoformat() if row.applied_at else "")
        _print_table(table)
    elif dry_run:
        pending = [row for row in schemas.migration_plan(settings) if row.state == "pending"]
        for row in pending:
            print(f"{row.domain}: {row.name}  {row.path}")
        print(f"{len(pending)} to apply." if pending else "Nothing to apply.")
    else:
        applied: list[str] = []

        def report(domain: str, name: str) -> None:
            applied.append(name)
            print(f"{domain}: {name}", flush=True)

        schemas.migrate(settings, report)
        print(f"{len(applied)} applied." if applied else "Nothing to apply.")


@app.command()
def ready(
    live: Annotated[bool, typer.Option("--live", help="Ask only whether the process answers.")] = False,
) -> None:
    """Ask the server of this machine whether it is ready (KRONOS_DB_OPS_LISTEN); the exit code is 1 when it is not."""
    from kronos_db import ready_command  # noqa: PLC0415 - only here

    print(ready_command.ask(load().ops_listen, "/livez" if live else "/readyz"))


@app.command()
def secrets(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where they go; made when it is not there.")],
) -> None:
    """Make the secrets of a first start: master key, role secret, and an access file with an operator's token.

    What is there already stays.
    """
    from kronos_db import first_secrets  # noqa: PLC0415 - only here

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in first_secrets.make_secrets(folder, "operator"):
            print(f"{path} made.")
    except OSError as error:
        raise typer.BadParameter(f"{folder}: {error.strerror}.") from None


@app.command()
def version() -> None:
    """Show the version of the server and of what it runs on."""
    parts = [f"{name} {importlib.metadata.version(name)}" for name in ("grpcio", "protobuf", "psycopg")]
    print(f"kronos-db {kronos_db.__version__} (Python {platform.python_version()}, {', '.join(parts)})")


@config_app.command("show")
def config_show(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show every setting: its value now with secrets masked, its default, type and meaning."""
    rows = list(explain(load()))
    if as_json:
        names = {"name": "name", "value": "value", "default": "default", "kind": "type", "meaning": "meaning"}
        print(json.dumps([{key: getattr(row, name) for name, key in names.items()} for row in rows], indent=2))
        return
    table = Table("setting", "value", "default", "type", "meaning", show_lines=True)
    for row in rows:
        changed = "bold" if row.value != row.default else ""
        table.add_row(row.name, row.value, row.default, row.kind, row.meaning, style=changed)
    _print_table(table)


def _print_table(table: Table) -> None:
    console = Console(highlight=False, markup=False)
    # A pipe has no width: nothing is to be broken there.
    (console if console.is_terminal else Console(highlight=False, markup=False, width=500)).print(table)


@token_app.command("new")
def token_new(
    caller: Annotated[str, typer.Argument(metavar="CALLER", help="Name of the service that is to use the token.")],
) -> None:
    """Make a bearer token for a caller and show it, once, with the lines for the access file."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", caller):
        raise typer.BadParameter(f"{caller!r} is no name of a caller: use a-z, 0-9 and -.")
    settings = load()
    from kronos_db.runtime.crypto.master_key import FileMasterKeys  # noqa: PLC0415 - only here
    from kronos_db.runtime.interceptors.authentication import hash_token, new_token  # noqa: PLC0415 - only here

    # What `dev` makes is taken for granted when nothing else is set.
    masters = FileMasterKeys(settings.master_key_file or settings.data_dir / "keys" / "master.key")
    token = new_token()
    print(
        f"Token of {caller}, shown this once:\n\n    {token}\n\n"
        f"For the access file, with what the caller may call:\n\n"
        f'    [callers.{caller}]\n    tokens = ["{hash_token(token, masters)}"]\n'
        f'    allow = ["kronos.users.v1.UsersService/*"]'
    )


_Target = Annotated[
    str | None, typer.Argument(metavar="SERVICE/METHOD", help="Method; of the service's name, a part is enough.")
]
_Body = Annotated[
    str,
    typer.Argument(
        metavar="JSON",
        help="Request, or @FILE, or - for standard input. Streams take an array or one request after another.",
    ),
]
_Address = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Server; default: KRONOS_DB_GRPC_LISTEN.")]
# Without the prefix of the settings: it is none of them.
_Token = Annotated[str | None, typer.Option(envvar="KRONOS_TOKEN", help="Bearer token.", show_default=False)]

_Ca = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM authorities; speaks TLS.")]
_Cert = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM client certificate; speaks TLS.")]
_Key = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM key of the client certificate.")]


@app.command()
def status(  # noqa: PLR0917 - typer reads the options off the parameters
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    address: _Address = None,
    token: _Token = None,
    tls_ca: _Ca = None,
    cert: _Cert = None,
    key: _Key = None,
) -> None:
    """Show the state of a running server and of all its parts; the exit code is 1 when it is DOWN."""
    if watch and as_json:
        raise typer.BadParameter("--watch and --json exclude each other.")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from kronos_db import call_command, status_command  # noqa: PLC0415 - gRPC costs start time, and only here

    place = address or load().grpc_listen
    with call_command.connected(place, token=token, headers=[], ca=tls_ca, cert=cert, key=key) as client:
        status_command.show(client, Console(highlight=False, markup=False), watch=watch, as_json=as_json)


@app.command()
def query(  # noqa: PLR0917 - typer reads the options off the parameters
    sql: Annotated[
        str | None, typer.Argument(metavar="SQL", help="One statement that reads, or - for standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="File with the statement.")] = None,
    form: Annotated[
        Literal["table", "csv", "json"], typer.Option("--format", help="table, csv, or json: an object on each line.")
    ] = "table",
    domain: Annotated[
        str, typer.Option(metavar="DOMAIN", help="Whose database is asked; default: the common one.")
    ] = "",
    max_rows: Annotated[int, typer.Option(min=0, help="Rows at most; 0: as many as the server lets.")] = 0,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, metavar="SECONDS", help="Default: KRONOS_DB_QUERY_TIMEOUT of the server.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the plan, and run nothing.")] = False,
    address: _Address = None,
    token: _Token = None,
    tls_ca: _Ca = None,
    cert: _Cert = None,
    key: _Key = None,
) -> None:
    """Run one statement that reads on a running server; the exit code is 3 when not all rows came."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from kronos.admin.v1 import query_pb2  # noqa: PLC0415 - gRPC costs start time, and only here

    from kronos_db import call_command, query_command  # noqa: PLC0415

    text = query_command.read_statement(sql, file)
    place = address or load().grpc_listen
    with call_command.connected(place, token=token, headers=[], ca=tls_ca, cert=cert, key=key) as client:
        if explain:
            query_command.explain(client, query_pb2.ExplainQueryRequest(sql=text, domain=domain))
            return
        request = query_pb2.QueryRequest(sql=text, domain=domain, max_rows=max_rows)
        if timeout is not None:
            request.timeout.FromNanoseconds(int(timeout * 1e9))
        query_command.run(client, request, form)


@app.command()
def call(  # noqa: PLR0917 - typer reads the options off the parameters
    target: _Target = None,
    body: _Body = "{}",
    address: _Address = None,
    token: _Token = None,
    tls_ca: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM authorities; speaks TLS.")] = None,
    cert: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM client certificate; speaks TLS.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM key of the client certificate.")] = None,
    deadline: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="SECONDS", help="Default: 30 for a unary call, none for a stream."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("-H", "--header", metavar="NAME:VALUE", help="Metadata; may be given again.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List all services and methods.")] = False,
    describe: Annotated[bool, typer.Option("--describe", help="Show the messages of the method.")] = False,
    repeat_from: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Call once for each line of JSON of a file, - for standard input."),
    ] = None,
    in_flight: Annotated[int, typer.Option(min=1, max=1000, help="Calls at a time with --repeat-from.")] = 8,
    progress: Annotated[bool, typer.Option("--progress", help="Show a progress bar with --repeat-from.")] = False,
) -> None:
    """Call any method of a running server, unary or streaming; what it takes, the server's reflection tells."""
    if target is None and not list_all:
        raise typer.BadParameter("Name a method as SERVICE/METHOD; --list shows all.")
    # The core of gRPC would print what the error says anyway.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from kronos_db import call_command as command  # noqa: PLC0415 - gRPC costs start time, and only here

    place = address or load().grpc_listen
    with command.connected(place, token=token, headers=header or [], ca=tls_ca, cert=cert, key=key) as client:
        if target is None or list_all:
            command.list_services(client)
            return
        method = client.method(target)
        if describe:
            command.show_method(method)
        elif repeat_from is not None:
            command.call_for_each(
                client, method, repeat_from, in_flight=in_flight, deadline=deadline, progress=progress
            )
        else:
            command.call_once(client, method, body, deadline)


_Domain = Annotated[str, typer.Option(metavar="DOMAIN", help="Only of this domain.", show_default=False)]
_Authorities = Annotated[Path | None, typer.Option("--tls-ca", metavar="FILE", help="PEM authorities; speaks TLS.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command("slow-queries")
def slow_queries(  # noqa: PLR0917 - typer reads the options off the parameters
    domain: _Domain = "",
    order: Annotated[
        str, typer.Option(help="total-time, mean-time, calls, rows, temp-bytes or blocks-read.")
    ] = "total-time",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Statements, at most.")] = 20,
    as_json: _Json = False,
    address: _Address = None,
    token: _Token = None,
    tls_ca: _Authorities = None,
) -> None:
    """Show which statements cost PostgreSQL most, and which methods issue them."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from kronos_db import call_command, operations_command  # noqa: PLC0415 - gRPC costs start time, and only here

    place = address or load().grpc_listen
    with call_command.connected(place, token=token, headers=[], ca=tls_ca, cert=None, key=None) as client:
        operations_command.list_slow_queries(client, domain=domain, order=order, limit=limit, as_json=as_json)


@app.command()
def advise(  # noqa: PLR0917 - typer reads the options off the parameters
    domain: _Domain = "",
    measure: Annotated[bool, typer.Option("--measure", help="Try missing ones out (KRONOS_DB_SCRATCH_DSN).")] = False,
    apply: Annotated[str | None, typer.Option(metavar="ID", help="Do what is advised under this id.")] = None,
    as_json: _Json = False,
    address: _Address = None,
    token: _Token = None,
    tls_ca: _Authorities = None,
) -> None:
    """Show which indexes to make, drop and make anew."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from kronos_db import call_command, operations_command  # noqa: PLC0415 - gRPC costs start time, and only here

    place = address or load().grpc_listen
    with call_command.connected(place, token=token, headers=[], ca=tls_ca, cert=None, key=None) as client:
        if apply is not None:
            operations_command.apply(client, apply)
        else:
            operations_command.advise(client, domain=domain, measure=measure, as_json=as_json)
