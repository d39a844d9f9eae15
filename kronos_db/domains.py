"""Builds the service of every domain of what the runtime has: the one file that knows them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from kronos.admin.v1 import admin_pb2_grpc
from kronos.cache.v1 import cache_pb2_grpc
from kronos.logs.v1 import logs_pb2_grpc
from kronos.messages.v1 import messages_pb2_grpc
from kronos.routes.v1 import routes_pb2_grpc
from kronos.tokens.v1 import tokens_pb2_grpc
from kronos.users.v1 import users_pb2_grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc
from prometheus_client import CollectorRegistry

from kronos_db.admin.audit import HashChain
from kronos_db.admin.audit_store import AuditStore
from kronos_db.admin.backup_domain import Backups
from kronos_db.admin.endpoints import ENDPOINTS as ADMIN_ENDPOINTS
from kronos_db.admin.figures import PostgresFigures
from kronos_db.admin.model import ERRORS as ADMIN_ERRORS
from kronos_db.admin.operations import Operations
from kronos_db.admin.query_model import QueryLimits
from kronos_db.admin.query_store import Primaries, QueryStore
from kronos_db.admin.querying import Querying
from kronos_db.admin.recording import Recording
from kronos_db.admin.service import AdminService
from kronos_db.admin.status import NoBackups, Ways, server_looks
from kronos_db.admin.status import Parts as StatusParts
from kronos_db.admin.status_store import DomainLooks
from kronos_db.backup_setup import open_engine
from kronos_db.cache import upkeep as cache_upkeep
from kronos_db.cache.counting import Counts
from kronos_db.cache.leasing import Leases
from kronos_db.cache.lookup import Lookup
from kronos_db.cache.model import ERRORS as CACHE_ERRORS
from kronos_db.cache.namespaces import NamespacesStore
from kronos_db.cache.room import Room
from kronos_db.cache.service import CacheService
from kronos_db.cache.store import EntriesStore
from kronos_db.config import Settings
from kronos_db.logs.intake import Intake
from kronos_db.logs.keys import Keys
from kronos_db.logs.messages import Origins
from kronos_db.logs.metrics import watch_records
from kronos_db.logs.model import ERRORS as LOGS_ERRORS
from kronos_db.logs.otlp import SERVICE as OTLP_LOGS
from kronos_db.logs.otlp import ExportService
from kronos_db.logs.service import LogsService, RetentionCopy
from kronos_db.logs.store import LogsStore
from kronos_db.logs.tail import PACE as TAIL_PACE
from kronos_db.logs.tail import RecordLog
from kronos_db.logs.upkeep import upkeep as logs_upkeep
from kronos_db.messages.backlog import Backlogs
from kronos_db.messages.consuming import Consumers
from kronos_db.messages.enqueuing import Enqueuing
from kronos_db.messages.figures import QueueFigures
from kronos_db.messages.inspection import Inspection
from kronos_db.messages.keeper import Keeper
from kronos_db.messages.low_water import LowWater
from kronos_db.messages.model import ERRORS as MESSAGES_ERRORS
from kronos_db.messages.queues import QueuesStore
from kronos_db.messages.service import MessagesService
from kronos_db.messages.store import MessagesStore
from kronos_db.messages.waiting import Waiting
from kronos_db.routes.counters import Counters
from kronos_db.routes.limiter import Limiter
from kronos_db.routes.metrics import watch_routes
from kronos_db.routes.model import ERRORS as ROUTES_ERRORS
from kronos_db.routes.service import Parts as RoutesParts
from kronos_db.routes.service import RoutesService
from kronos_db.routes.store import RoutesStore
from kronos_db.routes.table import Table
from kronos_db.routes.upkeep import upkeep as routes_upkeep
from kronos_db.runtime.cache.engine import Cache
from kronos_db.runtime.crypto.keyring import KeyRing
from kronos_db.runtime.crypto.master_key import MasterKeys
from kronos_db.runtime.crypto.sealing import Sealer
from kronos_db.runtime.database.background import OUTCOMES, stop_all
from kronos_db.runtime.database.changes import KEPT, channel
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.renewal import renew as renew_domain
from kronos_db.runtime.database.upkeep import upkeep
from kronos_db.runtime.errors import RUNTIME_ERRORS, ErrorTable
from kronos_db.runtime.feed.feed import Feed, Log, Pace
from kronos_db.runtime.feed.feeds import Feeds
from kronos_db.runtime.interceptors.audit import Recorder
from kronos_db.runtime.interceptors.validation import VALIDATION_ERRORS
from kronos_db.runtime.ops.background import watch_background, watch_lag
from kronos_db.runtime.ops.vitals import Self
from kronos_db.runtime.paging import PageTokens
from kronos_db.runtime.parking import Parking
from kronos_db.runtime.reception import Lane
from kronos_db.runtime.redis import RedisServer
from kronos_db.runtime.workers import Workers
from kronos_db.schemas import known_migrations, open_reading, progress_of, replicas, ways
from kronos_db.tokens.credentials import Credentials
from kronos_db.tokens.identity import Identities
from kronos_db.tokens.model import CAPABILITIES as TOKENS_CAPABILITIES
from kronos_db.tokens.model import ERRORS as TOKENS_ERRORS
from kronos_db.tokens.service import TokensService, new_introspection
from kronos_db.tokens.store import TokensStore
from kronos_db.tokens.upkeep import Purge
from kronos_db.tokens.uses import Uses
from kronos_db.users.access import Access
from kronos_db.users.access_store import AccessStore
from kronos_db.users.expiry import upkeep as users_upkeep
from kronos_db.users.grant_store import GrantStore
from kronos_db.users.model import ERRORS as USERS_ERRORS
from kronos_db.users.passwords import Passwords
from kronos_db.users.role_store import RoleStore
from kronos_db.users.service import Stores, UsersService
from kronos_db.users.store import UsersStore

# The service of each domain, by the name that reflection and health know it by.
SERVICES = {
    "users": "kronos.users.v1.UsersService",
    "tokens": "kronos.tokens.v1.TokensService",
    "logs": "kronos.logs.v1.LogsService",
    "routes": "kronos.routes.v1.RoutesService",
    "messages": "kronos.messages.v1.MessagesService",
    "cache": "kronos.cache.v1.CacheService",
    "admin": "kronos.admin.v1.AdminService",
}
# Services of other contracts that a domain of ours serves.
ADOPTED = (OTLP_LOGS,)
ERRORS = ErrorTable(
    RUNTIME_ERRORS,
    VALIDATION_ERRORS,
    USERS_ERRORS,
    TOKENS_ERRORS,
    LOGS_ERRORS,
    ROUTES_ERRORS,
    MESSAGES_ERRORS,
    CACHE_ERRORS,
    ADMIN_ERRORS,
)
# Seconds for which a domain keeps its changes for those who watch, where it is not as long as the others.
_CHANGES_KEPT = {"cache": cache_upkeep.CHANGES_KEPT}
# What the ops port answers with methods of the contract.
ENDPOINTS = (*ADMIN_ENDPOINTS,)
# What the access policy may grant beside methods.
CAPABILITIES = (*TOKENS_CAPABILITIES,)


class Parts(NamedTuple):
    """What the runtime has for one domain: its service is built on them."""

    database: Database
    ring: KeyRing
    cache: Cache
    feed: Feed
    page_tokens: PageTokens


class Process(NamedTuple):
    """What all domains of a process share."""

    settings: Settings
    masters: MasterKeys
    registry: CollectorRegistry
    feeds: Feeds
    workers: Workers
    parking: Parking
    redis: RedisServer | None
    # Lets the calling thread, and those that it starts, run on every core.
    release: Callable[[], None]
    vitals: Self


class Domains:
    """The services, and what goes on beside their calls.

    `rings` has the keys of each domain, `recorders` who keeps the record of its calls, where one is kept.
    """

    def __init__(self, parts: Mapping[str, Parts], process: Process) -> None:
        self.rings = {domain: part.ring for domain, part in parts.items()}
        self.recorders: dict[str, Recorder] = {}
        self._process = process
        self._databases = {domain: part.database for domain, part in parts.items()}
        self._ways = {domain: Ways(*ways(process.settings, domain)) for domain in parts}
        self._background = [
            work for domain, part in parts.items() for work in upkeep(part.database, _CHANGES_KEPT.get(domain, KEPT))
        ]
        # Run when calls are about to be answered, and when none runs any more.
        self._starting: list[Callable[[], None]] = []
        self._stopping: list[Callable[[], None]] = []
        # Run when streams without an end of their own are to end, while calls may still be running.
        self._closing: list[Callable[[], None]] = []
        # Who needs something of another domain gets it here.
        access = Access(AccessStore(parts["users"].database), parts["users"].cache)
        self._users = self._new_users(parts["users"], access)
        self._tokens = self._new_tokens(parts["tokens"], access)
        self._logs, self._exports = self._new_logs(parts["logs"])
        self._routes = self._new_routes(parts["routes"], access, Identities(self._tokens.introspection))
        self._messages = self._new_messages(parts["messages"])
        self._cache = self._new_cache(parts["cache"])
        self._admin = self._new_admin(parts["admin"], {domain: part.database for domain, part in parts.items()})
        watch_background(process.registry, self._background, OUTCOMES)

    def register(self, registrar: Any) -> None:
        """Register the handlers of all services with what stands in for the server."""
        users_pb2_grpc.add_UsersServiceServicer_to_server(self._users, registrar)
        tokens_pb2_grpc.add_TokensServiceServicer_to_server(self._tokens, registrar)
        logs_pb2_grpc.add_LogsServiceServicer_to_server(self._logs, registrar)
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(  # type: ignore[no-untyped-call]  # its package has no types
            self._exports, registrar
        )
        routes_pb2_grpc.add_RoutesServiceServicer_to_server(self._routes, registrar)
        messages_pb2_grpc.add_MessagesServiceServicer_to_server(self._messages, registrar)
        cache_pb2_grpc.add_CacheServiceServicer_to_server(self._cache, registrar)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self._admin, registrar)

    def start(self) -> None:
        """Begin what goes on beside calls."""
        for start in self._starting:
            start()
        for work in self._background:
            work.start()

    def close(self) -> None:
        """End the streams that have no end of their own."""
        for close in self._closing:
            close()

    def stop(self) -> None:
        """End it."""
        for stop in self._stopping:
            stop()
        stop_all(self._background)

    def _new_users(self, parts: Parts, access: Access) -> UsersService:
        settings, database = self._process.settings, parts.database
        self._background += users_upkeep(database)
        stores = Stores(UsersStore(database), RoleStore(database), GrantStore(database), AccessStore(database))
        passwords = Passwords(settings.password_memory_kib, settings.password_iterations)
        return UsersService(
            stores, access, passwords, page_tokens=parts.page_tokens, cache=parts.cache, feed=parts.feed
        )

    def _new_tokens(self, parts: Parts, access: Access) -> TokensService:
        ring, store = parts.ring, TokensStore(parts.database)
        credentials = Credentials(self._process.masters, ring.subkey("token mark"), ring.subkey("jwt id"))
        uses = self._uses = Uses(store.note_uses)
        self._starting.append(uses.start)
        self._stopping.append(uses.stop)
        purge = Purge(parts.database, store)
        self._background.append(purge.work)
        watch_lag(self._process.registry, {("tokens", purge.work.name): lambda: purge.lag})
        return TokensService(
            store,
            credentials,
            new_introspection(store, credentials, parts.cache, access, uses),
            access=access,
            sealer=Sealer(ring),
            page_tokens=parts.page_tokens,
            feed=parts.feed,
        )

    def _new_logs(self, parts: Parts) -> tuple[LogsService, ExportService]:
        settings, store = self._process.settings, LogsStore(parts.database)
        keys = Keys(_names(settings.logs_sealed_keys), _names(settings.logs_redacted_keys), settings.logs_subject_key)
        intake = Intake(keys, Sealer(parts.ring), parts.ring.subkey("origin of logs"))
        retention = RetentionCopy(store, parts.cache)
        self._background += logs_upkeep(store)
        watch_records(self._process.registry, intake)
        service = LogsService(store, intake, retention, Origins(store), parts.page_tokens, parts.feed)
        return service, ExportService(store, intake, retention)

    def _new_routes(self, parts: Parts, access: Access, identities: Identities) -> RoutesService:
        database, process, store = parts.database, self._process, RoutesStore(parts.database)
        table = Table(store, database.instant, parts.cache.board)
        database.prepare = table.prepare
        process.feeds.listen("routes", channel("routes"), table.wake)
        self._starting.append(table.start)
        self._stopping.append(table.stop)
        self._background += routes_upkeep(database)
        limiter = Limiter(process.redis, Counters(database))
        watch_routes(process.registry, limiter, table)
        secret = parts.ring.subkey("quota counters")
        return RoutesService(
            RoutesParts(store, table, limiter, parts.page_tokens, parts.feed, access, identities, secret)
        )

    def _new_messages(self, parts: Parts) -> MessagesService:
        database, process = parts.database, self._process
        store = MessagesStore(database, LowWater())
        waiting = Waiting(store, partial(process.feeds.notifier.changed, database, "ready"))
        process.feeds.listen(database.domain, channel(database.domain, "ready"), waiting.notified)
        consumers = Consumers(store, waiting, partial(process.workers.post, Lane(database.domain, "write")))
        self._stopping += [waiting.close, consumers.close]
        queues = QueuesStore(database, store.queries)
        figures = QueueFigures(store, queues)
        figures.watch(process.registry)
        self._background += [*Keeper(store, queues).works(), figures.work]
        return MessagesService(
            queues,
            store,
            Enqueuing(store, Backlogs()),
            Inspection(store),
            waiting,
            consumers,
            process.parking,
            parts.page_tokens,
            parts.cache,
        )

    def _new_cache(self, parts: Parts) -> CacheService:
        stores = NamespacesStore(parts.database), EntriesStore(parts.database)
        counts = Counts(parts.database)
        counts.watch(self._process.registry)
        self._stopping.append(counts.tell)
        self._background.append(cache_upkeep.Sweep(parts.database, stores[0], counts).work)
        return CacheService(
            stores,
            Lookup(*stores, parts.cache, Sealer(parts.ring)),
            Room(parts.database, counts),
            counts,
            Leases(parts.ring.subkey("lease")),
            parts.page_tokens,
            parts.feed,
        )

    def _new_backups(self, parts: Parts, databases: Mapping[str, Database]) -> Backups:
        process = self._process
        # Not its own: it has the audit log, which is never changed, and the runs.
        renew = {name: partial(renew_domain, database) for name, database in databases.items() if name != "admin"}
        backups = Backups(
            parts.database,
            open_engine(process.settings),
            renew=renew,
            restore_folder=process.settings.backup_restore_folder,
            registry=process.registry,
            release=process.release,
        )
        self._background += backups.works
        if backups.seen is not None:
            self._starting.append(backups.seen.start)
            self._stopping.append(backups.seen.stop)
        self._closing.append(backups.following.close)
        self._stopping.append(backups.stop)
        return backups

    def _new_admin(self, parts: Parts, databases: Mapping[str, Database]) -> AdminService:
        chain = HashChain(parts.ring.subkey("audit log"))
        audit = AuditStore(parts.database, chain)
        recording = self.recorders[parts.database.domain] = Recording(audit.add)
        recording.watch(self._process.registry)
        self._starting.append(recording.start)
        self._stopping.append(recording.stop)
        backups = self._new_backups(parts, databases)
        looks = DomainLooks(
            self._databases, {domain: known_migrations(domain) for domain in self._databases}, parts.cache
        )
        status = StatusParts(
            self._ways,
            looks,
            self._process.redis,
            (self._process.vitals.slots, self._process.vitals.ask),
            NoBackups() if backups.seen is None else backups.seen,
        )
        self._starting.append(status.start)
        self._stopping.append(status.stop)
        operations = self._new_operations(parts.database)
        costs = operations.statements[1].costs
        figures = PostgresFigures(parts.database, looks.domains, server_looks(self._ways), looks.sizes, costs)
        figures.watch(self._process.registry)
        self._background.append(figures.work)
        return AdminService(
            parts.page_tokens,
            status=status,
            querying=self._new_querying(),
            statements=operations.statements,
            indexes=operations.indexes,
            audit=(audit, chain),
            backups=backups.parts,
        )

    def _new_operations(self, database: Database) -> Operations:
        settings = self._process.settings
        owners = {domain: settings.domain_direct_dsn(domain) or "" for domain in self._databases}
        scratch = settings.scratch_dsn.get_secret_value() if settings.scratch_dsn is not None else None
        straight = {domain: ways_of.straight for domain, ways_of in self._ways.items()}
        standbys = {domain: replicas(settings, domain) for domain in self._databases}
        operations = Operations(database, straight, replicas=standbys, owners=owners, scratch=scratch)
        self._starting.append(operations.start)
        self._stopping.append(operations.stop)
        self._background += operations.works
        return operations

    def _new_querying(self) -> Querying:
        settings = self._process.settings
        places = open_reading(settings)
        primaries = {name: place.primary for name, place in places.items() if place.primary is not None}
        # Any domain of the common database knows how far that has come.
        common = [database for domain, database in self._databases.items() if settings.domain_dsn(domain) is None]
        store = QueryStore(
            {name: place.pool for name, place in places.items()},
            primaries=Primaries(primaries, progress_of(common[0])) if primaries else None,
        )
        self._stopping.append(store.close)
        limits = QueryLimits(
            settings.query_timeout, settings.query_max_cost, settings.query_max_rows, settings.query_max_bytes
        )
        return Querying(store, {name: place.relations for name, place in places.items()}, limits)


def followed(domain: str, database: Database) -> tuple[Log, Pace] | tuple[()]:
    """Return what the feed of a domain reads in place of its log of changes, and at which pace; nothing for most."""
    if domain != "logs":
        return ()
    store = LogsStore(database)
    return RecordLog(store, Origins(store)), TAIL_PACE


def _names(text: str) -> list[str]:
    """Return the names of a setting that lists some."""
    return [name for part in text.split(",") if (name := part.strip())]
