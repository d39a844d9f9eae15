"""What checks and listings of permissions read: one round trip each, however deep the roles are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import as_row
from kronos_db.users.account import Account, Held, State
from kronos_db.users.role_graph import Node, RoleGraph
from kronos_db.users.roles import Grant

QUERIES = Path(__file__).with_name("access.sql")


class Holding(NamedTuple):
    """What a user holds: its state as `account.State` has it; its grants, as numbers of roles and places in turns.

    `seconds` is for how long that is true, None until it is changed.
    """

    user_id: str
    state: str
    grants: str | None
    seconds: float | None


class Holder(NamedTuple):
    """Who has a permission, and until when."""

    user_id: str
    expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class HolderListing:
    """Whom to list: users with one of these permissions in one of these places, behind the id `after`."""

    permissions: Sequence[str]
    places: Sequence[str]
    after: str | None
    limit: int


class AccessStore:
    """Reads alone."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries(QUERIES, "users")

    def holdings(self, user_ids: Sequence[str], known: bytes) -> tuple[list[Holding], list[Node]]:
        """Return what those users hold that exist, and of the roles that give it those that are not `known`."""
        # As one text: psycopg would look at each id to make an array of them.
        params = {"user_ids": f"{{{','.join(user_ids)}}}", "known": known}
        rows = self._database.fetch_all(self._queries["holdings"], params, as_row)
        users = [Holding(*row[:4]) for row in rows if row[0] is not None]
        return users, [Node(*row[4:]) for row in rows if row[0] is None]

    def roles(self, numbers: Sequence[int], known: bytes) -> list[Node]:
        """Return roles and all that they inherit from, but what is `known`."""
        return self._database.fetch_all(self._queries["roles"], {"numbers": list(numbers), "known": known}, Node)

    def account(self, user_id: str) -> Account | None:
        """Return all about what one user may, None when there is no such user."""
        rows = self._database.fetch_all(self._queries["account"], {"user_id": user_id}, as_row)
        users = [row for row in rows if row[0] is not None]
        if not users:
            return None
        graph = RoleGraph()
        graph.add(Node(*row[9:]) for row in rows if row[10] is not None)
        held = [Held(row[9], Grant(*row[1:9])) for row in rows if row[1] is not None]
        return Account(State(users[0][0]), held, graph)

    def holders(self, listing: HolderListing) -> list[Holder]:
        """Return the next holders of a listing, by id."""
        params = {
            "permissions": list(listing.permissions),
            "scopes": list(listing.places),
            "after": listing.after,
            "limit": listing.limit,
        }
        return self._database.fetch_all(self._queries["holders"], params, Holder)
