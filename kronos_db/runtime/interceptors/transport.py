"""The gRPC server below the chain: its limits, its port and its certificates."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc

from kronos_db.runtime.errors import KronosError

# gRPC's own limit lies above ours, so that a message a little too large is refused with a reason.
_MARGIN = 4


class ListenError(KronosError):
    """The address cannot be listened on."""


@dataclass(frozen=True, slots=True)
class Transport:
    """What a server takes: the largest request in bytes, the most calls at once; whether others share its port.

    `largest_request` is that of the one method that takes the most, in bytes too.
    """

    max_message_bytes: int
    max_concurrent_calls: int
    shares_port: bool
    largest_request: int = 0

    def new_server(self, executor: ThreadPoolExecutor) -> grpc.Server:
        """Return a server without handlers and ports, whose calls `executor` runs."""
        calls = self.max_concurrent_calls
        most_bytes = max(self.max_message_bytes * _MARGIN, self.largest_request + self.max_message_bytes)
        return grpc.server(
            executor,
            options=[
                ("grpc.so_reuseport", int(self.shares_port)),
                ("grpc.max_receive_message_length", most_bytes),
                # Finds out about callers that are gone without a word, whose streams would stay for hours.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.max_pings_without_data", 0),
                # So may callers about us, on streams that are quiet for hours; more often costs them the connection.
                ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
                # Calls that arrive faster than they are let in wait. Beyond 1,000 gRPC would cancel some of them at
                # random, as when all watchers of a process that ended come at once.
                ("grpc.server.max_pending_requests", calls),
                ("grpc.server.max_pending_requests_hard_limit", 2 * calls),
            ],
            maximum_concurrent_rpcs=calls,
        )


def listen(server: grpc.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    """Listen on `address`, in plaintext without `credentials`; return it with the port that was taken.

    Raises ListenError.
    """
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        raise ListenError(f"{address} cannot be listened on; is it taken?") from None
    return f"{address.rpartition(':')[0]}:{port}"


def read_credentials(chain: Path, key: Path, authorities: Path | None) -> grpc.ServerCredentials:
    """Return the server's certificate from PEM files; with `authorities` callers need one too. Raises OSError."""
    pair = (key.read_bytes(), chain.read_bytes())
    roots = authorities.read_bytes() if authorities else None
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)
