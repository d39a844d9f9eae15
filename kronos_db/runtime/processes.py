"""Keeps a number of serving processes alive: starts them, starts again what dies, drains them together.

The supervisor serves nothing itself and never touches gRPC. Its processes share one port (SO_REUSEPORT): the kernel
hands each new connection to one of them.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from kronos_db.runtime.errors import KronosError

# Seconds before a process that died is started again, doubled each time up to the second figure; a process that lived
# for as long as the third is forgiven what came before.
_FIRST_PAUSE, _LONGEST_PAUSE, _FORGIVEN = 0.1, 10.0, 60.0
_PR_SET_PDEATHSIG = 1

_log = structlog.get_logger(__name__)


class PortTakenError(KronosError):
    """The port that the processes are to share belongs to somebody else."""


@dataclass(eq=False)
class Slot:
    """The place of one process. `ops` is where the one that is in it now answers for itself; None until it serves."""

    index: int
    ops: str | None = None
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    thread: threading.Thread | None = field(default=None, repr=False)


class Supervisor:
    """Runs `count` processes. `command(slot, status_fd)` gives the command line of one.

    A process writes a JSON object with its `ops` address to `status_fd` when it serves. `environment` is what all get.
    """

    def __init__(
        self, count: int, command: Callable[[int, int], Sequence[str]], environment: Mapping[str, str], patience: float
    ) -> None:
        self.slots = [Slot(index) for index in range(count)]
        self._command = command
        self._environment = dict(environment)
        self._patience = patience
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        # The exit code of a process that could not even start, while none had served yet.
        self._refusal: int | None = None
        self._has_served = False

    def start(self) -> None:
        """Start all processes."""
        for slot in self.slots:
            slot.thread = threading.Thread(target=self._keep, args=(slot,), name=f"process {slot.index}", daemon=True)
            slot.thread.start()

    def wait_until_serving(self, stopped: Callable[[], bool]) -> int | None:
        """Wait until every process serves, or `stopped` says true; return the exit code of one that could not start."""
        with self._changed:
            while not stopped() and self._refusal is None and not all(slot.ops for slot in self.slots):
                self._changed.wait(0.1)
        return self._refusal

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process."""
        for slot in self.slots:
            if slot.process is not None and slot.process.poll() is None:
                slot.process.send_signal(number)

    def stop(self) -> None:
        """Let every process drain, and end those that outlast their patience."""
        self._stopping.set()
        self.signal(signal.SIGTERM)
        give_up = time.monotonic() + self._patience
        for slot in self.slots:
            if slot.thread is not None:
                slot.thread.join(max(0.0, give_up - time.monotonic()))
        self.signal(signal.SIGKILL)
        for slot in self.slots:
            if slot.thread is not None:
                slot.thread.join(5.0)

    def _keep(self, slot: Slot) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            began = time.monotonic()
            code = self._run_once(slot)
            if self._stopping.is_set():
                return
            if not self._has_served and code > 0:
                self._refuse(code)
                return
            if time.monotonic() - began > _FORGIVEN:
                pause = _FIRST_PAUSE
            _log.error("a serving process ended", process=slot.index, code=code, again_in=round(pause, 2))
            self._stopping.wait(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _run_once(self, slot: Slot) -> int:
        """Start a process in `slot`, wait for its end and return its exit code."""
        reader, writer = os.pipe()
        try:
            slot.process = subprocess.Popen(  # noqa: S603  # our own command
                [*self._command(slot.index, writer)],
                env=self._environment,
                pass_fds=(writer,),
                # A session of its own: Ctrl-C is for the supervisor, which drains them all.
                start_new_session=True,
            )
            slot.starts += 1
        finally:
            os.close(writer)
        if self._stopping.is_set():
            slot.process.terminate()
        with os.fdopen(reader, encoding="utf-8") as status:
            line = status.readline()
        if line:
            self._serves(slot, json.loads(line)["ops"])
        code = slot.process.wait()
        with self._changed:
            slot.ops = None
        return code

    def _serves(self, slot: Slot, ops: str) -> None:
        with self._changed:
            slot.ops = ops
            self._has_served = True
            self._changed.notify_all()

    def _refuse(self, code: int) -> None:
        with self._changed:
            self._refusal = self._refusal or code
            self._changed.notify_all()


class SharedPort:
    """Holds HOST:PORT for processes that share it, without listening there itself; port 0 takes a free one.

    Raises PortTakenError when somebody else has it who does not share.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self._refuse_listeners(family, host.strip("[]"), int(port))
            self._socket.bind((host.strip("[]"), int(port)))
        except OSError as error:
            self._socket.close()
            raise PortTakenError(f"{address} cannot be listened on: {error.strerror or error}.") from error
        self.address = f"{host}:{self._socket.getsockname()[1]}"

    def _refuse_listeners(self, family: socket.AddressFamily, host: str, port: int) -> None:
        # Another fleet of this server shares ports too: without this look two would split the calls between them.
        if port:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))

    def close(self) -> None:
        """Let go of the port."""
        self._socket.close()


def end_with_parent() -> None:
    """Have the kernel end this process when its supervisor ends, however that happens (Linux)."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
