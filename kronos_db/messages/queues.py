"""Queues and their rules in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import uuid4

from kronos_db.messages.model import (
    KIND,
    DeadLetterQueueError,
    Queue,
    QueueEtagMismatchError,
    QueueExistsError,
    QueueNotFoundError,
    Rules,
)
from kronos_db.runtime.database.changes import Change
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.failures import ConstraintError
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.database.transaction import Transaction
from kronos_db.runtime.errors import FieldViolation
from kronos_db.runtime.identifiers import uuid7_text

Reply = TypeVar("Reply")


class QueuesStore:
    """Every method is one round trip to read, or one transaction to write."""

    def __init__(self, database: Database, queries: Mapping[str, Query]) -> None:
        self._database = database
        self._queries = queries

    def get_many(self, names: Sequence[str]) -> Mapping[str, Queue]:
        """Return the queues that have one of `names`, by it."""
        queues = self._database.fetch_all(self._queries["get_queues"], {"names": list(names)}, Queue)
        return {queue.name: queue for queue in queues}

    def every(self) -> list[Queue]:
        """Return all queues."""
        return self._database.fetch_all(self._queries["all_queues"], {}, Queue)

    def list_page(self, prefix: str, after: str | None, limit: int) -> list[Queue]:
        """Return at most `limit` queues by name, those after `after`."""
        params = {"prefix": prefix or None, "after": after, "limit": limit}
        return self._database.fetch_all(self._queries["list_queues"], params, Queue)

    def create(self, name: str, ordered: bool, rules: Rules, mutation: Mutation[Queue, Reply]) -> Reply:
        """Create a queue. Raises QueueExistsError or DeadLetterQueueError."""
        bins = {"id": uuid7_text(), "bin": uuid7_text(), "dead_bin": uuid7_text()}

        def work(tx: Transaction) -> Queue:
            self._check_dead_letter_queue(tx, name, rules)
            params = {"name": name, "ordered": ordered, **bins, **rules._asdict()}
            return _changed(tx, tx.fetch_one(self._queries["create_queue"], params, Queue), name, "created")

        try:
            return self._database.write(work, mutation)
        except ConstraintError as error:
            raise QueueExistsError(
                metadata={"queue": name}, violations=[FieldViolation("queue.name", "is taken by another queue")]
            ) from error

    def update(
        self, name: str, version: int | None, change: Callable[[Rules], Rules], mutation: Mutation[Queue, Reply]
    ) -> Reply:
        """Change the rules of a queue. Raises QueueNotFoundError, QueueEtagMismatchError or DeadLetterQueueError."""

        def work(tx: Transaction) -> Queue:
            rules = change(self._locked(tx, name, version, "queue.etag").rules)
            self._check_dead_letter_queue(tx, name, rules)
            params = {"name": name, **rules._asdict()}
            return _changed(tx, tx.fetch_one(self._queries["update_queue"], params, Queue), name, "updated")

        return self._database.write(work, mutation)

    def delete(self, name: str, version: int | None, mutation: Mutation[Queue, Reply]) -> Reply:
        """Delete a queue with all that is in it. Raises QueueNotFoundError or QueueEtagMismatchError."""

        def work(tx: Transaction) -> Queue:
            self._locked(tx, name, version, "etag")
            return _changed(tx, tx.fetch_one(self._queries["delete_queue"], {"name": name}, Queue), name, "deleted")

        return self._database.write(work, mutation)

    def purge(self, name: str, messages: bool, dead_letters: bool, mutation: Mutation[Queue, Reply]) -> Reply:
        """Empty a queue. Raises QueueNotFoundError."""

        def work(tx: Transaction) -> Queue:
            queue = self._locked(tx, name, None, "etag")
            new: dict[str, str | None] = {
                "bin": str(uuid4()) if messages else None,
                "dead_bin": str(uuid4()) if dead_letters else None,
            }
            params: dict[str, Any] = {
                "name": name,
                **new,
                "old": [getattr(queue, field) for field, value in new.items() if value],
                "new": [value for value in new.values() if value],
            }
            return _changed(tx, tx.fetch_one(self._queries["empty_queue"], params, Queue), name, "purged")

        return self._database.write(work, mutation)

    def _locked(self, tx: Transaction, name: str, version: int | None, field: str) -> Queue:
        queue = tx.fetch_one(self._queries["lock_queue"], {"name": name}, Queue)
        if queue is None:
            raise not_found(name)
        if version is not None and queue.version != version:
            raise QueueEtagMismatchError(violations=[FieldViolation(field, "is not the current one")])
        return queue

    def _check_dead_letter_queue(self, tx: Transaction, name: str, rules: Rules) -> None:
        target = rules.dead_letter_queue
        if not target:
            return
        # Read without a lock: what is deleted meanwhile is found to be gone when a message dies.
        found = None if target == name else tx.fetch_one(self._queries["get_queues"], {"names": [target]}, Queue)
        if found is None or found.ordered:
            raise DeadLetterQueueError(
                violations=[FieldViolation("queue.dead_letter_queue", "must name another queue that is not ordered")]
            )


def not_found(name: str) -> QueueNotFoundError:
    """Return the error that there is no such queue."""
    return QueueNotFoundError(metadata={"queue": name})


def _changed(tx: Transaction, queue: Queue | None, name: str, event: str) -> Queue:
    if queue is None:
        raise not_found(name)
    tx.note(Change(KIND, name, {"event": event, "version": queue.version}))
    return queue
