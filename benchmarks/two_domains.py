"""A server with two domains made for measuring: one whose calls take long, and one that wants to be left in peace.

    python -m benchmarks.two_domains

Prints its address and the bearer token that it takes, and serves until standard input closes. Both domains stand
behind the whole chain of interceptors, with the server's own settings but for the length of their queues.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.empty_pb2 import DESCRIPTOR as EMPTY
from google.protobuf.empty_pb2 import Empty
from prometheus_client import CollectorRegistry

from kronos_db.config import Settings
from kronos_db.runtime.crypto.marks import Marks
from kronos_db.runtime.crypto.master_key import FileMasterKeys, create_master_key_file
from kronos_db.runtime.errors import RUNTIME_ERRORS, ErrorTable
from kronos_db.runtime.interceptors.access_log import AccessLog
from kronos_db.runtime.interceptors.audit import AuditOutcome, AuditRequest
from kronos_db.runtime.interceptors.authentication import Authentication, hash_token, new_token
from kronos_db.runtime.interceptors.chain import Chain, register
from kronos_db.runtime.interceptors.encryption import Encryption
from kronos_db.runtime.interceptors.errors import Errors
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.interceptors.metrics import Metrics
from kronos_db.runtime.interceptors.overload import Limits, Overload
from kronos_db.runtime.interceptors.policy import Policy
from kronos_db.runtime.interceptors.validation import VALIDATION_ERRORS, Validation
from kronos_db.runtime.ops.metrics import RpcMetrics
from kronos_db.runtime.workers import Workers

SLOW = "kronos.slow.v1.SlowService/Work"
PEACEFUL = "kronos.peaceful.v1.PeacefulService/Work"
# Seconds that a call of the slow domain waits, as for its database.
SLOW_SECONDS = 0.08
_SETTINGS = Settings()
# So that the queue of a flood is served within a second or two after it.
_LIMIT = 64
# Calls a second that the slow domain can answer.
CAPACITY = _SETTINGS.worker_threads / SLOW_SECONDS


def _method(path: str) -> Method:
    service, _, name = path.partition("/")
    package, _, short = service.rpartition(".")
    file = FileDescriptorProto(name=f"{package.replace('.', '/')}.proto", package=package, syntax="proto3")
    file.dependency.append(EMPTY.name)
    empty = f".{Empty.DESCRIPTOR.full_name}"
    file.service.add(name=short).method.add(name=name, input_type=empty, output_type=empty)
    descriptor_pool.Default().Add(file)
    return Method(descriptor_pool.Default().FindServiceByName(service).methods_by_name[name])


def _work_slowly(request: Any, _call: Any) -> Any:
    time.sleep(SLOW_SECONDS)
    return request


def _chain(token: str, masters: FileMasterKeys, workers: Workers) -> Chain:
    metrics = RpcMetrics(CollectorRegistry())
    policy = Policy({hash_token(token, masters): "caller"}, {}, {"caller": frozenset({SLOW, PEACEFUL})})
    limits = Limits(calls=_LIMIT, minimum=_SETTINGS.minimum_deadline)
    table = ErrorTable(RUNTIME_ERRORS, VALIDATION_ERRORS)
    return Chain(
        {
            "access_log": AccessLog(lambda *_, **__: lambda *_: None),
            "metrics": Metrics(metrics),
            "errors": Errors(table),
            "audit_outcome": AuditOutcome({}, table),
            "authentication": Authentication(policy, masters),
            "overload": Overload(limits, workers.expected_wait, metrics.refused),
            "validation": Validation(_SETTINGS.max_message_bytes),
            "audit_request": AuditRequest({}, Marks()),
            "encryption": Encryption({}, Marks(), 3600.0),
        }
    )


def main() -> None:
    """Serve."""
    token = new_token()
    with tempfile.TemporaryDirectory() as folder:
        create_master_key_file(Path(folder) / "master.key")
        masters = FileMasterKeys(Path(folder) / "master.key")
    workers = Workers(_SETTINGS.worker_threads)
    chain = _chain(token, masters, workers)
    server = grpc.server(workers.as_executor(), maximum_concurrent_rpcs=_SETTINGS.max_concurrent_calls)
    behaviors: Mapping[str, Any] = {SLOW: _work_slowly, PEACEFUL: lambda request, _call: request}
    handlers = {
        _method(path): grpc.unary_unary_rpc_method_handler(behavior, None, Empty.SerializeToString)
        for path, behavior in behaviors.items()
    }
    register(server, {method: chain.compose(method, handler) for method, handler in handlers.items()})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    # As a serving process does.
    gc.collect()
    gc.freeze()
    print(f"127.0.0.1:{port}", token, flush=True)
    sys.stdin.read()
    server.stop(0).wait()


if __name__ == "__main__":
    main()
