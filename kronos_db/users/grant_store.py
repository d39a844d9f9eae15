"""Grants of roles to users in PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from kronos_db.runtime.database import changes
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.failures import ConstraintError
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import Transaction, as_row
from kronos_db.runtime.errors import BadRequestError, FieldViolation
from kronos_db.users.model import GRANT_KIND, EtagMismatchError, Event, UserNotFoundError
from kronos_db.users.roles import (
    MAX_GRANTS,
    Grant,
    GrantExistsError,
    GrantNotFoundError,
    NewGrant,
    RoleNotFoundError,
    TooManyGrantsError,
)

QUERIES = Path(__file__).with_name("grants.sql")
Reply = TypeVar("Reply")
# Expired grants that one transaction removes.
_PORTION = 500


@dataclass(frozen=True, slots=True)
class GrantListing:
    """Filters of a listing, None for any; `after` is the id of the last grant seen."""

    limit: int
    user_id: str | None
    role_id: str | None
    place: str | None
    after: str | None


class GrantStore:
    """Every read is one round trip, and so is every write that goes through, but for its commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries(QUERIES, "users")

    def list_page(self, listing: GrantListing) -> list[Grant]:
        """Return the next grants of a listing."""
        params = {
            "limit": listing.limit,
            "user_id": listing.user_id,
            "role_id": listing.role_id,
            "scope": listing.place or None,
            "after": listing.after,
        }
        return self._database.fetch_all(self._queries["list"], params, Grant)

    def create(self, new: NewGrant, mutation: Mutation[Grant, Reply]) -> Reply:
        """Grant a role.

        Raises UserNotFoundError, RoleNotFoundError, GrantExistsError, TooManyGrantsError, or BadRequestError for an
        expiry in the past.
        """
        try:
            return self._database.write(lambda tx: self._granted(tx, new), mutation)
        except ConstraintError as error:
            # Removed by another transaction in the same moment.
            raise (_no_user() if error.constraint == "grants_user_id_fkey" else _no_role()) from error

    def update(
        self, grant_id: str, version: int | None, expire_time: datetime | None, mutation: Mutation[Grant, Reply]
    ) -> Reply:
        """Change when a grant ends. Raises GrantNotFoundError, EtagMismatchError, or BadRequestError for the past."""
        params = {"id": grant_id, "version": version, "expire_time": expire_time}

        def work(tx: Transaction) -> Grant:
            changed = tx.fetch_one(self._queries["update"], params, Grant)
            if changed is None:
                self._refuse(tx, params, "grant.etag")
                raise _in_the_past()
            return _noted(tx, Event.GRANT_UPDATED, changed)

        return self._database.write(work, mutation)

    def revoke(self, grant_id: str, version: int | None, mutation: Mutation[Grant, Reply]) -> Reply:
        """Take a role from a user. Raises GrantNotFoundError or EtagMismatchError."""
        params = {"id": grant_id, "version": version}

        def work(tx: Transaction) -> Grant:
            gone = tx.fetch_one(self._queries["revoke"], params, Grant)
            if gone is None:
                self._refuse(tx, params, "etag")
                raise GrantNotFoundError
            return _noted(tx, Event.ROLE_REVOKED, gone)

        return self._database.write(work, mutation)

    def expire(self) -> int:
        """Remove some grants that have expired, and tell of it; return how many. They were not in force any more."""
        if not self._database.fetch_one(self._queries["any_expired"], {}, bool):
            return 0

        def work(tx: Transaction) -> int:
            gone = tx.fetch_all(self._queries["expire"], {"limit": _PORTION}, Grant)
            for grant in gone:
                _noted(tx, Event.GRANT_EXPIRED, grant)
            return len(gone)

        return self._database.write(work, _nobody_asked())

    def _granted(self, tx: Transaction, new: NewGrant) -> Grant:
        params = {
            "id": new.id,
            "user_id": new.user_id,
            "role_id": new.role_id,
            "scope": new.place,
            "expire_time": new.expire_time,
            "limit": MAX_GRANTS,
        }
        granted = tx.fetch_one(self._queries["create"], params, Grant)
        if granted is None:
            self._look_why_not(tx, params)
            granted = tx.fetch_one(self._queries["create"], params, Grant)
        if granted is None:
            raise GrantExistsError
        return _noted(tx, Event.ROLE_GRANTED, granted)

    def _look_why_not(self, tx: Transaction, params: dict[str, Any]) -> None:
        """Return when only a grant of the same role in the same scope can be in the way, and none that has expired."""
        found = tx.fetch_one(self._queries["why_not"], params, as_row)
        is_user, is_role, is_past, is_full = found or (False, False, False, False)
        if not is_user:
            raise _no_user()
        if not is_role:
            raise _no_role()
        if is_past:
            raise _in_the_past()
        expired = tx.fetch_one(self._queries["remove_expired"], params, Grant)
        if expired is not None:
            _noted(tx, Event.GRANT_EXPIRED, expired)
        elif is_full:
            raise TooManyGrantsError(metadata={"limit": str(MAX_GRANTS)})

    def _refuse(self, tx: Transaction, params: dict[str, Any], etag: str) -> None:
        """Raise what is wrong with the id or version of a grant; return when nothing is."""
        grant = tx.fetch_one(self._queries["get"], params, Grant)
        if grant is None:
            raise GrantNotFoundError
        if params["version"] is not None and grant.version != params["version"]:
            raise EtagMismatchError.of(etag)


def note_grant(  # noqa: PLR0917  # what is told of a grant
    tx: Transaction, event: Event, user_id: str, version: int, grant_id: str, role_id: str
) -> None:
    """Note what happened to a grant: under its user, whose copies it makes old."""
    body = {"event": event, "version": version, "grant_id": grant_id, "role_id": role_id}
    tx.note(changes.Change(GRANT_KIND, user_id, body))


def _noted(tx: Transaction, event: Event, grant: Grant) -> Grant:
    note_grant(tx, event, grant.user_id, grant.version, grant.id, grant.role_id)
    return grant


def _no_user() -> UserNotFoundError:
    return UserNotFoundError(violations=[FieldViolation("grant.user_id", "is no user, or one that is deleted")])


def _no_role() -> RoleNotFoundError:
    return RoleNotFoundError(violations=[FieldViolation("grant.role_id", "is no role")])


def _in_the_past() -> BadRequestError:
    return BadRequestError.of("grant.expire_time", "must lie in the future")


def _nobody_asked() -> Mutation[int, int]:
    """Return the mutation of a write that no caller repeats."""
    return Mutation(
        caller="",
        request_id=None,
        fingerprint=b"",
        reply=lambda count: count,
        encode=lambda count: str(count).encode(),
        decode=int,
        window=60.0,
    )
