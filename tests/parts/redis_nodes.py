"""Redis servers of the tests that stand together: a cluster with replicas, and a master with replica and sentinels."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from benchmarks.ports import free_port
from kronos_db.embedded.redis import _binary
from tests.parts.eventually import eventually

LIMIT = 30.0  # seconds
SLOTS = 16_384
SERVICE = "kronos"
# A cluster's nodes talk to each other on the port that is so much higher.
_BUS = 10_000
_SETTINGS: Mapping[str, str] = {
    "bind": "127.0.0.1",
    "save": "",
    "appendonly": "no",
    "repl-diskless-sync": "yes",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
}
_IN_CLUSTER: Mapping[str, str] = {
    "cluster-enabled": "yes",
    "cluster-require-full-coverage": "no",
    "cluster-node-timeout": "2000",
    # Tests say when: else a busy machine would now and then.
    "cluster-replica-no-failover": "yes",
}


class Node:
    """A redis-server in `folder`, on a port of its own; with `conf` as a sentinel that this text configures."""

    def __init__(self, folder: Path, settings: Mapping[str, str], conf: str | None = None) -> None:
        self._folder = folder
        self._conf = conf
        self._settings = {**_SETTINGS, **settings}
        folder.mkdir(parents=True, exist_ok=True)
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._client: Any = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def ask(self, *command: object) -> Any:
        """Send one command to this node."""
        if self._client is None:
            self._client = redis.Redis(port=self.port, socket_timeout=10, protocol=2, decode_responses=True)
        return self._client.execute_command(*command)

    def start(self) -> None:
        """Start it; the first time on a free port, which somebody else may take meanwhile."""
        for _ in range(20):
            self.port = self.port or free_port(_BUS)
            process = self.process = subprocess.Popen(self._command(), stdout=subprocess.DEVNULL)
            eventually(lambda: process.poll() is not None or self._answers(), LIMIT)  # noqa: B023  # at once
            if process.poll() is None:
                return
            self._let_go()
            self.port = 0
        raise AssertionError("no port is free")

    def kill(self) -> None:
        """End it at once."""
        self._let_go()
        if self.process is not None:
            self.process.kill()
            self.process.wait(LIMIT)

    def hang(self) -> None:
        """Have it say nothing more, until `resume`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _let_go(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _command(self) -> list[str]:
        settings = {**self._settings, "port": str(self.port), "dir": str(self._folder)}
        options = [text for name, value in settings.items() for text in (f"--{name}", value)]
        if self._conf is None:
            return [str(_binary()), *options]
        file = self._folder / "sentinel.conf"
        file.write_text(f"bind 127.0.0.1\nport {self.port}\ndir {self._folder}\n{self._conf}")
        return [str(_binary()), str(file), "--sentinel"]

    def _answers(self) -> bool:
        try:
            return bool(self.ask("PING") in {True, "PONG"})
        except redis.RedisError:
            return False


class RedisCluster:
    """Three primaries with a replica each."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._settings = {**_IN_CLUSTER, **(settings or {})}
        self.primaries = [self._new(f"primary{number}") for number in range(3)]
        self.replicas = [self._new(f"replica{number}") for number in range(3)]
        self._more: list[Node] = []

    @property
    def url(self) -> str:
        """The URL of the cluster, which names two of its nodes."""
        return f"redis+cluster://{self.primaries[0].address},{self.primaries[1].address}"

    @property
    def nodes(self) -> Sequence[Node]:
        """All nodes."""
        return [*self.primaries, *self.replicas, *self._more]

    def start(self) -> None:
        """Start all nodes and have them find each other."""
        for node in self.nodes:
            node.start()
        shares = [range(SLOTS * number // 3, SLOTS * (number + 1) // 3) for number in range(3)]
        for node, share in zip(self.primaries, shares, strict=True):
            node.ask("CLUSTER", "ADDSLOTS", *share)
        for number, node in enumerate(self.nodes):
            # No two begin with the same epoch.
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.primaries[0].port)
        eventually(lambda: all(self._knows_all(node) for node in self.nodes), LIMIT)
        for primary, replica in zip(self.primaries, self.replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", self.id_of(primary))
        eventually(lambda: all(self._is_well(node) for node in self.nodes), LIMIT)
        for replica in self.replicas:
            eventually(lambda: "master_link_status:up" in str(_replication(replica)), LIMIT)  # noqa: B023

    def stop(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.kill()

    def add(self) -> Node:
        """Return another primary, which the others know and which has no slot."""
        node = self._new(f"more{len(self._more)}")
        node.start()
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", 100 + len(self._more))
        node.ask("CLUSTER", "MEET", "127.0.0.1", self.primaries[0].port)
        self._more.append(node)
        eventually(lambda: all(self._knows_all(each) and self._is_well(each) for each in self.nodes), LIMIT)
        return node

    def owner_of(self, name: str) -> Node:
        """Return the primary that had the slot of `name` from the start."""
        return self.primaries[min(2, key_slot(name.encode()) * 3 // SLOTS)]

    def id_of(self, node: Node) -> str:
        """Return what the cluster calls a node."""
        return str(node.ask("CLUSTER", "MYID"))

    def begin_to_move(self, slot: int, source: Node, target: Node) -> None:
        """Say that a slot moves: from now on new keys are made at `target`, and the others are where they were."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

    def finish_moving(self, slot: int, source: Node, target: Node) -> None:
        """Move the keys of a slot and say whose it is."""
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source, *self.primaries):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    def _new(self, name: str) -> Node:
        return Node(self._folder / name, self._settings)

    def _knows_all(self, node: Node) -> bool:
        told = _text(node.ask("CLUSTER", "INFO"))
        return f"cluster_known_nodes:{len(self.nodes)}\n" in told and "handshake" not in _text(
            node.ask("CLUSTER", "NODES")
        )

    @staticmethod
    def _is_well(node: Node) -> bool:
        told = _text(node.ask("CLUSTER", "INFO"))
        return "cluster_state:ok" in told and f"cluster_slots_ok:{SLOTS}\n" in told


