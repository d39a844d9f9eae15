"""The platform's HTTP endpoints: which method of AdminService answers which path."""

from __future__ import annotations

from kronos_db.admin.contract import SERVICE
from kronos_db.runtime.ops.gateway import Endpoint


def _rpc(name: str) -> str:
    return f"{SERVICE.full_name}/{name}"


ENDPOINTS = (
    Endpoint("GET", "/db/status", _rpc("GetStatus"), "The state of the server and of its parts."),
    # Query.
    # Backups.
)
