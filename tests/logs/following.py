"""Writers of logs and a tail that comes back: what the tests of TailLogs share."""

from __future__ import annotations

import random
from collections.abc import Callable
from uuid import uuid4

import grpc
from kronos.logs.v1 import logs_pb2 as pb
from kronos.logs.v1.logs_pb2_grpc import LogsServiceStub

from tests.logs.records import record, write_request
from tests.parts.commit_order import Write, timed
from tests.parts.watching import LIMIT


def persistently(call: Callable[[], pb.WriteLogsResponse]) -> pb.WriteLogsResponse:
    """Repeat a call as long as the process that should answer it is away."""
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined]  # not in the stubs
                raise


def write_logs(stub: LogsServiceStub, service: str, count: int, seed: int) -> list[Write]:
    """Write so many records in batches of some sizes: the record of a write is its writer, the version its place."""
    chance = random.Random(seed)
    written: list[Write] = []
    while len(written) < count:
        size = min(chance.choice([1, 1, 1, 5, 30, 300, 1200]), count - len(written))
        numbers = range(len(written) + 1, len(written) + size + 1)
        records = [record(f"{seed} {number}") for number in numbers]
        request = write_request(service, records, request_id=str(uuid4()))
        answer, began, ended = timed(
            lambda: persistently(lambda: stub.WriteLogs(request, timeout=LIMIT))  # noqa: B023  # called here and now
        )
        assert answer.stored == size
        written += [Write(seed, number, began, ended) for number in numbers]
    return written


class Tail:
    """Follows a service, and comes back with its last token whenever its stream ends. `told` holds writer and place."""

    def __init__(self, stubs: Callable[[], LogsServiceStub], service: str) -> None:
        self._stubs = stubs
        self._filter = pb.LogFilter(service=service)
        self.token = ""
        self.told: list[tuple[int, int]] = []
        self.ids: list[str] = []
        self.came_back = 0

    def begin(self) -> None:
        """Learn from where on to follow."""
        stream = self._stubs().TailLogs(pb.TailLogsRequest(filter=self._filter), timeout=LIMIT)
        self.token = next(stream).resume_token
        stream.cancel()

    def follow(self, count: int, patience: Callable[[], int]) -> None:
        """Follow until `count` records were told; leave each stream after `patience()` messages."""
        while len(self.told) < count:
            request = pb.TailLogsRequest(resume_token=self.token, filter=self._filter)
            stream = self._stubs().TailLogs(request, timeout=LIMIT)
            left = patience()
            try:
                for message in stream:
                    self.token = message.resume_token or self.token
                    for each in message.records:
                        writer, number = map(int, each.body.string_value.split())
                        self.told.append((writer, number))
                        self.ids.append(each.id)
                    left -= 1
                    if left <= 0 or len(self.told) >= count:
                        break
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined]  # not in the stubs
                    raise
            stream.cancel()
            self.came_back += 1
