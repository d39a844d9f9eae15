"""What a handler asks of the chain for its method: other limits, another domain, its own look at texts."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.descriptor_pool import Default
from grpc_health.v1 import health_pb2_grpc
from kronos.users.v1 import users_pb2
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc

from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.chain import Registrar
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.interceptors.terms import Terms, on_terms, terms_of
from kronos_db.runtime.interceptors.validation import MessageTooLargeError, Validation

_EXPORT = "opentelemetry.proto.collector.logs.v1.LogsService"


class _Exports(logs_service_pb2_grpc.LogsServiceServicer):
    @on_terms(domain="logs", most_bytes=5000, checks_text=True)
    def Export(self, request: Any, context: Any) -> Any:
        return logs_service_pb2.ExportLogsServiceResponse()


def _registered() -> dict[str, Method]:
    registrar = Registrar()
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(_Exports(), registrar)  # type: ignore[no-untyped-call]  # its package has no types
    health_pb2_grpc.add_HealthServicer_to_server(health_pb2_grpc.HealthServicer(), registrar)  # type: ignore[no-untyped-call]
    assert registrar.largest_request(100) == 5000
    assert registrar.largest_request(10_000) == 10_000
    return {method.path: method for method in registrar.handlers}


def test_a_method_of_another_contract_belongs_to_the_domain_that_serves_it() -> None:
    methods = _registered()
    export, check = methods[f"{_EXPORT}/Export"], methods["grpc.health.v1.Health/Check"]
    assert (export.ours, export.domain, export.lane.domain) == (True, "logs", "logs")
    assert (check.ours, check.domain, check.terms) == (False, "grpc.health.v1", Terms())


def test_handlers_without_terms_have_none() -> None:
    assert terms_of(lambda: None) == Terms()
    assert terms_of(_Exports().Export) == Terms("logs", 5000, checks_text=True)


def test_limits_and_texts() -> None:
    export = _registered()[f"{_EXPORT}/Export"]
    step = Validation(100).request(export)
    call: Any = None
    request = logs_service_pb2.ExportLogsServiceRequest()
    request.resource_logs.add().schema_url = "x\0" * 100
    assert step(request.SerializeToString(), call) == request
    with pytest.raises(MessageTooLargeError) as refused:
        step(b"x" * 5001, call)
    assert refused.value.metadata["limit"] == "5000"

    descriptor = Default().FindMethodByName("kronos.users.v1.UsersService.GetUser")
    with pytest.raises(BadRequestError):
        Validation(100).request(Method(descriptor))(users_pb2.GetUserRequest(username="a\0").SerializeToString(), call)


class _Context:
    def invocation_metadata(self) -> tuple[()]:
        return ()


def test_a_call_is_named_by_its_content_where_its_request_has_no_name() -> None:
    call = Call(_registered()[f"{_EXPORT}/Export"], _Context())  # type: ignore[arg-type]  # no more is asked of it
    answer = logs_service_pb2.ExportLogsServiceResponse
    assert call.mutation(answer, lambda _: answer()).request_id is None
    request_id = uuid4()
    call.identify(request_id, b"content", 3600.0)
    mutation = call.mutation(answer, lambda _: answer())
    assert (mutation.request_id, mutation.fingerprint, mutation.window) == (request_id, b"content", 3600.0)
