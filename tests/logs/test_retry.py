"""Retry is safe: one request_id, or one content of an export, is stored once and answered alike."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from kronos.logs.v1 import logs_pb2 as pb

from tests.logs.records import bodies, everything, export, exporter, logs, record, service_name, write_request
from tests.parts.refusal import refused
from tests.parts.serving import Serving

_AT_ONCE = 16


def _at_once(call: Callable[[], Any]) -> list[Any]:
    barrier = threading.Barrier(_AT_ONCE)

    def run(_: int) -> Any:
        barrier.wait(10)
        return call()

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(run, range(_AT_ONCE)))


@pytest.mark.parametrize("size", [1, 500])
def test_a_repeat_gets_the_first_answer(serving: Serving, size: int) -> None:
    stub, service = logs(serving), service_name()
    request = write_request(service, [record(f"{n}") for n in range(size)] + [record("\0")], request_id=str(uuid4()))

    answers = [stub.WriteLogs(request, timeout=10), *_at_once(lambda: stub.WriteLogs(request, timeout=30))]

    assert all(answer == answers[0] for answer in answers)
    assert (answers[0].stored, len(answers[0].refusals)) == (size, 1)
    assert len(everything(stub, service)) == size


@pytest.mark.parametrize("size", [1, 500])
def test_sixteen_at_once_store_once(serving: Serving, size: int) -> None:
    stub, service = logs(serving), service_name()
    request = write_request(service, [record(f"{n}") for n in range(size)], request_id=str(uuid4()))
    answers = _at_once(lambda: stub.WriteLogs(request, timeout=30))
    assert all(answer == answers[0] for answer in answers)
    assert len(everything(stub, service)) == size


def test_a_restart_does_not_forget(fresh_serving: Serving) -> None:
    service = service_name()
    request = write_request(service, [record()], request_id=str(uuid4()))
    exported = export(service, 5)
    first = logs(fresh_serving).WriteLogs(request, timeout=10)
    exporter(fresh_serving).Export(exported, timeout=10)
    fresh_serving.restart()
    assert logs(fresh_serving).WriteLogs(request, timeout=10) == first
    exporter(fresh_serving).Export(exported, timeout=10)
    assert len(everything(logs(fresh_serving), service)) == 6


def test_the_same_id_with_another_body_or_method_is_refused(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    request = write_request(service, [record("first")], request_id=str(uuid4()))
    stub.WriteLogs(request, timeout=10)
    other = write_request(service, [record("second")], request_id=request.request_id)
    batch = pb.IngestLogsRequest(origin=request.origin, records=request.records, request_id=request.request_id)
    for call in (
        lambda: stub.WriteLogs(other, timeout=10),
        lambda: list(stub.IngestLogs(iter([batch]), timeout=10)),
        lambda: stub.EraseLogs(pb.EraseLogsRequest(subject="x", request_id=request.request_id), timeout=10),
    ):
        assert refused(call).reason == "REQUEST_ID_REUSED"
    assert bodies(everything(stub, service)) == ["first"]


def test_batches_of_a_stream_may_come_again_on_another(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    requests = [
        pb.IngestLogsRequest(origin=pb.Origin(service=service), records=[record(f"{n}")], request_id=str(uuid4()))
        for n in range(10)
    ]
    first = list(stub.IngestLogs(iter(requests[:6]), timeout=30))
    again = list(stub.IngestLogs(iter(requests), timeout=30))
    assert again[:6] == first
    assert [answer.request_id for answer in again] == [request.request_id for request in requests]
    assert sorted(bodies(everything(stub, service)), key=int) == [str(n) for n in range(10)]


def test_streams_that_send_the_same_at_once_are_answered_alike(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    batch = pb.IngestLogsRequest(origin=pb.Origin(service=service), records=[record(), record("\0")])
    for _ in range(5):
        batch.request_id = str(uuid4())
        answers = _at_once(lambda: list(stub.IngestLogs(iter([batch]), timeout=30)))
        # An answer may be made more than once, and each time anew.
        assert [len(each.refusals) for answer in answers for each in answer] == [1] * _AT_ONCE
        assert all(answer == answers[0] for answer in answers)
    assert len(everything(stub, service)) == 5


@pytest.mark.parametrize("size", [1, 500])
def test_a_repeated_export_makes_no_duplicates(serving: Serving, size: int) -> None:
    service = service_name()
    request = export(service, size)
    request.resource_logs[0].scope_logs[0].log_records.add(severity_number=77)
    call = exporter(serving).Export
    answers = [call(request, timeout=10), *_at_once(lambda: call(request, timeout=30))]
    assert all(answer == answers[0] for answer in answers)
    assert answers[0].partial_success.rejected_log_records == 1
    assert len(everything(logs(serving), service)) == size
    # Another one is another one.
    request.resource_logs[0].scope_logs[0].log_records[0].observed_time_unix_nano += 1
    call(request, timeout=10)
    assert len(everything(logs(serving), service)) == 2 * size


def test_small_writes_that_come_together_have_answers_of_their_own(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    numbers = iter(range(1000))
    lock = threading.Lock()

    def one() -> tuple[int, pb.WriteLogsResponse]:
        with lock:
            number = next(numbers)
        records = [record(f"{number}")] + ([record("\0")] if number % 3 == 0 else [])
        return number, stub.WriteLogs(write_request(service, records, request_id=str(uuid4())), timeout=30)

    answers = [answer for _ in range(20) for answer in _at_once(one)]

    found = {each.id: each.body.string_value for each in everything(stub, service)}
    assert len(found) == 20 * _AT_ONCE
    for number, answer in answers:
        assert (answer.stored, len(answer.refusals)) == (1, int(number % 3 == 0))
        assert found[f"{answer.batch_id}-0"] == f"{number}"
