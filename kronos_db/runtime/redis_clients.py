"""The clients behind `RedisServer`: of one server, of the master that sentinels name, and of a cluster.

A cluster has its keys in 16,384 slots on several nodes. Names that one script is to touch must be of one slot: they
share a *room*, which is a part of each name in braces. There are few rooms, so that what comes together still shares
scripts, and they lie evenly over the slots, so that nodes get equal shares.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha1
from itertools import count
from typing import Any, NamedTuple, Protocol
from zlib import crc32

import redis
import redis.cluster
import redis.connection
import redis.sentinel
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.exceptions import AskError, NoScriptError, RedisClusterException, TryAgainError
from redis.retry import Retry

from kronos_db.runtime.redis_address import RedisAddress, read_address

# Seconds within which Redis has to answer.
TIMEOUT = 0.1
_CONNECTIONS = 64
ROOMS = 64
_SLOTS = 16_384
# What redis-py has no types for.
_parse_url: Any = redis.connection.parse_url
_Sentinel: Any = redis.sentinel.Sentinel
_ClusterNode: Any = redis.cluster.ClusterNode
# What the whole Redis is called where no node is meant, and what has the slots that no node has.
WHOLE = ""
NOBODY = "nobody"
# Everything that says that Redis did not answer, or not as it should.
FAILURES = (redis.RedisError, RedisClusterException)
# A node refused a command before it did anything: that of another node, or with keys that are just being moved.
_NOT_BEGUN = (AskError, TryAgainError, NoScriptError)


class Script(NamedTuple):
    """A Lua script, and the name by which Redis knows it."""

    text: str
    sha: str

    @classmethod
    def of(cls, text: str) -> Script:
        """Return the script of a text."""
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


class Invocation(NamedTuple):
    """Keys and arguments that a script is run with once. In a cluster all keys are of one room."""

    keys: Sequence[str]
    args: Sequence[Any]


class Client(Protocol):
    """What `RedisServer` needs of a client. Whatever asks Redis may raise one of FAILURES."""

    def node_of(self, name: str) -> str:
        """Return which node has `name`."""

    def room_of(self, name: str) -> str:
        """Return what a name begins with that shares scripts with others, in the room of `name`."""

    def commands(self) -> Any:
        """Return redis-py's client."""

    def run(self, node: str, script: Script, invocations: Sequence[Invocation]) -> list[Any]:
        """Run a script with each of several keys and arguments, all of one node; return the answers."""

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the values of `names`, which are all of one node."""

    def info(self) -> Sequence[Mapping[str, Any]]:
        """Return what each server that has data tells of itself."""

    def close(self) -> None:
        """Let go of the connections."""


class OneServer:
    """One Redis, or the one that sentinels say is the master: that is asked for with each new connection."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def node_of(self, _name: str) -> str:
        """Return the one there is."""
        return WHOLE

    def room_of(self, _name: str) -> str:
        """Return nothing: a script may touch any names."""
        return ""

    def commands(self) -> Any:
        """Return redis-py's client."""
        return self._client

    def run(self, _node: str, script: Script, invocations: Sequence[Invocation]) -> list[Any]:
        """Run a script."""
        return [_evaluated(self._client, script, each) for each in invocations]

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the values of `names`."""
        found: list[bytes | None] = self._client.mget(names)
        return found

    def info(self) -> Sequence[Mapping[str, Any]]:
        """Return what the server tells of itself."""
        return [self._client.info()]

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()


class Cluster:
    """A Redis Cluster. Its nodes are asked who has which slots when it is first needed, and after each failure."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._made: RedisCluster | None = None

    def node_of(self, name: str) -> str:
        """Return the node that has `name`; the whole cluster before it is known."""
        if self._made is None:
            return WHOLE
        try:
            return str(self._made.nodes_manager.get_node_from_slot(key_slot(name.encode())).name)
        except FAILURES:
            return NOBODY

    def room_of(self, name: str) -> str:
        """Return the room of a name, by its hash."""
        return _ROOMS[crc32(name.encode()) % ROOMS]

    def commands(self) -> Any:
        """Return redis-py's client, which finds the node of each command and follows slots that are moved."""
        made = self._made
        if made is not None:
            return made
        with self._lock:
            if self._made is None:
                self._made = self._connected()
            return self._made

    def run(self, node: str, script: Script, invocations: Sequence[Invocation]) -> list[Any]:
        """Run a script with each, in one round trip; none more than once.

        What the node refused because a slot is elsewhere by now is sent again, to where it says.
        """
        client = self.commands()
        if len(invocations) == 1 or node == WHOLE:
            return [self._run_alone(client, script, each) for each in invocations]
        answers = self._run_together(client, node, script, invocations)
        for number, answer in enumerate(answers):
            if isinstance(answer, _NOT_BEGUN):
                answers[number] = self._run_alone(client, script, invocations[number])
            elif isinstance(answer, Exception):
                raise answer
        return answers

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the values of `names`, whatever slots they are in."""
        pipeline = self.commands().pipeline(transaction=False)
        for name in names:
            pipeline.get(name)
        with _known_nodes(self._made):
            found: list[bytes | None] = pipeline.execute()
        return found

    def info(self) -> Sequence[Mapping[str, Any]]:
        """Return what each primary tells of itself."""
        told: Mapping[str, Mapping[str, Any]] = self.commands().info(target_nodes=RedisCluster.PRIMARIES)
        return list(told.values()) if "redis_version" not in told else [told]

    def close(self) -> None:
        """Let go of the connections."""
        if self._made is not None:
            self._made.close()

    def _run_together(
        self, client: RedisCluster, node: str, script: Script, invocations: Sequence[Invocation]
    ) -> list[Any]:
        at = client.nodes_manager.get_node(node_name=node)
        if at is None:
            return [AskError("0 nowhere:0")] * len(invocations)
        pipeline = client.get_redis_connection(at).pipeline(transaction=False)
        for each in invocations:
            pipeline.evalsha(script.sha, len(each.keys), *each.keys, *each.args)
        try:
            return list(pipeline.execute(raise_on_error=False))
        except redis.RedisError:
            # It may be gone for good: who has its slots now?
            client.nodes_manager.initialize(last_failed_node_name=node)
            raise

    @staticmethod
    def _run_alone(client: RedisCluster, script: Script, invocation: Invocation) -> Any:
        with _known_nodes(client):
            return _evaluated(client, script, invocation)

    def _connected(self) -> RedisCluster:
        options = _parse_url(self._address.url)
        for name in ("host", "port", "db"):
            options.pop(name, None)
        if "connection_class" in options:
            options |= {"ssl": True}
            del options["connection_class"]
        return RedisCluster(
            startup_nodes=[_ClusterNode(host, port) for host, port in self._address.nodes],
            # Some slots are better than none; a command is not repeated, since it may have been done.
            require_full_coverage=False,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            max_connections=_CONNECTIONS,
            **options,
        )


def open_client(url: str) -> Client:
    """Return the client for `url`; nothing is connected yet. Raises ValueError when it is no URL of a Redis."""
    address = read_address(url)
    if address.kind == "cluster":
        return Cluster(address)
    limits = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}
    if address.kind == "single":
        return OneServer(redis.Redis.from_url(url, max_connections=_CONNECTIONS, **limits))
    options = _parse_url(address.url)
    for name in ("host", "port"):
        options.pop(name, None)
    secure = {"ssl": True} if options.pop("connection_class", None) else {}
    once = {"retry": Retry(NoBackoff(), 0)}
    login = {**dict(address.sentinel_options), **_trust(options), **secure, **limits, **once}
    sentinel = _Sentinel(address.nodes, sentinel_kwargs=login, **limits)
    return OneServer(
        sentinel.master_for(address.service, max_connections=_CONNECTIONS, **options, **secure, **limits, **once)
    )


def _trust(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name.startswith("ssl_")}


def _evaluated(client: Any, script: Script, invocation: Invocation) -> Any:
    count_, rest = len(invocation.keys), (*invocation.keys, *invocation.args)
    try:
        return client.evalsha(script.sha, count_, *rest)
    except NoScriptError:
        return client.eval(script.text, count_, *rest)


@contextmanager
def _known_nodes(client: RedisCluster | None) -> Iterator[None]:
    """Have redis-py learn of a node that it is sent to and has not heard of: it stumbles over it, sending nothing."""
    try:
        yield
    except AttributeError as error:
        if client is not None:
            client.nodes_manager.initialize()
        raise RedisClusterException("sent to a node that is not known yet") from error


def _rooms() -> list[str]:
    """Return the rooms: names in braces, each of which falls into its own of ROOMS equal parts of the slots."""
    return [
        next(room for room in (f"{{{number}}}" for number in count(part * 1000)) if _part(room) == part)
        for part in range(ROOMS)
    ]


def _part(room: str) -> int:
    return key_slot(room.encode()) * ROOMS // _SLOTS


_ROOMS = _rooms()
