"""Users and credentials in PostgreSQL. Ids are the canonical text of a UUID: lower case, with hyphens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from psycopg.types.json import Jsonb

from kronos_db.runtime.database import changes
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.failures import ConstraintError
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import Transaction, as_row
from kronos_db.runtime.errors import ConflictError
from kronos_db.runtime.workers import Gatherer
from kronos_db.users.model import (
    KIND,
    TAKEN,
    Change,
    Credential,
    EtagMismatchError,
    Event,
    Key,
    Listing,
    NewUser,
    Transition,
    User,
    UserNotFoundError,
    UserStateError,
)

QUERIES = Path(__file__).with_name("queries.sql")
Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True, eq=False)
class _Creation:
    """One user that a call wants created."""

    new: NewUser
    mutation: Mutation[list[User], Any]


class UsersStore:
    """Every method is one round trip to read, or one transaction to write."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries(QUERIES, "users")
        self._creations: Gatherer[_Creation, Any] = Gatherer(self._create_together)

    def get_many(self, key: Key, values: Sequence[str]) -> Mapping[str, User]:
        """Return the users that have one of `values` as their `key`, by it."""
        users = self._database.fetch_all(self._queries[f"get_by_{key}"], {"keys": _as_array(key, values)}, User)
        return {user.key(key): user for user in users}

    def list_page(self, listing: Listing) -> list[User]:
        """Return at most `listing.limit` users after `listing.after`."""
        params: dict[str, Any] = {
            "state": listing.state,
            "deleted": listing.deleted,
            "create_time_from": listing.create_time_from,
            "create_time_until": listing.create_time_until,
            "username_prefix": listing.username_prefix or None,
            "limit": listing.limit,
        }
        if listing.order.by_username:
            params["after_username"] = listing.after[0] if listing.after else None
        else:
            params["after_time"], params["after_id"] = listing.after or (None, None)
        return self._database.fetch_all(self._queries[listing.order.value], params, User)

    def create(self, new: Sequence[NewUser], mutation: Mutation[list[User], Reply]) -> Reply:
        """Create all of `new` or none, and return them in order. Calls for one user that come together share a write.

        Raises UserExistsError, UsernameTakenError, EmailTakenError or PhoneTakenError for the first one at fault.
        """
        if len(new) > 1 or mutation.validate_only:
            return self._database.write(lambda tx: self._created(tx, new), mutation)
        return cast("Reply", self._creations.get(_Creation(new[0], mutation)))

    def _create_together(self, creations: Sequence[_Creation]) -> Mapping[_Creation, Any]:
        """Create the users of several calls in one transaction."""
        mutations = [creation.mutation for creation in creations]
        new = [creation.new for creation in creations]
        if len(new) == 1:
            return {creations[0]: self._database.write(lambda tx: self._created(tx, new), mutations[0])}
        replies = self._database.write_together(lambda tx: [[user] for user in self._created(tx, new)], mutations)
        return dict(zip(creations, replies, strict=True))

    def _created(self, tx: Transaction, new: Sequence[NewUser]) -> list[User]:
        created = {user.id: user for user in tx.fetch_all(self._queries["create"], _columns(new), User)}
        if len(created) < len(new):
            raise self._conflict(tx, new, list(created))
        for user in new:
            _note(tx, Event.CREATED, created[user.id])
        return [created[user.id] for user in new]

    def update(self, change: Change, mutation: Mutation[User, Reply]) -> Reply:
        """Change one user. Raises UserNotFoundError, UserStateError, EtagMismatchError or a TakenError."""
        values = change.values
        params = {
            "id": change.id,
            "version": change.version,
            "fields": list(change.fields),
            "username": values.username,
            "username_key": values.username_key,
            "email": values.email,
            "phone": values.phone,
            "display_name": values.display_name,
            "attributes": Jsonb(values.attributes),
        }

        def work(tx: Transaction) -> User:
            return self._changed(tx, "update", params, Event.UPDATED)

        try:
            return self._database.write(work, mutation)
        except ConstraintError as error:
            raise TAKEN[error.constraint](values.path) from error

    def change_state(
        self, user_id: str, version: int | None, transition: Transition, mutation: Mutation[User, Reply]
    ) -> Reply:
        """Make a transition. Raises UserNotFoundError, UserStateError or EtagMismatchError."""
        params = {
            "id": user_id,
            "version": version,
            "allowed": [int(state) for state in transition.allowed],
            "from_deleted": transition.from_deleted,
            "to_state": transition.to_state,
            "to_deleted": transition.to_deleted,
        }

        def work(tx: Transaction) -> User:
            return self._changed(tx, "change_state", params, transition.event)

        return self._database.write(work, mutation)

    def erase(self, user_id: str, version: int | None, mutation: Mutation[User, Reply]) -> Reply:
        """Remove a user for good. Raises UserNotFoundError or EtagMismatchError."""
        params = {"id": user_id, "version": version}
        return self._database.write(lambda tx: self._changed(tx, "erase", params, Event.ERASED), mutation)

    def set_password_hash(
        self, user_id: str, version: int | None, password_hash: str, mutation: Mutation[User, Reply]
    ) -> Reply:
        """Set the password hash of a user. Raises UserNotFoundError, UserStateError or EtagMismatchError."""

        def work(tx: Transaction) -> User:
            user = self._changed(tx, "touch", {"id": user_id, "version": version}, Event.PASSWORD_SET)
            tx.execute(self._queries["set_password_hash"], {"id": user_id, "password_hash": password_hash})
            return user

        return self._database.write(work, mutation)

    def credential(self, key: Key, value: str) -> Credential | None:
        """Return what a check of a password needs, or None for an unknown user."""
        return self._database.fetch_one(self._queries[f"credential_by_{key}"], {"key": value}, Credential)

    def upgrade_password_hash(self, user_id: str, previous: str, password_hash: str) -> None:
        """Replace `previous` by a newer hash of the same password; nothing when it is no longer the current one."""
        params = {"id": user_id, "previous": previous, "password_hash": password_hash}
        self._database.execute(self._queries["upgrade_password_hash"], params)

    def _changed(self, tx: Transaction, query: str, params: Mapping[str, Any], event: Event) -> User:
        """Run a change of one user and return the row; when there was none to change, raise why."""
        changed = tx.fetch_one(self._queries[query], params, User)
        if changed is not None:
            _note(tx, event, changed)
            return changed
        user = tx.fetch_one(self._queries["get_by_id"], {"keys": _as_array("id", [params["id"]])}, User)
        if user is None:
            raise UserNotFoundError
        if params["version"] is not None and user.version != params["version"]:
            field = "user.etag" if query == "update" else "etag"
            raise EtagMismatchError.of(field)
        raise _wrong_state(user)

    def _conflict(self, tx: Transaction, new: Sequence[NewUser], created: list[str]) -> Exception:
        params = {**_columns(new), "created": created}
        found = tx.fetch_one(self._queries["find_conflict"], params, as_row)
        if found is None:
            return ConflictError("the user in the way was erased in between")
        position, constraint = found
        return TAKEN[constraint](new[position - 1].path)


def _as_array(key: Key, values: Sequence[str]) -> str | list[str]:
    # Ids as one text, which PostgreSQL takes apart: psycopg would look at each to make an array of them.
    return f"{{{','.join(values)}}}" if key == "id" else list(values)


def _columns(new: Sequence[NewUser]) -> dict[str, list[Any]]:
    return {
        "ids": [user.id for user in new],
        "usernames": [user.username for user in new],
        "username_keys": [user.username_key for user in new],
        "emails": [user.email for user in new],
        "phones": [user.phone for user in new],
        "display_names": [user.display_name for user in new],
        "attributes": [Jsonb(user.attributes) for user in new],
    }


def _note(tx: Transaction, event: Event, user: User) -> None:
    # No names and no addresses: who watches may not be who may read, and what is erased is not to live on here.
    tx.note(changes.Change(KIND, user.id, {"event": event, "version": user.version}))


def _wrong_state(user: User) -> UserStateError:
    names = {1: "active", 2: "suspended"}
    return UserStateError(metadata={"state": "deleted" if user.delete_time else names[user.state]})
