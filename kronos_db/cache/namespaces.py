"""Namespaces in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kronos_db.cache.model import (
    NAMESPACE_KIND,
    Namespace,
    NamespaceEtagMismatchError,
    NamespaceExistsError,
    NamespaceNotFoundError,
)
from kronos_db.runtime.database import changes
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.failures import ConstraintError
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import Transaction
from kronos_db.runtime.errors import FieldViolation

QUERIES = Path(__file__).with_name("namespaces.sql")
Reply = TypeVar("Reply")


class NamespacesStore:
    """Every method is one round trip to read, or one transaction to write."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries(QUERIES, "cache")

    def get_many(self, names: Sequence[str]) -> Mapping[str, Namespace]:
        """Return the namespaces that there are, by name."""
        found = self._database.fetch_all(self._queries["get"], {"names": list(names)}, Namespace)
        return {namespace.name: namespace for namespace in found}

    def list_page(self, after: str | None, limit: int) -> list[Namespace]:
        """Return at most `limit` namespaces after the name `after`."""
        return self._database.fetch_all(self._queries["list"], {"after": after, "limit": limit}, Namespace)

    def create(self, new: Namespace, mutation: Mutation[Namespace, Reply]) -> Reply:
        """Create a namespace. Raises NamespaceExistsError."""
        params = {**_params(new), "id": new.id, "durable": new.durable, "sensitive": new.sensitive}
        params["indexes"] = json.dumps(new.indexes)
        try:
            return self._database.write(lambda tx: self._changed(tx, "create", params), mutation)
        except ConstraintError as error:
            raise NamespaceExistsError(
                metadata={"namespace": new.name},
                violations=[FieldViolation("namespace.name", "is that of another namespace")],
            ) from error

    def update(
        self, values: Namespace, fields: Sequence[str], version: int | None, mutation: Mutation[Namespace, Reply]
    ) -> Reply:
        """Change fields of a namespace. Raises NamespaceNotFoundError or NamespaceEtagMismatchError."""
        params = {**_params(values), "fields": list(fields), "version": version, "path": "namespace.etag"}
        return self._database.write(lambda tx: self._changed(tx, "update", params), mutation)

    def delete(self, name: str, version: int | None, mutation: Mutation[Namespace, Reply]) -> Reply:
        """Delete a namespace. Raises NamespaceNotFoundError or NamespaceEtagMismatchError."""
        params = {"name": name, "version": version, "path": "etag"}
        return self._database.write(lambda tx: self._changed(tx, "delete", params), mutation)

    def _changed(self, tx: Transaction, query: str, params: Mapping[str, Any]) -> Namespace:
        changed = tx.fetch_one(self._queries[query], params, Namespace)
        if changed is None:
            if not tx.fetch_all(self._queries["get"], {"names": [params["name"]]}, Namespace):
                raise NamespaceNotFoundError.of(params["name"])
            raise NamespaceEtagMismatchError(violations=[FieldViolation(params["path"], "is not the current one")])
        tx.note(changes.Change(NAMESPACE_KIND, changed.name))
        return changed


def _params(namespace: Namespace) -> dict[str, Any]:
    return {
        "name": namespace.name,
        "default_ttl": namespace.default_ttl,
        "default_stale_time": namespace.default_stale_time,
        "max_entries": namespace.max_entries,
        "max_bytes": namespace.max_bytes,
        "max_value_bytes": namespace.max_value_bytes,
    }
