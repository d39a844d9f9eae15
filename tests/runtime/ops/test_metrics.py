"""Metrics: names and labels of go-grpc-prometheus, bounded, there from the start, and parts read at each scrape."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs

from kronos_db import __version__
from kronos_db.runtime.errors import Code
from kronos_db.runtime.ops.metrics import Reading, RpcMetrics, counters, gauges, new_registry

LABELS = {"grpc_type": "unary", "grpc_service": "kronos.users.v1.UsersService", "grpc_method": "GetUser"}


def test_a_registered_method_has_its_series_from_the_start() -> None:
    registry = CollectorRegistry()
    RpcMetrics(registry).for_method("unary", LABELS["grpc_service"], LABELS["grpc_method"])
    for name in ("started_total", "msg_received_total", "msg_sent_total", "handling_seconds_count"):
        assert registry.get_sample_value(f"grpc_server_{name}", LABELS) == 0
    assert registry.get_sample_value("grpc_server_handled_total", {**LABELS, "grpc_code": "OK"}) == 0


def test_a_call_is_counted_once_in_each() -> None:
    registry = CollectorRegistry()
    method = RpcMetrics(registry).for_method("unary", LABELS["grpc_service"], LABELS["grpc_method"])
    for code in ("OK", "NOT_FOUND", "NOT_FOUND"):
        method.started()
        assert method.received(b"in") == b"in"
        assert method.sent(b"out") == b"out"
        method.handled(code, 0.003)
    for name in ("started_total", "msg_received_total", "msg_sent_total", "handling_seconds_count"):
        assert registry.get_sample_value(f"grpc_server_{name}", LABELS) == 3
    assert registry.get_sample_value("grpc_server_handled_total", {**LABELS, "grpc_code": "OK"}) == 1
    assert registry.get_sample_value("grpc_server_handled_total", {**LABELS, "grpc_code": "NOT_FOUND"}) == 2
    assert registry.get_sample_value("grpc_server_handling_seconds_sum", LABELS) == pytest.approx(0.009)
    assert registry.get_sample_value("grpc_server_handling_seconds_bucket", {**LABELS, "le": "0.0025"}) == 0
    assert registry.get_sample_value("grpc_server_handling_seconds_bucket", {**LABELS, "le": "0.005"}) == 3


def test_code_names_are_bounded() -> None:
    registry = CollectorRegistry()
    method = RpcMetrics(registry).for_method("bidi_stream", "s", "m")
    for name in (*(code.name for code in Code), "UNKNOWN", "OK", "418", "", "ok"):
        method.handled(name, 0.0)
    text = generate_latest(registry).decode()
    assert text.count("\ngrpc_server_handled_total{") == 17
    labels = {"grpc_type": "bidi_stream", "grpc_service": "s", "grpc_method": "m", "grpc_code": "UNKNOWN"}
    assert registry.get_sample_value("grpc_server_handled_total", labels) == 4


def test_the_registry_tells_about_process_interpreter_and_build() -> None:
    text = generate_latest(new_registry()).decode()
    assert 'kronos_db_build_info{python="3.' in text
    assert f'version="{__version__}"}} 1.0' in text
    for name in ("process_resident_memory_bytes", "python_info", "python_gc_objects_collected_total"):
        assert f"\n{name}" in text


def test_no_created_series_double_the_scrape() -> None:
    registry = new_registry()
    RpcMetrics(registry).for_method("unary", "s", "m")
    assert "_created" not in generate_latest(registry).decode()


def test_parts_are_read_at_each_scrape() -> None:
    registry = CollectorRegistry()
    sizes = {"users": 1.0}
    gauges(registry, "kronos_db_pool_size", "Connections.", ["domain"], lambda: (((k,), v) for k, v in sizes.items()))
    counters(registry, "kronos_db_pool_waits_total", "Waits.", [], lambda: [((), 7.0)])
    assert registry.get_sample_value("kronos_db_pool_size", {"domain": "users"}) == 1
    sizes.update(users=2.0, logs=3.0)
    assert registry.get_sample_value("kronos_db_pool_size", {"domain": "users"}) == 2
    assert registry.get_sample_value("kronos_db_pool_size", {"domain": "logs"}) == 3
    assert registry.get_sample_value("kronos_db_pool_waits_total") == 7


def test_a_part_that_cannot_be_read_leaves_the_others() -> None:
    registry = CollectorRegistry()

    def broken() -> Iterator[Reading]:
        yield ("a",), 1.0
        raise ConnectionError("away")

    gauges(registry, "broken", "Breaks.", ["x"], broken)
    gauges(registry, "whole", "Works.", [], lambda: [((), 1.0)])
    with capture_logs() as logs:
        text = generate_latest(registry).decode()
    assert "\nwhole 1.0" in text
    assert "\nbroken{" not in text
    assert [(line["event"], line["metric"]) for line in logs] == [("metric not readable", "broken")]


def test_a_name_is_taken_once() -> None:
    registry = CollectorRegistry()
    gauges(registry, "twice", "First.", [], list)
    with pytest.raises(ValueError, match="twice"):
        gauges(registry, "twice", "Second.", [], list)
