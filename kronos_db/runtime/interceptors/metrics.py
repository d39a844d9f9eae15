"""Second in the chain: counts and times every call under the names that go-grpc-prometheus made customary."""

from __future__ import annotations

import time

from kronos_db.runtime.interceptors.chain import Begin, End
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.ops.metrics import MethodMetrics, RpcMetrics


class Metrics:
    """Feeds the series of `runtime/ops/metrics.py`."""

    def __init__(self, metrics: RpcMetrics) -> None:
        self._metrics = metrics

    def begin(self, method: Method) -> Begin:
        """Count the start."""
        started = self._of(method).started
        return lambda _call: started()

    def end(self, method: Method) -> End:
        """Count the outcome and its time."""
        handled = self._of(method).handled
        return lambda call, _error: handled(call.code, time.perf_counter() - call.started)

    def _of(self, method: Method) -> MethodMetrics:
        return self._metrics.for_method(method.kind, method.service, method.name)
