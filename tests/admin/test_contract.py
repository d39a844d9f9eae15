"""What the contract of AdminService says of its methods, for those too that are added later."""

from __future__ import annotations

from kronos_db.admin.contract import SERVICE
from kronos_db.runtime.interceptors.method import Method

# What only looks, by the names that the contract gives such methods.
_LOOKING = ("Get", "List", "Verify", "Advise")


def test_every_method_that_changes_or_runs_something_is_recorded_before_it_runs() -> None:
    methods = [Method(method) for method in SERVICE.methods]
    recorded = {method.name for method in methods if method.audited}
    assert {method.name for method in methods} - recorded <= {
        method.name for method in methods if method.name.startswith(_LOOKING)
    }
    # A write is one by its request_id, whatever else is said of it.
    assert {method.name for method in methods if method.mutating} <= recorded
