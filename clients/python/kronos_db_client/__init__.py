"""Calls kronos-db: channels with its retry policy, a deadline and a credential, and what reads its answers and errors.

The stubs are below: `kronos_db_client.users.v1.users_pb2`, `kronos_db_client.users.v1.users_pb2_grpc`, and so on.
"""

from kronos_db_client.channel import Tls, connect
from kronos_db_client.errors import Refusal, Violation
from kronos_db_client.reading import follow, pages
from kronos_db_client.repeating import new_request_id, repeatable

__all__ = ["Refusal", "Tls", "Violation", "connect", "follow", "new_request_id", "pages", "repeatable"]
