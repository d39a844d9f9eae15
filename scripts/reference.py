"""Writes the reference pages below `docs/` that are made from the code, or checks that they are what the code gives."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto
from kronos.options.v1 import options_pb2
from prometheus_client import CollectorRegistry

from kronos_db import cli, config, server
from kronos_db.admin.backup_metrics import watch_backups
from kronos_db.admin.figures import PostgresFigures
from kronos_db.admin.recording import Recording
from kronos_db.cache.counting import Counts
from kronos_db.logs.metrics import watch_records
from kronos_db.messages.figures import QueueFigures
from kronos_db.routes.counters import Counters
from kronos_db.routes.limiter import Limiter
from kronos_db.routes.metrics import watch_routes
from kronos_db.routes.store import RoutesStore
from kronos_db.routes.table import Table
from kronos_db.runtime.cache.board import Board
from kronos_db.runtime.cache.engine import Cache, Rules
from kronos_db.runtime.cache.memory import Memory
from kronos_db.runtime.cache.remote import Remote
from kronos_db.runtime.database.background import OUTCOMES
from kronos_db.runtime.errors import ERROR_DOMAIN, UNKNOWN
from kronos_db.runtime.ops import saturation
from kronos_db.runtime.ops.background import watch_background, watch_lag
from kronos_db.runtime.ops.copies import watch_cache, watch_redis
from kronos_db.runtime.ops.fleet import LoneProcess
from kronos_db.runtime.ops.metrics import RpcMetrics, new_registry
from kronos_db.runtime.reception import Lane
from kronos_db.runtime.redis import RedisServer

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = ROOT / "generated" / "kronos.binpb"
HEAD = "<!-- Made by `python scripts/reference.py write`; do not edit. -->"
# Field numbers in google/protobuf/descriptor.proto: how comments name what they belong to.
_MESSAGE, _ENUM, _SERVICE, _SYNTAX, _FIELD, _VALUE, _METHOD, _NESTED = 4, 5, 6, 12, 2, 2, 2, 3
_LABELS_OF_FORMATS = frozenset({"le", "quantile"})


def settings_page() -> str:
    """Return the page of every setting."""
    rows = [
        (f"`{row.name}`", row.kind, f"`{row.default}`" if row.default else "", row.meaning) for row in config.explain()
    ]
    return f"""# Settings

Every setting is an environment variable. The same names, in lower case and without `{config.PREFIX}`, may stand in the
TOML file that `{config.CONFIG_FILE}` names; the environment goes before the file. An empty variable counts as not set.
A wrong value, and a name that is none of these, stops the start with one sentence that names it.

The meanings below leave out `{config.PREFIX}`. DSNs are PostgreSQL connection URLs or key=value strings of libpq;
inside a URL, reserved characters of a password are spelt `%XX`. Secrets are never printed, neither by
`kronos-db config show` nor in errors or logs. Relative paths start from the working directory.

{table(("Setting", "Type", "Default", "Meaning"), rows)}"""


def errors_page() -> str:
    """Return the page of every reason that the server answers with."""
    rows = [
        (f"`{answer.reason}`", f"`{answer.code.name}`", answer.sentence, one_line(kind.__doc__))
        for kind, answer in sorted(server.ERRORS.rows.items(), key=lambda row: row[1].reason)
    ]
    rows.append((f"`{UNKNOWN.reason}`", f"`{UNKNOWN.code.name}`", UNKNOWN.sentence, "Any other exception."))
    return f"""# Errors

Every error of this server is a `google.rpc.Status` (AIP-193) in the trailing metadata `grpc-status-details-bin`, with

- `google.rpc.ErrorInfo`: `reason` from the table, `domain` `{ERROR_DOMAIN}`, and in `metadata` what is dynamic in the
  sentence;
- `google.rpc.BadRequest` when fields of the request are at fault: the path of each as in `users[3].email`, and why;
- `google.rpc.RetryInfo` where waiting helps;
- `google.rpc.RequestInfo`: the request id under which the log has the call. It is also in the trailing metadata
  `x-request-id`.

Program against code and reason; the sentences may change. Names in braces are keys of the `metadata`.

