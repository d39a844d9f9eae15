"""Makes channels to a server: its retry policy, keepalive, TLS, and what every call carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import grpc

from kronos_db_client.calls import Calls
from kronos_db_client.credentials import Credential, FileToken

# Seconds.
DEADLINE = 10.0
_KEEPALIVE_MS = 30_000
# Larger than the server takes by default: what is larger than this buffer gRPC does not keep to repeat it.
_RETRY_BUFFER_BYTES = 5 * 1024 * 1024
_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of a connection: the authorities of the server's certificate, by default those of the system.

    With `certificate_file` and `key_file` the caller shows a certificate of its own (mTLS). They are read when the
    channel is made: make a new one when they are renewed.
    """

    ca_file: str | Path | None = None
    certificate_file: str | Path | None = None
    key_file: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Return them as gRPC takes them. Raises OSError."""
        return grpc.ssl_channel_credentials(_read(self.ca_file), _read(self.key_file), _read(self.certificate_file))


def connect(
    address: str,
    *,
    token: str | None = None,
    token_file: str | Path | None = None,
    tls: Tls | None = None,
    deadline: float | None = DEADLINE,
    options: Sequence[tuple[str, str | int]] = (),
) -> grpc.Channel:
    """Return a channel to `address`, HOST:PORT; to be shared by all of a process, and closed at its end.

    `token`, or `token_file`, which is read again when it changes, is the bearer token of every call. `deadline` is the
    seconds that a unary call without a `timeout` of its own gets; streams get none. A unary write without a
    `request_id` gets one, so that gRPC may repeat it. `options` are gRPC's, and go before those that are set here.
    Without `tls` the connection is plaintext. Raises OSError for a file that cannot be read.
    """
    credential: Credential | None = None
    if token_file is not None:
        credential = FileToken(Path(token_file))
    elif token is not None:
        credential = lambda: token  # noqa: E731
    chosen = [*options, *(option for option in default_options() if option[0] not in dict(options))]
    if tls is None:
        channel = grpc.insecure_channel(address, chosen)
    else:
        channel = grpc.secure_channel(address, tls.credentials(), chosen)
    return grpc.intercept_channel(channel, Calls(credential, deadline))


def default_options() -> list[tuple[str, str | int]]:
    """Return the options of a channel: which calls are repeated, and how a connection that leads nowhere is found."""
    return [
        ("grpc.service_config", files("kronos_db_client").joinpath("service_config.json").read_text("utf-8")),
        # A new connection may be given to a process in its last moment: the next attempt is not to come a second later.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER_BYTES),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A stream of changes may be quiet for hours.
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
