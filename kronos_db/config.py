"""The server's settings: one typed object, read from the environment and an optional TOML file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from kronos_db.runtime.database.dsn import check_dsn, masked

PREFIX = "KRONOS_DB_"
CONFIG_FILE = PREFIX + "CONFIG_FILE"
DOMAINS = ("users", "tokens", "logs", "routes", "messages", "cache", "admin")


class SettingsError(Exception):
    """A setting has a wrong value; the text is one sentence that names it."""


def _check_address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004
        raise ValueError("must be HOST:PORT, for example 127.0.0.1:50051")
    return value


def _check_secret_dsn(value: SecretStr) -> SecretStr:
    check_dsn(value.get_secret_value())
    return value


Address = Annotated[str, AfterValidator(_check_address)]
Dsn = Annotated[SecretStr, AfterValidator(_check_secret_dsn)]


def _domain_dsn(domain: str) -> Any:
    return Field(None, description=f"PostgreSQL of the {domain} domain, when it is not that of POSTGRES_DSN.")


def _domain_direct_dsn(domain: str) -> Any:
    return Field(None, description=f"Direct connection for {domain}; default: {domain.upper()}_DSN, else POSTGRES_DIRECT_DSN.")


class Settings(BaseSettings):
    """Every setting of the server, with its meaning and limits."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, validate_default=True)

    grpc_listen: Address = Field("127.0.0.1:50051", description="HOST:PORT of the gRPC server; port 0 takes a free one.")
    ops_listen: Address = Field("127.0.0.1:9464", description="HOST:PORT of metrics, health and the platform's HTTP endpoints.")
    data_dir: Path = Field(Path(".kronos"), description="Where `dev` keeps PostgreSQL, Redis, keys and the access file.")

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
        description="File with at least 32 characters from which the passwords of the domains' login roles are derived. Not "
        "needed when every domain has a DSN of its own.",
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
    pool_max_waiting: int = Field(64, ge=1, le=100_000, description="Calls that may wait for a connection; more are refused.")
    pool_timeout: float = Field(2.0, gt=0, le=60, description="Seconds a call waits for a connection before it is refused.")
    prepared_statements: bool = Field(
        True, description="False when POSTGRES_DSN leads through a pgBouncer without max_prepared_statements (before 1.22)."
    )
    statement_timeout: float = Field(30.0, gt=0, le=3600, description="Seconds a statement of a domain role may run.")

    redis_url: SecretStr | None = Field(None, description="redis:// or unix:// URL. Without it the server is slower, never wrong.")

    master_key_file: Path | None = Field(None, description="File with the master keys, mode 0600. Required by `serve`.")
    access_file: Path | None = Field(None, description="TOML file: which caller may call what. Required by `serve`.")
    public_services: Literal["none", "health", "health+reflection"] = Field(
        "none", description="What answers without an identity: nothing, gRPC health, or health and reflection."
    )
    tls_certificate_file: Path | None = Field(None, description="PEM chain of the server. Without it gRPC speaks plaintext.")
    tls_key_file: Path | None = Field(None, description="PEM private key of the server.")
    tls_client_ca_file: Path | None = Field(None, description="PEM authorities of client certificates: turns mTLS on.")

    worker_threads: int = Field(4, ge=1, le=256, description="Threads that run calls; few beat many.")
    compute_threads: int = Field(2, ge=1, le=64, description="Threads for password hashing, apart from the workers.")
    max_concurrent_calls: int = Field(512, ge=1, le=100_000, description="Calls in the server at once; more are refused.")
    domain_concurrent_calls: int = Field(
        256, ge=1, le=100_000, description="Calls of one domain in the server at once; more are refused."
    )
    max_message_bytes: int = Field(4 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024, description="Largest request message.")
    minimum_deadline: float = Field(0.002, ge=0, le=10, description="Seconds a call must have left to be begun.")
    drain_timeout: float = Field(10.0, ge=0, le=600, description="Seconds that running calls get after SIGTERM.")
    request_id_window: float = Field(
        86_400.0, ge=60, le=30 * 86_400, description="Seconds for which a repeated request_id gets the first answer."
    )

    password_memory_kib: int = Field(19_456, ge=8, le=4 * 1024 * 1024, description="Argon2id memory per hash, KiB.")
    password_iterations: int = Field(2, ge=1, le=64, description="Argon2id passes.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity that is logged.")
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


def load(**overrides: Any) -> Settings:
    """Read the settings.

    Raises SettingsError with one sentence that names the setting at fault, also for unknown names.
    """
    path = os.environ.get(CONFIG_FILE)
    if path and not Path(path).is_file():
        raise SettingsError(f"{CONFIG_FILE} names a file that is not there: {path}.")
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_FILE}
    for name in os.environ:
        if name.startswith(PREFIX) and name.upper() not in known:
            raise SettingsError(f"{name} is not a setting; `kronos-db config show` lists them all.")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        name = PREFIX + "_".join(str(part) for part in fault["loc"]).upper()
        message = fault["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{name}: {message}.") from None
    except ValueError as error:
        # A TOML file that is not TOML.
        raise SettingsError(f"{CONFIG_FILE}: {error}.") from None


@dataclass(frozen=True, slots=True)
class Explanation:
    """One setting for people: its environment name, value (secrets masked), default and meaning."""

    name: str
    value: str
    default: str
    kind: str
    meaning: str


def explain(settings: Settings | None = None) -> Iterator[Explanation]:
    """Yield every setting in order of declaration; values only when `settings` are given."""
    for name, info in Settings.model_fields.items():
        value = shown(getattr(settings, name)) if settings else ""
        yield Explanation(PREFIX + name.upper(), value, shown(info.default), kind_of(info), info.description or "")


def shown(value: object) -> str:
    """Return a value as text that may be printed: secrets masked."""
    if value is None:
        return "–"  # noqa: RUF001
    if isinstance(value, SecretStr):
        return masked(value.get_secret_value())
    return str(value).lower() if isinstance(value, bool) else str(value)


def kind_of(info: FieldInfo) -> str:
    """Return the type of a setting in a reader's words."""
    text = str(info.annotation)
    for mark, kind in (
        ("Literal", " / ".join(getattr(info.annotation, "__args__", ()))),
        ("SecretStr", "DSN or URL, secret"),
        ("Path", "path"),
        ("bool", "true / false"),
        ("int", "whole number"),
        ("float", "seconds"),
    ):
        if mark in text:
            return kind
    return "text"