{table(("Reason", "Status", "Sentence", "When"), rows)}
gRPC itself answers in some cases before the chain is reached, without these details: `UNIMPLEMENTED` for a method that
is not there, `RESOURCE_EXHAUSTED` when more than `KRONOS_DB_MAX_CONCURRENT_CALLS` calls are in the server or a message
is larger than four times `KRONOS_DB_MAX_MESSAGE_BYTES`, `UNAVAILABLE` while the server drains, `CANCELLED` and
`DEADLINE_EXCEEDED` when the caller stops waiting.
"""


def metrics_page() -> str:
    """Return the page of every metric."""
    registry = new_registry()
    registry.register(LoneProcess())
    rpc = RpcMetrics(registry)
    rpc.for_method("unary", "example", "Example").handled("OK", 0.0)
    rpc.refused("example", "limit")
    saturation.watch_pools(registry, {"example": SimpleNamespace(stats=dict)})
    saturation.watch_standbys(registry, {"example": {"served": 0}})
    saturation.watch_calls(registry, lambda: {"example": 0}, lambda: {Lane("example", "call"): 0})
    saturation.watch_streams(registry, lambda: {"example": 0}, int)
    saturation.watch_parts(registry, lambda: {"example": "ok"})
    work = SimpleNamespace(
        domain="example", name="example", interval=0.0, success_time=0.0, holds=True, on_end=lambda _listener: None
    )
    watch_background(registry, [work], OUTCOMES)
    watch_lag(registry, {("example", "example"): lambda: 0.0})
    redis = RedisServer("redis://localhost")
    watch_redis(registry, redis)
    cache = Cache(Board(), Memory(0), Remote(redis, b"example"))
    cache.kind(Rules("example"), lambda _keys: {})
    watch_cache(registry, {"example": cache})
    watch_records(registry, SimpleNamespace(stored=0, refused=0))
    database: Any = SimpleNamespace(domain="routes")
    watch_routes(registry, Limiter(None, Counters(database)), Table(RoutesStore(database), lambda: None, Board()))
    counts = Counts(SimpleNamespace())
    counts.of("example")
    counts.watch(registry)
    watch_backups(registry, SimpleNamespace(found=None, work=SimpleNamespace(holds=False)))("create", True)
    QueueFigures(SimpleNamespace(database=database), SimpleNamespace()).watch(registry)
    PostgresFigures(database, (), {}, lambda _domain: None, lambda _period: ()).watch(registry)
    Recording(lambda _events: None).watch(registry)
    # Those of the interpreter and the process stand after the server's own.
    families = sorted(_families(registry), key=lambda row: (row[0].startswith(("`process_", "`python_")), row[0]))
    return f"""# Metrics

