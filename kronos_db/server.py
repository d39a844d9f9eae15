"""Builds the server from its rooms, starts and stops it; `domains.py` knows what stands in them."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from time import monotonic

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import ReflectionServicer
from prometheus_client import CollectorRegistry

from kronos_db import __version__
from kronos_db.config import Settings, SettingsError
from kronos_db.domains import ADOPTED, CAPABILITIES, ENDPOINTS, ERRORS, SERVICES, Domains, Parts, Process, followed
from kronos_db.runtime.affinity import OneCore
from kronos_db.runtime.cache.caches import Caches
from kronos_db.runtime.crypto.keyring import KeyRing
from kronos_db.runtime.crypto.marks import Marks
from kronos_db.runtime.crypto.master_key import FileMasterKeys, MasterKeys
from kronos_db.runtime.database.data_keys import DataKeys
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.errors import KronosError
from kronos_db.runtime.feed.feeds import Feeds
from kronos_db.runtime.interceptors.access_log import AccessLog
from kronos_db.runtime.interceptors.audit import AuditOutcome, AuditRequest
from kronos_db.runtime.interceptors.authentication import Authentication
from kronos_db.runtime.interceptors.chain import Chain, Registrar, register
from kronos_db.runtime.interceptors.conversation import Conversations
from kronos_db.runtime.interceptors.encryption import Encryption
from kronos_db.runtime.interceptors.errors import Errors
from kronos_db.runtime.interceptors.metrics import Metrics
from kronos_db.runtime.interceptors.overload import Limits, Overload
from kronos_db.runtime.interceptors.policy import Policy, load_policy
from kronos_db.runtime.interceptors.transport import ListenError, Transport, listen, read_credentials
from kronos_db.runtime.interceptors.validation import Validation
from kronos_db.runtime.ops import saturation
from kronos_db.runtime.ops.copies import watch_cache, watch_redis
from kronos_db.runtime.ops.fleet import LoneProcess
from kronos_db.runtime.ops.gateway import Gateway
from kronos_db.runtime.ops.health import Health
from kronos_db.runtime.ops.http import OpsAddressError, OpsServer, standard_routes
from kronos_db.runtime.ops.metrics import RpcMetrics, new_registry
from kronos_db.runtime.ops.openapi import description
from kronos_db.runtime.ops.readiness import Readiness
from kronos_db.runtime.ops.vitals import Self, Sources
from kronos_db.runtime.paging import PageTokens
from kronos_db.runtime.parking import Parking
from kronos_db.runtime.redis import RedisServer
from kronos_db.runtime.tracing import Tracer
from kronos_db.runtime.workers import Workers
from kronos_db.schemas import SERVED, listening_dsns, open_database, shortfall

_log = structlog.get_logger(__name__)

# Seconds between two looks at a database that is not ready yet.
_POLL = 0.5
# Streams of one domain that a process holds: those answered by callback cost memory alone while they are idle, and
# those whose handlers wait for their caller, as reflection's do, a thread each.
_MOST_PUSHES = 10_000
_MOST_STREAMS = 32
# Seconds that the last spans get at least: less than a process has beyond its drain.
_LAST_SPANS = 1.0


class StartError(KronosError):
    """The server cannot start; the text is one sentence that says why."""


class Server:
    """One serving process: gRPC, ops port and the domains behind them.

    `start` returns when calls are answered, and waits for PostgreSQL and for pending migrations until then; meanwhile
    the ops port tells what is missing. `slot` is its place among the `slots` that share a port, None when it is alone;
    `shared` is their common folder.
    """

    def __init__(self, settings: Settings, slot: int | None = None, slots: int = 1, shared: Path | None = None) -> None:
        self._settings = settings
        self._slot = slot
        self._masters = _masters(settings)
        self._tracer = _tracer(settings)
        self.registry: CollectorRegistry = new_registry()
        if slot is None:
            self.registry.register(LoneProcess())
        # A check may wait for a connection, and is to say so itself.
        self.readiness = Readiness(timeout=settings.pool_timeout + 1.0)
        self._databases = {domain: open_database(settings, domain) for domain in SERVED}
        self._core = OneCore(slot, slots)
        self._workers = Workers(
            settings.worker_threads,
            settings.compute_threads,
            _MOST_STREAMS,
            settings.write_threads,
            on_compute=self._core.release,
        )
        self._metrics = RpcMetrics(self.registry, shared / f"calls-{slot}.tally" if shared else None)
        self._overload = Overload(_limits(settings), self._workers.expected_wait, self._metrics.refused)
        self._feeds = Feeds(listening_dsns(settings, SERVED), settings.caller_streams)
        self._conversations = Conversations(self._workers.post, self._feeds.pusher, self._feeds.streams)
        self._serving = threading.Event()
        for domain, database in self._databases.items():
            self.readiness.add(domain, partial(self._shortfall, domain, database))
        self.readiness.add("grpc", lambda: None if self._serving.is_set() else "does not answer calls yet")
        saturation.watch_pools(self.registry, {name: database.pool for name, database in self._databases.items()})
        saturation.watch_standbys(
            self.registry, {name: db.standbys.counts for name, db in self._databases.items() if db.standbys is not None}
        )
        saturation.watch_calls(self.registry, self._overload.running, self._workers.queued)
        saturation.watch_streams(self.registry, self._feeds.watched, lambda: self._feeds.notifier.failures)
        # Not those of now: a scrape must not wait for a pool that is exhausted.
        saturation.watch_parts(self.registry, self.readiness.seen)
        self._parking = Parking()
        self._domains: Domains | None = None
        self._health = Health(self.readiness, {service: ["grpc", domain] for domain, service in SERVICES.items()})
        self._gateway = Gateway(ENDPOINTS)
        routes = [*standard_routes(self.registry, self.readiness), *self._gateway.routes(), description(ENDPOINTS)]
        self._self = Self(slot, slots, shared)
        self._ops = OpsServer(settings.ops_listen, [*routes, self._self.route()])
        self._redis = _redis(settings)
        if self._redis is not None:
            watch_redis(self.registry, self._redis)
        self._caches = Caches(self._databases, shared, self._feeds.listen)
        self._authentication: Authentication | None = None
        self._grpc: grpc.Server | None = None
        self.grpc_address = settings.grpc_listen

    @property
    def ops_address(self) -> str:
        """HOST:PORT on which the ops port listens."""
        return self._ops.address

    def start(self, stopped: threading.Event) -> bool:
        """Come up; return False when `stopped` was set meanwhile.

        Raises StartError, SettingsError, PolicyError or KronosError for what waiting does not mend.
        """
        try:
            self._ops.start()
        except OpsAddressError as error:
            raise StartError(f"KRONOS_DB_OPS_LISTEN: {error}") from error
        self._self.announce(self.ops_address)
        if not self._schemas_are_ready(stopped):
            return False
        self._domains = self._build_domains()
        self._grpc = self._build(self._domains)
        self._caches.start()
        self._feeds.start()
        self._grpc.start()
        if self._settings.cpu_affinity == "one-core":
            self._core.start()
        self._serving.set()
        self._health.start()
        self._domains.start()
        _log.info("serving", grpc=self.grpc_address, ops=self.ops_address)
        return True

    def reload_policy(self) -> None:
        """Read the access file again; a file that is not valid is refused and the old policy stays."""
        if self._authentication is not None:
            self._authentication.use(self._policy())

    def stop(self) -> None:
        """Drain: say so first, and go on serving until that was seen; let running calls end; let go of everything."""
        self.readiness.drain()
        if self._grpc is not None and self._serving.is_set():
            time.sleep(self._settings.drain_pause)
        drained = monotonic() + self._settings.drain_timeout
        if self._grpc is not None:
            ended = self._grpc.stop(self._settings.drain_timeout)
            # These streams have no end of their own; their callers go on elsewhere.
            self._feeds.close()
            self._conversations.close()
            self._parking.close()
            if self._domains is not None:
                self._domains.close()
            ended.wait()
        # Without waiting: a handler that outlasted the drain must not hold up the rest.
        self._workers.shutdown(wait=False)
        self._health.stop()
        self._core.stop()
        if self._domains is not None:
            self._domains.stop()
        self._caches.stop()
        if self._redis is not None:
            self._redis.close()
        self._feeds.stop()
        for database in self._databases.values():
            database.close()
        self._ops.stop()
        if self._tracer is not None:
            self._tracer.stop(max(_LAST_SPANS, drained - monotonic()))

    def _schemas_are_ready(self, stopped: threading.Event) -> bool:
        """Wait until every schema is there and up to date; return False when `stopped` was set first."""
        told = ""
        while not stopped.is_set():
            missing = next(
                (why for domain, database in self._databases.items() if (why := shortfall(domain, database))), None
            )
            if missing is None:
                return True
            if missing != told:
                _log.warning("waiting", reason=missing)
                told = missing
            stopped.wait(_POLL)
        return False

    def _shortfall(self, domain: str, database: Database) -> str | None:
        return shortfall(domain, database, serving=self._serving.is_set())

    def _build_domains(self) -> Domains:
        rings = {domain: KeyRing(domain, self._masters, DataKeys(db)) for domain, db in self._databases.items()}
        caches = self._caches.open(rings, self._settings.cache_memory_bytes, self._redis)
        watch_cache(self.registry, caches)
        parts = {
            domain: Parts(
                database,
                rings[domain],
                caches[domain],
                self._feeds.open(database, rings[domain].subkey("resume token"), *followed(domain, database)),
                PageTokens(rings[domain].subkey("page token")),
            )
            for domain, database in self._databases.items()
        }
        process = Process(
            self._settings,
            self._masters,
            self.registry,
            self._feeds,
            self._workers,
            self._parking,
            self._redis,
            self._core.release,
            self._self,
        )
        pools = {domain: database.pool for domain, database in self._databases.items()}
        limits = self._settings.domain_concurrent_calls, self._settings.pool_max_size
        self._self.tells(Sources(self._overload.running, self._workers.queued, pools, caches, *limits))
        return Domains(parts, process)

    def _build(self, domains: Domains) -> grpc.Server:
        settings = self._settings
        registrar = Registrar()
        domains.register(registrar)
        reflection = ReflectionServicer([*SERVICES.values(), *ADOPTED, "grpc.health.v1.Health"])
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection, registrar)
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, registrar)
        self._paths = frozenset(method.path for method in registrar.handlers)
        self._authentication = Authentication(self._policy(), self._masters, _public(settings, self._paths))
        marks = Marks()
        chain = Chain(
            {
                "access_log": AccessLog(tracer=self._tracer),
                "metrics": Metrics(self._metrics),
                "errors": Errors(ERRORS),
                "audit_outcome": AuditOutcome(domains.recorders, ERRORS),
                "authentication": self._authentication,
                "overload": self._overload,
                "validation": Validation(settings.max_message_bytes),
                "audit_request": AuditRequest(domains.recorders, marks),
                "encryption": Encryption(domains.rings, marks, settings.request_id_window),
            },
            self._conversations,
        )
        largest = registrar.largest_request(settings.max_message_bytes)
        transport = Transport(
            settings.max_message_bytes, settings.max_concurrent_calls, self._slot is not None, largest
        )
        server = transport.new_server(self._workers.as_executor())
        composed = {method: chain.compose(method, handler) for method, handler in registrar.handlers.items()}
        register(server, composed)
        self._gateway.serve(composed)
        try:
            self.grpc_address = listen(server, settings.grpc_listen, _credentials(settings))
        except ListenError as error:
            raise StartError(f"KRONOS_DB_GRPC_LISTEN: {error}") from error
        return server

    def _policy(self) -> Policy:
        public = _public(self._settings, self._paths)
        return load_policy(_access_file(self._settings), self._paths, public, CAPABILITIES)


def _access_file(settings: Settings) -> Path:
    if settings.access_file is None:
        raise SettingsError("KRONOS_DB_ACCESS_FILE is required to serve.")
    return settings.access_file


def _masters(settings: Settings) -> MasterKeys:
    if settings.master_key_file is None:
        raise SettingsError("KRONOS_DB_MASTER_KEY_FILE is required to serve.")
    return FileMasterKeys(settings.master_key_file)


def _redis(settings: Settings) -> RedisServer | None:
    return RedisServer(settings.redis_url.get_secret_value()) if settings.redis_url else None


def _tracer(settings: Settings) -> Tracer | None:
    if settings.traces == "off":
        return None
    try:
        from kronos_db.runtime.tracing_otlp import OtlpTracer  # noqa: PLC0415 - OpenTelemetry only where it is wanted
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"KRONOS_DB_TRACES is otlp, and {error.name} is not there: install kronos-db with the extra otel."
        ) from None
    return OtlpTracer(settings.traces_service_name, __version__, settings.traces_endpoint, settings.traces_ratio)


def _public(settings: Settings, paths: frozenset[str]) -> frozenset[str]:
    """Return the methods that answer without an identity."""
    prefixes = {"none": (), "health": ("grpc.health.",), "health+reflection": ("grpc.health.", "grpc.reflection.")}
    return frozenset(path for path in paths if path.startswith(prefixes[settings.public_services]))


def _limits(settings: Settings) -> Limits:
    return Limits(
        settings.domain_concurrent_calls,
        settings.domain_compute_calls,
        _MOST_STREAMS,
        _MOST_PUSHES,
        settings.minimum_deadline,
    )


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    key_file, chain_file, ca_file = settings.tls_key_file, settings.tls_certificate_file, settings.tls_client_ca_file
    if key_file is None and chain_file is None and ca_file is None:
        return None
    if key_file is None or chain_file is None:
        raise SettingsError("KRONOS_DB_TLS_CERTIFICATE_FILE and KRONOS_DB_TLS_KEY_FILE are needed together.")
    try:
        return read_credentials(chain_file, key_file, ca_file)
    except OSError as error:
        raise SettingsError(f"KRONOS_DB_TLS_…_FILE: {error}.") from None
