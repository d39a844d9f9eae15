"""Makes the gRPC service config that callers take: which methods may be repeated, and how (gRFC A6).

The contract says it: a method with an `idempotency_level` may be sent again. Reads have no effect, and a write that
carries a `request_id` gets its first answer. Of the codes UNAVAILABLE is repeated, and CANCELLED: a server that shuts
down drops calls with it that came in the last moment and that nobody took up. RESOURCE_EXHAUSTED would make an overload
worse, and its RetryInfo says when to come back, which gRPC's own retries do not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodDescriptorProto, MethodOptions

# In pauses of 0.1, 0.3, 0.9 and 2 s, more or less: longer than a process takes to be started again.
RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
# An end for calls whose caller forgot to set a deadline; a shorter one counts.
TIMEOUT = "300s"
# A channel on which more than one call in eleven fails stops to repeat, once it had hundreds of failures.
RETRY_THROTTLING = {"maxTokens": 1000, "tokenRatio": 0.1}
_REPEATABLE = (MethodOptions.NO_SIDE_EFFECTS, MethodOptions.IDEMPOTENT)


def service_config(files: Iterable[FileDescriptorProto]) -> str:
    """Return the service config for all services of a contract, as JSON."""
    methods = sorted(_repeatable(files), key=lambda found: found[0])
    common = {"waitForReady": True, "retryPolicy": RETRY_POLICY}
    groups = [
        ([name for name, method in methods if not _streams(method)], {**common, "timeout": TIMEOUT}),
        ([name for name, method in methods if _streams(method)], common),
    ]
    configs: list[dict[str, Any]] = [
        {"name": [{"service": service, "method": method} for service, method in names], **config}
        for names, config in groups
        if names
    ]
    return json.dumps({"methodConfig": configs, "retryThrottling": RETRY_THROTTLING}, indent=2) + "\n"


def _repeatable(files: Iterable[FileDescriptorProto]) -> Iterator[tuple[tuple[str, str], MethodDescriptorProto]]:
    for file in files:
        for service in file.service:
            for method in service.method:
                if method.options.idempotency_level in _REPEATABLE:
                    yield (f"{file.package}.{service.name}", method.name), method


def _streams(method: MethodDescriptorProto) -> bool:
    return method.client_streaming or method.server_streaming
