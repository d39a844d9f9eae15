"""Sends batches of log records to a server from a process of its own, some at a time, each answered one replaced.

    python -m benchmarks.batches < JOB.json

The job is one JSON object, see `Job`. Prints one JSON object, see `Sent`. Batches are bytes made beforehand and answers
are not decoded, so that this costs little beside the server.
"""

from __future__ import annotations

import base64
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import grpc

# Seconds for connecting and for one answer.
_PATIENCE = 60.0
# Batches of a stream that are under way: one is stored while the next one comes.
_AHEAD = 2
_EXPORT = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
_INGEST = "/kronos.logs.v1.LogsService/IngestLogs"
# Field 1000 of a message, which knows no such field, as a varint: tells one export from the next.
_MARK = b"\xc0\x3e"


@dataclass(frozen=True)
class Job:
    """What to send: `batch` in base64, by `lanes` calls or streams at a time, for so many seconds or batches."""

    target: str
    kind: Literal["export", "ingest"]
    batch: str
    lanes: int
    seconds: float
    most: int
    token: str
    warm_up: float = 1.0


@dataclass(frozen=True)
class Sent:
    """How many batches were acknowledged, in how many seconds."""

    batches: int
    seconds: float


class _Tally:
    """Counts what was acknowledged while it counted."""

    def __init__(self, job: Job) -> None:
        self._begin = time.perf_counter() + job.warm_up
        self._end = self._begin + job.seconds
        self._most = job.most
        self._lock = threading.Lock()
        self._last = self._begin
        self.count = 0
        self.number = 0

    def goes_on(self) -> bool:
        """Whether more is to be sent."""
        return time.perf_counter() < self._end and (not self._most or self.number < self._most)

    def take(self) -> int:
        """Return the number of the next batch."""
        with self._lock:
            self.number += 1
            return self.number

    def acknowledged(self) -> None:
        """Count one."""
        now = time.perf_counter()
        with self._lock:
            if self._begin <= now <= self._end:
                self.count += 1
                self._last = now

    def result(self) -> Sent:
        """Return what was counted, until the last acknowledgement."""
        return Sent(self.count, self._last - self._begin)


def run(job: Job) -> Sent:
    """Do the job."""
    tally, batch = _Tally(job), base64.b64decode(job.batch)
    work = _exports if job.kind == "export" else _stream
    threads = [threading.Thread(target=work, args=(job, batch, tally)) for _ in range(job.lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally.result()


def _exports(job: Job, batch: bytes, tally: _Tally) -> None:
    with _channel(job) as channel:
        call = channel.unary_unary(_EXPORT)
        while tally.goes_on():
            call(batch + _MARK + _varint(tally.take()), timeout=_PATIENCE, metadata=_metadata(job))
            tally.acknowledged()


def _stream(job: Job, batch: bytes, tally: _Tally) -> None:
    room: queue.Queue[None] = queue.Queue()
    for _ in range(_AHEAD):
        room.put(None)

    def requests() -> Iterator[bytes]:
        while tally.goes_on():
            room.get(timeout=_PATIENCE)
            tally.take()
            yield batch

    with _channel(job) as channel:
        open_stream: Callable[..., Iterator[bytes]] = channel.stream_stream(_INGEST)
        for _ in open_stream(requests(), metadata=_metadata(job)):
            tally.acknowledged()
            room.put(None)


def _channel(job: Job) -> grpc.Channel:
    return grpc.insecure_channel(job.target, [("grpc.use_local_subchannel_pool", 1)])


def _metadata(job: Job) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {job.token}")]


def _varint(number: int) -> bytes:
    encoded = b""
    while number >= 0x80:
        encoded += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return encoded + bytes((number,))


def main() -> None:
    """Do the job that standard input describes."""
    print(json.dumps(asdict(run(Job(**json.load(sys.stdin))))))


if __name__ == "__main__":
    main()
