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
    Endpoint("GET", "/db/backups", _rpc("ListBackups"), "The backups, newest first, and the archive of WAL."),
    Endpoint(
        "POST",
        "/db/backup",
        _rpc("CreateBackup"),
        "Makes a backup. Answers when it is made, or how far it is when the time is over: it is made all the same.",
    ),
)