`GET /metrics` of the ops port (`KRONOS_DB_OPS_LISTEN`) gives the metrics of the serving process in the Prometheus text
format, or in OpenMetrics when asked for. [operations.md](operations.md#metrics-to-watch) says which to alert on.

Labels are bounded: services and methods are those of the contract, `grpc_code` is a canonical code, `domain`, `kind`
and `part` names of the server's own. A series of every method exists from the start.

{table(("Metric", "Type", "Labels", "Meaning"), families)}"""


def _families(registry: CollectorRegistry) -> Iterator[tuple[str, str, str, str]]:
    for family in registry.collect():
        # Those of a family that has no series here, and those of one that does not know them.
        named = [*getattr(family, "_labelnames", ()), *(name for sample in family.samples for name in sample.labels)]
        labels = dict.fromkeys(named)
        shown = ", ".join(f"`{name}`" for name in labels if name not in _LABELS_OF_FORMATS)
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield f"`{name}`", family.type, shown, one_line(family.documentation)


def cli_page() -> str:
    """Return the page of every command."""
    root = typer.main.get_command(cli.app)
    parts = [_command("kronos-db", root)]
    parts += [_command(f"kronos-db {name}", command) for name, command in _commands(root)]
    return (
        f"""# Command line

Errors are one sentence on standard error. The exit code is 0 when all went well, 2 for wrong settings or usage, 1 for
everything else. Every command reads the [settings](settings.md) from the environment and the settings file.

{"".join(parts)}""".rstrip()
        + "\n"
    )


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _command(name: str, command: Any) -> str:
    arguments = [_placeholder(parameter) for parameter in command.params if parameter.param_type_name == "argument"]
    commands = ["COMMAND"] if hasattr(command, "commands") else []
    usage = " ".join([name, "[OPTIONS]", *arguments, *commands])
    rows = [(f"`{' '.join(_spelling(item))}`", item.help or "", _default(item)) for item in command.params]
    options = f"{table(('Parameter', 'Meaning', 'Default'), rows)}\n" if rows else ""
    return f"## {name}\n\n    {usage}\n\n{one_line(command.help)}\n\n{options}"


def _placeholder(parameter: Any) -> str:
    name: str = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _spelling(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [parameter.metavar or parameter.name.upper()]
    kind = "TEXT" if parameter.type_descriptor.annotation is str else "NUMBER"
    value = [] if parameter.is_flag else [parameter.metavar or kind]
    return [", ".join(parameter.opts), *value]


def _default(parameter: Any) -> str:
    if parameter.envvar:
        return f"`{parameter.envvar}`"
    return "" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"


def contract_page() -> str:
    """Return the page of every service, message and enum of the contract, with rules and marks."""
    files = descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes()).file
    ours = [ContractFile(file) for file in files if file.package.startswith("kronos.")]
    # Domains first, of each the file with its service; the options are for whoever reads the marks.
    ours.sort(key=lambda file: (file.package.startswith("kronos.options."), file.package, not file.has_service))
    packages = dict.fromkeys(file.package for file in ours)
    texts = [
        f"## {package}\n\n" + "".join(file.text() for file in ours if file.package == package) for package in packages
    ]
    return (
        f"""# The contract

What `protos/` says, in tables. `generated/kronos.binpb` is the same for programs: one descriptor set with everything
the contract imports, for `grpcurl -protoset`, `buf curl --schema` or `@grpc/proto-loader`.

*Rules* are enforced by the server before a handler runs; a breach is `INVALID_ARGUMENT` with the path of the field.
*Protection* says what becomes of a sensitive value: `ENCRYPTED` is sealed before it reaches the handler or any store
and opened in answers; `HASHED` is replaced by its keyed hash; `REDACTED` never shows in a log line or error text.
Values with one index can be compared for equality without being opened.

{"".join(texts)}""".rstrip()
        + "\n"
    )


class ContractFile:
    """One file of the contract, and the comments in it."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self.package = file.package
        self.has_service = bool(file.service)
        self._file = file
        self._comments = {
            tuple(place.path): one_line(place.leading_comments) for place in file.source_code_info.location
        }

    def text(self) -> str:
        """Return the file as Markdown."""
        services = [self._service(index) for index in range(len(self._file.service))]
        messages = [self._message(kind, (_MESSAGE, index)) for index, kind in enumerate(self._file.message_type)]
        enums = [self._enum(kind, (_ENUM, index)) for index, kind in enumerate(self._file.enum_type)]
        marks = [self._extensions()] if self._file.extension else []
        return f"{self._comment(_SYNTAX)}\n\n" + "".join([*services, *marks, *messages, *enums])

    def _comment(self, *path: int) -> str:
        return self._comments.get(path, "")

    def _service(self, index: int) -> str:
        service = self._file.service[index]
        rows = [
            (
                f"`{method.name}`",
                f"{_streams(method.client_streaming)}{self._link(method.input_type)}",
                f"{_streams(method.server_streaming)}{self._link(method.output_type)}",
                self._comment(_SERVICE, index, _METHOD, number) + _workload(method.options),
            )
            for number, method in enumerate(service.method)
        ]
        head = ("Method", "Request", "Response", "Meaning")
        return f"### {service.name}\n\n{self._comment(_SERVICE, index)}\n\n{table(head, rows)}\n"

    def _message(self, message: DescriptorProto, path: tuple[int, ...]) -> str:
        rows = [
            (
                f"`{field.name}`",
                str(field.number),
                self._type(field, message),
                self._comment(*path, _FIELD, number),
                "; ".join(_rules(field, message)),
                _protection(field.options),
            )
            for number, field in enumerate(message.field)
        ]
        head = ("Field", "No.", "Type", "Meaning", "Rules", "Protection")
        fields = f"{table(head, rows)}\n" if rows else "No fields.\n\n"
        inner = [
            self._message(kind, (*path, _NESTED, i)) for i, kind in enumerate(message.nested_type) if not _is_map(kind)
        ]
        return f"### {message.name}\n\n{self._comment(*path)}\n\n{fields}" + "".join(inner)

    def _enum(self, enum: EnumDescriptorProto, path: tuple[int, ...]) -> str:
        rows = [
            (f"`{value.name}`", str(value.number), self._comment(*path, _VALUE, number))
            for number, value in enumerate(enum.value)
        ]
        return f"### {enum.name}\n\n{self._comment(*path)}\n\n{table(('Value', 'No.', 'Meaning'), rows)}\n"

    def _extensions(self) -> str:
        rows = [
            (
                f"`({self.package}.{field.name})`",
                field.extendee.removeprefix(".google.protobuf.").removesuffix("Options").lower(),
                self._type(field, DescriptorProto()),
                self._comment(7, index),
            )
            for index, field in enumerate(self._file.extension)
        ]
        return f"### Marks\n\n{table(('Option', 'Of a', 'Type', 'Meaning'), rows)}\n"

    def _type(self, field: FieldDescriptorProto, message: DescriptorProto) -> str:
        entry = next(
            (kind for kind in message.nested_type if _is_map(kind) and field.type_name.endswith(kind.name)), None
        )
        if entry is not None:
            key, value = (self._type(inner, entry) for inner in entry.field)
            return f"map of {key} to {value}"
        name = self._link(field.type_name) if field.type_name else f"`{_scalar(field)}`"
        return f"repeated {name}" if field.label == FieldDescriptorProto.LABEL_REPEATED else name

    def _link(self, type_name: str) -> str:
        full = type_name.removeprefix(".")
        short = full.rpartition(".")[2]
        return f"[`{short}`](#{short.lower()})" if full.startswith(f"{self.package}.") else f"`{full}`"


def _is_map(message: DescriptorProto) -> bool:
    return message.options.map_entry


def _scalar(field: FieldDescriptorProto) -> str:
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _streams(yes: bool) -> str:
    return "stream of " if yes else ""


def _workload(options: descriptor_pb2.MethodOptions) -> str:
    compute = options.Extensions[options_pb2.workload] == options_pb2.WORKLOAD_COMPUTE
    return " *Runs in the compute pool.*" if compute else ""


def _protection(options: descriptor_pb2.FieldOptions) -> str:
    if options.Extensions[options_pb2.record_id]:
        return "record id"
    mark = options.Extensions[options_pb2.sensitive]
    if not mark.protection:
        return ""
    name = options_pb2.Protection.Name(mark.protection).removeprefix("PROTECTION_")
    form = options_pb2.Normalization.Name(mark.normalization).removeprefix("NORMALIZATION_")
    shown = f", {form}" if mark.normalization else ""
    return f"`{name}`" + (f", index `{mark.index}`{shown}" if mark.index else "")


def _rules(field: FieldDescriptorProto, message: DescriptorProto) -> Iterator[str]:
    if field.HasField("oneof_index") and not field.proto3_optional:
        group = message.oneof_decl[field.oneof_index]
        needed = group.options.Extensions[validate_pb2.oneof].required
        yield f"{'exactly' if needed else 'at most'} one of `{group.name}`"
    rules = field.options.Extensions[validate_pb2.field]
    yield from _written(rules, "")
    if rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE:
        yield "or empty"


# Names of protovalidate's rules in a reader's words; what is not here stands as it is written in the contract.
_WORDS = {
    "required": "required",
    "uuid": "UUID",
    "max_len": "at most {} characters",
    "min_len": "at least {} characters",
    "max_bytes": "at most {} bytes",
    "min_bytes": "at least {} bytes",
    "max_items": "{} items at most",
    "min_items": "{} or more items",
    "pattern": "matches `{}`",
    "gte": "at least {}",
    "lte": "at most {}",
    "gt": "more than {}",
    "lt": "less than {}",
    "defined_only": "a value of the enum",
}


def _written(rules: Any, prefix: str) -> Iterator[str]:
    for rule, value in rules.ListFields():
        if rule.name == "ignore":
            continue
        if rule.name == "cel":
            yield from (f"{prefix}{expression.message}" for expression in value)
        elif rule.message_type is not None and not rule.message_type.full_name.startswith("google."):
            yield from _written(value, "each " if rule.name in {"items", "values"} else prefix)
        else:
            yield prefix + _WORDS.get(rule.name, f"{rule.name} {{}}").format(value)


def decisions_page() -> str:
    """Return the index of the decision records."""
    records = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    titles = [record.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for record in records]
    links = "".join(f"- [{title}]({record.name})\n" for record, title in zip(records, titles, strict=True))
    return f"""# Decisions

Why things are as they are, where building showed a choice. A record has a number, a title and three parts: *Context*
(what forces a choice, with measurements), *Choice*, and *Cost* (what it makes worse). A record is not rewritten when
the choice changes: a new one says which it replaces.

{links}"""


PAGES: dict[str, Callable[[], str]] = {
    "docs/settings.md": settings_page,
    "docs/errors.md": errors_page,
    "docs/metrics.md": metrics_page,
    "docs/cli.md": cli_page,
    "docs/contract.md": contract_page,
    "docs/decisions/README.md": decisions_page,
}


def one_line(text: str | None) -> str:
    """Return `text` without its line breaks."""
    return re.sub(r"\s+", " ", text or "").strip()


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(root: Path) -> None:
    """Write every page below `root`."""
    for name, page in PAGES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{HEAD}\n{page()}", encoding="utf-8")


def drifted(root: Path) -> list[str]:
    """Return the pages below `root` that are missing or not what the code gives."""
    return [
        name
        for name, page in PAGES.items()
        if not (root / name).is_file() or (root / name).read_text(encoding="utf-8") != f"{HEAD}\n{page()}"
    ]


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["write", "check"])
    if parser.parse_args().action == "write":
        write(ROOT)
    elif names := drifted(ROOT):
        raise SystemExit(f"{', '.join(names)} is not what the code gives; run `python scripts/reference.py write`.")


if __name__ == "__main__":
    main()
