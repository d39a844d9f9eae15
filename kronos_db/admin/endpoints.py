"""The platform's HTTP endpoints: which method of AdminService answers which path."""

from __future__ import annotations

from kronos_db.admin.contract import SERVICE
from kronos_db.admin.query_service import joined as joined_result
from kronos_db.runtime.ops.gateway import Endpoint


def _rpc(name: str) -> str:
    return f"{SERVICE.full_name}/{name}"


# The result of a statement in one document: that of a stream has columns, rows and end in messages of their own.
QUERY_ANSWER = {
    "type": "object",
    "required": ["columns", "rows", "cut"],
    "properties": {
        "columns": {"type": "array", "items": {"type": "object", "description": "name, type and typeOid."}},
        "rows": {
            "type": "array",
            "items": {
                "type": "array",
                "items": {"type": "object", "description": "A value under the name of its kind, as textValue."},
            },
        },
        "cut": {"type": "string", "description": "QUERY_CUT_UNSPECIFIED when these are all rows."},
    },
}
ENDPOINTS = (
    Endpoint("GET", "/db/status", _rpc("GetStatus"), "The state of the server and of its parts."),
    Endpoint(
        "POST",
        "/db/query",
        _rpc("Query"),
        "Runs one statement that reads and does nothing else.",
        joined_result,
        QUERY_ANSWER,
    ),
    # Backups.
    Endpoint("GET", "/db/backups", _rpc("ListBackups"), "The backups, newest first, and the archive of WAL."),
    Endpoint(
        "POST",
        "/db/backup",
        _rpc("CreateBackup"),
        "Makes a backup. Answers when it is made, or how far it is when the time is over: it is made all the same.",
    ),
)
