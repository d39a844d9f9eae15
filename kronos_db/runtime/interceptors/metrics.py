"""Second in the chain: counts calls, their time and messages under the names that go-grpc-prometheus made customary."""

from __future__ import annotations

import time

from kronos_db.runtime.interceptors.call import Step
from kronos_db.runtime.interceptors.chain import Begin, End
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.ops.metrics import MethodMetrics, RpcMetrics


class Metrics:
    """Feeds the series of `runtime/ops/metrics.py`."""

    def __init__(self, metrics: RpcMetrics) -> None:
        self._metrics = metrics

    def begin(self, method: Method) -> Begin:
        """Count the start."""
        return self._of(method).started

    def end(self, method: Method) -> End:
        """Count the outcome and its time."""
        handled = self._of(method).handled
        return lambda call, _error: handled(call.code, time.perf_counter() - call.started)

    def request(self, method: Method) -> Step:
        """Count a message received."""
        return self._of(method).received

    def response(self, method: Method) -> Step:
        """Count a message sent."""
        return self._of(method).sent

    def _of(self, method: Method) -> MethodMetrics:
        return self._metrics.for_method(method.kind, method.service, method.name)
