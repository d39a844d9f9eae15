"""Asks the ops port of this machine's server whether it is ready: what supervisors of containers run."""

from __future__ import annotations

import http.client
import json

from kronos_db.runtime.errors import KronosError

# Seconds. /readyz itself answers within five.
_LIMIT = 8.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - what it listens on, not what we do


class NotReadyError(KronosError):
    """The server is not ready; the text is one sentence that says why."""


def ask(ops_listen: str, path: str) -> str:
    """Return what the ops port at `ops_listen` answers at `path`. Raises NotReadyError unless the answer is 200."""
    host, _, port = ops_listen.rpartition(":")
    connection = http.client.HTTPConnection(f"{_ANYWHERE.get(host, host)}:{port}", timeout=_LIMIT)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        raise NotReadyError(
            f"The ops port at {ops_listen} does not answer: {str(error) or type(error).__name__}."
        ) from None
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise NotReadyError(f"Not ready: {_missing(text)}.")
    return text


def _missing(text: str) -> str:
    try:
        parts = json.loads(text)["parts"]
        return ", ".join(f"{part}: {state}" for part, state in parts.items() if state != "ok")
    except (ValueError, KeyError, TypeError, AttributeError):
        return text[:200]
