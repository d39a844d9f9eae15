"""Roles in PostgreSQL, and what they inherit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from kronos_db.runtime.database import changes
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.failures import ConstraintError
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import Transaction, as_row
from kronos_db.runtime.errors import ConflictError, FieldViolation
from kronos_db.users.grant_store import note_grant
from kronos_db.users.model import ROLE_KIND, EtagMismatchError, Event
from kronos_db.users.role_graph import way_to
from kronos_db.users.roles import (
    MAX_REVOKED,
    NewRole,
    Removal,
    Role,
    RoleChange,
    RoleCycleError,
    RoleGrantedError,
    RoleInheritedError,
    RoleNameTakenError,
    RoleNotFoundError,
)

QUERIES = Path(__file__).with_name("roles.sql")
Reply = TypeVar("Reply")


class RoleStore:
    """Every read is one round trip. Writes are rare: they ask for what they need, one thing after the other."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries(QUERIES, "users")

    def get(self, key: Literal["id", "name"], value: str) -> Role | None:
        """Return a role by its id or normalised name."""
        return self._database.fetch_one(self._queries[f"get_by_{key}"], {"key": value}, Role)

    def list_page(self, name_prefix: str, after: str | None, limit: int) -> list[Role]:
        """Return roles by normalised name, behind the name `after`."""
        params = {"name_prefix": name_prefix or None, "after": after, "limit": limit}
        return self._database.fetch_all(self._queries["list"], params, Role)

    def create(self, new: NewRole, mutation: Mutation[Role, Reply]) -> Reply:
        """Create a role. Raises RoleNameTakenError, or RoleNotFoundError for a parent."""

        def work(tx: Transaction) -> Role:
            if new.parent_ids:
                self._lock_graph(tx)
            tx.execute(self._queries["create"], _columns(new))
            self._inherit(tx, new)
            return self._changed(tx, new.id, Event.ROLE_CREATED)

        return self._write(work, mutation)

    def update(self, change: RoleChange, mutation: Mutation[Role, Reply]) -> Reply:
        """Change a role.

        Raises RoleNotFoundError (for a parent too), EtagMismatchError, RoleNameTakenError or RoleCycleError.
        """
        values = change.values

        def work(tx: Transaction) -> Role:
            if "parent_ids" in change.fields:
                self._lock_graph(tx)
            self._lock(tx, values.id, change.version, "role.etag")
            if "parent_ids" in change.fields:
                tx.execute(self._queries["remove_parents"], {"id": values.id})
                self._inherit(tx, values)
            tx.execute(self._queries["update"], {**_columns(values), "fields": list(change.fields)})
            return self._changed(tx, values.id, Event.ROLE_UPDATED)

        return self._write(work, mutation)

    def delete(self, removal: Removal, mutation: Mutation[None, Reply]) -> Reply:
        """Remove a role. Raises RoleNotFoundError, EtagMismatchError, RoleGrantedError or RoleInheritedError."""

        def work(tx: Transaction) -> None:
            self._lock_graph(tx)
            number, version = self._lock(tx, removal.id, removal.version, "etag")
            params = {"number": number, "limit": MAX_REVOKED}
            self._make_way(tx, removal, params)
            tx.execute(self._queries["delete"], params)
            _note(tx, Event.ROLE_DELETED, removal.id, version)

        return self._write(work, mutation)

    def _make_way(self, tx: Transaction, removal: Removal, params: dict[str, Any]) -> None:
        """End what keeps a role from being removed; raise when that was not asked for."""
        found = tx.fetch_one(self._queries["in_the_way"], params, as_row)
        grants, heir = found or (0, None)
        if grants > (MAX_REVOKED if removal.revoke_grants else 0):
            raise RoleGrantedError(grants)
        if heir is not None and not removal.detach_children:
            raise RoleInheritedError(metadata={"role": heir})
        if grants:
            for grant_id, user_id, version in tx.fetch_all(self._queries["revoke_all"], params, as_row):
                note_grant(tx, Event.ROLE_REVOKED, user_id, version, grant_id, removal.id)
        if heir is not None:
            for role_id, version in tx.fetch_all(self._queries["detach_children"], params, as_row):
                _note(tx, Event.ROLE_UPDATED, role_id, version)

    def _write(self, work: Any, mutation: Mutation[Any, Reply]) -> Reply:
        try:
            return self._database.write(work, mutation)
        except ConstraintError as error:
            if error.constraint == "roles_name":
                raise RoleNameTakenError from error
            raise

    def _lock_graph(self, tx: Transaction) -> None:
        # Before anything is read: what follows must see what the one before has committed.
        tx.fetch_one(self._queries["lock_graph"], {}, lambda _: None)

    def _lock(self, tx: Transaction, role_id: str, version: int | None, field: str) -> tuple[int, int]:
        """Lock a role; return its number and version."""
        found = tx.fetch_one(self._queries["lock"], {"id": role_id}, as_row)
        if found is None:
            raise RoleNotFoundError
        number, current = found
        if version is not None and version != current:
            raise EtagMismatchError.of(field)
        return number, current

    def _inherit(self, tx: Transaction, role: NewRole) -> None:
        """Let a role without parents inherit from those that it is to have. The graph is locked."""
        if not role.parent_ids:
            return
        ids = {"ids": list(role.parent_ids)}
        rows = tx.fetch_all(self._queries["ancestry"], ids, as_row)
        names = {role_id: name for role_id, name, _ in rows}
        for index, parent in enumerate(role.parent_ids):
            if parent not in names:
                raise RoleNotFoundError(violations=[FieldViolation(f"role.parent_ids[{index}]", "is no role")])
        way = way_to(role.parent_ids, role.id, {role_id: parents for role_id, _, parents in rows})
        if way is not None:
            raise RoleCycleError([names[each] for each in (role.id, *way)])
        tx.execute(self._queries["add_parents"], {"id": role.id, "parent_ids": list(role.parent_ids)})

    def _changed(self, tx: Transaction, role_id: str, event: Event) -> Role:
        role = tx.fetch_one(self._queries["get_by_id"], {"key": role_id}, Role)
        if role is None:
            raise ConflictError("a role is gone that this transaction holds")
        _note(tx, event, role_id, role.version)
        return role


def _columns(role: NewRole) -> dict[str, Any]:
    return {
        "id": role.id,
        "name": role.name,
        "name_key": role.name_key,
        "description": role.description,
        "permissions": list(role.permissions),
    }


def _note(tx: Transaction, event: Event, role_id: str, version: int) -> None:
    tx.note(changes.Change(ROLE_KIND, role_id, {"event": event, "version": version}))
