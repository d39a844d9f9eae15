"""Serving processes are killed under those who write, follow and export logs: nothing is lost, nothing comes twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from kronos.logs.v1 import logs_pb2 as pb
from kronos.logs.v1.logs_pb2_grpc import LogsServiceStub
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from tests.faults.test_watch import Bearer
from tests.logs.following import Tail, write_logs
from tests.logs.records import everything
from tests.parts.commit_order import Write, assert_in_commit_order
from tests.parts.eventually import eventually
from tests.parts.fleet import Fleet
from tests.parts.watching import LIMIT, SOAK

_WRITERS = 8
# Of each writer; together 200,000 in the long form.
_RECORDS = 25_000 if SOAK else 1_000
_EXPORTED = 50_000 if SOAK else 1_500
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100))


@pytest.fixture
def stubs(fleet: Fleet) -> Iterator[Callable[[], LogsServiceStub]]:
    """Makes stubs, each with a connection of its own: the kernel chooses the process."""
    channels: list[grpc.Channel] = []

    def make() -> LogsServiceStub:
        channels.append(grpc.insecure_channel(fleet.settings.grpc_listen, _OPTIONS))
        return LogsServiceStub(grpc.intercept_channel(channels[-1], Bearer(fleet.bearer)))

    yield make
    for channel in channels:
        channel.close()


def _restart_all(fleet: Fleet) -> None:
    """Kill both processes, one after the other, and wait until both serve again."""
    for process in fleet.children():
        process.kill()
        fleet.await_ready()


@pytest.mark.soak
@pytest.mark.timeout(LIMIT + 120)
def test_tails_have_every_acknowledged_record_once(fleet: Fleet, stubs: Callable[[], LogsServiceStub]) -> None:
    count = _WRITERS * _RECORDS
    tails = [Tail(stubs, "followed") for _ in range(3)]
    for tail in tails:
        tail.begin()
    patience = [lambda: 1 << 60, lambda: random.randint(2, 60), lambda: random.randint(2, 200)]
    with ThreadPoolExecutor(_WRITERS + len(tails)) as threads:
        following = [threads.submit(tail.follow, count, left) for tail, left in zip(tails, patience, strict=True)]
        writing = [threads.submit(write_logs, stubs(), "followed", _RECORDS, seed) for seed in range(_WRITERS)]
        eventually(lambda: len(tails[0].told) > count // 10, LIMIT, lambda: len(tails[0].told))
        _restart_all(fleet)
        writes: list[Write] = [write for writer in writing for write in writer.result(LIMIT)]
        for follower in following:
            follower.result(LIMIT)

    for tail in tails:
        assert len(set(tail.ids)) == len(tail.ids) == count
        assert_in_commit_order(tail.told, writes)
    assert sum(tail.came_back for tail in tails) > len(tails), "none was torn off"
    assert len(everything(stubs(), "followed")) == count


@pytest.mark.soak
@pytest.mark.timeout(LIMIT + 120)
def test_the_exporter_of_opentelemetry_loses_nothing(fleet: Fleet, stubs: Callable[[], LogsServiceStub]) -> None:
    """The SDK's OTLP/gRPC exporter from PyPI, unmodified, with all processes restarted during the run."""
    exporter = OTLPLogExporter(
        endpoint=fleet.settings.grpc_listen,
        insecure=True,
        headers=[(key, str(value)) for key, value in fleet.bearer],
        compression=grpc.Compression.Gzip,
        timeout=60,
    )
    provider = LoggerProvider(resource=Resource.create({"service.name": "exported"}))
    processor = BatchLogRecordProcessor(
        exporter, max_queue_size=_EXPORTED + 1, schedule_delay_millis=50, max_export_batch_size=200
    )
    provider.add_log_record_processor(processor)
    logger = provider.get_logger("tests")

    def emit(number: int) -> None:
        logger.emit(
            LogRecord(
                timestamp=time.time_ns(),
                severity_number=SeverityNumber.INFO,
                severity_text="INFO",
                body=f"message {number}",
                attributes={"number": number, "user": {"name": "ann"}},
            )
        )

    try:
        for number in range(_EXPORTED):
            emit(number)
            if number == _EXPORTED // 2:
                eventually(lambda: everything(stubs(), "exported"), LIMIT)
                with ThreadPoolExecutor(1) as threads:
                    restarting = threads.submit(_restart_all, fleet)
                    while not restarting.done():
                        emit(-1)
                        time.sleep(0.01)  # a pace, not a wait
                    restarting.result()
        assert provider.force_flush(60_000)
    finally:
        provider.shutdown()

    found = everything(stubs(), "exported")
    numbers = sorted(
        attribute.value.int_value for each in found for attribute in each.attributes if attribute.key == "number"
    )
    assert [number for number in numbers if number >= 0] == list(range(_EXPORTED))
    one = next(each for each in found if each.body.string_value == "message 7")
    assert (one.severity, one.severity_text, one.service) == (9, "INFO", "exported")
    stats = stubs().GetLogStats(pb.GetLogStatsRequest(), timeout=10)
    assert stats.records == len(found)