class Watched:
    """A master with a replica, and three sentinels of which two agree on a failover."""

    def __init__(self, folder: Path) -> None:
        self.master = Node(folder / "master", {})
        self.replica = Node(folder / "replica", {})
        self._folder = folder
        self.sentinels: list[Node] = []

    @property
    def url(self) -> str:
        """The URL of the sentinels and the service."""
        places = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"redis+sentinel://{places}/{SERVICE}"

    def start(self) -> None:
        """Start all and wait until they know each other."""
        self.master.start()
        self.replica.start()
        self.replica.ask("REPLICAOF", "127.0.0.1", self.master.port)
        eventually(lambda: "master_link_status:up" in str(_replication(self.replica)), LIMIT)
        conf = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 5000\n"
        )
        self.sentinels = [Node(self._folder / f"sentinel{number}", {}, conf) for number in range(3)]
        for sentinel in self.sentinels:
            sentinel.start()
        eventually(lambda: all(map(self._is_well, self.sentinels)), LIMIT)

    def stop(self) -> None:
        """End all."""
        for node in (*self.sentinels, self.replica, self.master):
            node.kill()

    def _is_well(self, sentinel: Node) -> bool:
        try:
            told = sentinel.ask("SENTINEL", "CKQUORUM", SERVICE)
        except redis.ResponseError:
            return False
        return "3 usable" in _text(told) and len(sentinel.ask("SENTINEL", "REPLICAS", SERVICE)) == 1


def _replication(node: Node) -> str:
    """Return what a node tells of its replication, as `name:value` pairs."""
    told = node.ask("INFO", "replication")
    return " ".join(f"{name}:{value}" for name, value in told.items()) if isinstance(told, dict) else str(told)


def _text(told: Any) -> str:
    if isinstance(told, dict):
        return "".join(f"{name}:{value}\n" for name, value in told.items())
    return str(told).replace("\r", "")
