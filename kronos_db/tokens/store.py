"""Tokens in PostgreSQL. Ids are the canonical text of a UUID, or its 32 digits where a comment says so."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import orjson
from psycopg.types.json import Jsonb

from kronos_db.runtime.database import changes
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.database.transaction import Transaction, as_row
from kronos_db.runtime.errors import BadRequestError, FieldViolation
from kronos_db.runtime.workers import Gatherer
from kronos_db.tokens.model import (
    KEPT,
    REVOKED_JWT,
    TOKEN,
    Change,
    Exchange,
    JwtExistsError,
    Kind,
    Loaded,
    NewToken,
    Outcome,
    Revocation,
    Rotation,
    Scope,
    Selection,
    State,
    Token,
    TokenEtagMismatchError,
    TokenNotFoundError,
    TokenStateError,
)

QUERIES = Path(__file__).with_name("queries.sql")
Reply = TypeVar("Reply")
_NO_TIME = "-infinity"


@dataclass(frozen=True, slots=True, eq=False)
class _Addition:
    """The tokens that a call wants stored."""

    new: Sequence[NewToken]
    mutation: Mutation[list[Token], Any]


class TokensStore:
    """Every method is one round trip to read, or one transaction to write."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries(QUERIES, "tokens")
        self._additions: Gatherer[_Addition, Any] = Gatherer(self._add_together)

    def load(self, ids: Sequence[str]) -> list[Loaded]:
        """Return those of the tokens of these ids (32 digits) that there are."""
        return self._database.fetch_all(
            self._queries["load"],
            # As one text: psycopg would look at each to make an array of them.
            {"ids": f"{{{','.join(ids)}}}"},
            lambda hash_, valid_for, *columns: Loaded(hash_, valid_for, Token(*columns)),
        )

    def get(self, token_id: str) -> Token | None:
        """Return a token; the id in either form."""
        return self._database.fetch_one(self._queries["get"], {"id": token_id}, Token)

    def list_page(self, subject: str, kinds: Sequence[int], after: str | None, limit: int) -> list[Token]:
        """Return at most `limit` active tokens of a subject, newest first, after the id of the last one seen."""
        params = {"subject": subject, "kinds": list(kinds), "after": after, "limit": limit}
        return self._database.fetch_all(self._queries["list"], params, Token)

    def add(self, new: Sequence[NewToken], mutation: Mutation[list[Token], Reply]) -> Reply:
        """Store all of `new` or none, and return them in order. Calls that come together share a write.

        Raises JwtExistsError for the first JWT that is there.
        """
        if mutation.validate_only:
            return self._database.write(lambda tx: self._added(tx, new), mutation)
        return cast("Reply", self._additions.get(_Addition(new, mutation)))

    def _add_together(self, additions: Sequence[_Addition]) -> Mapping[_Addition, Any]:
        """Store the tokens of several calls in one transaction."""
        mutations = [addition.mutation for addition in additions]
        new = [token for addition in additions for token in addition.new]
        if len(additions) == 1:
            return {additions[0]: self._database.write(lambda tx: self._added(tx, new), mutations[0])}

        def work(tx: Transaction) -> list[list[Token]]:
            stored = iter(self._added(tx, new))
            return [[next(stored) for _ in addition.new] for addition in additions]

        replies = self._database.write_together(work, mutations)
        return dict(zip(additions, replies, strict=True))

    def _added(self, tx: Transaction, new: Sequence[NewToken]) -> list[Token]:
        # Nothing is noted: there are no copies of what was not there, and nobody is told of new tokens.
        rows = tx.fetch_all(self._queries["add"], {"rows": _rows(new), "kept": KEPT}, as_row)
        times = {row[0]: row[1:] for row in rows}
        stored = []
        for token in new:
            # Taken out: of two JWTs with one id the second is at fault.
            found = times.pop(token.id, None)
            if found is None:
                raise JwtExistsError(token.path)
            stored.append(token.stored(*found))
        return stored

    def rotate(self, exchange: Exchange, mutation: Mutation[Rotation, Reply]) -> Reply:
        """Exchange a refresh token."""
        return self._database.write(lambda tx: self._rotated(tx, exchange), mutation)

    def _rotated(self, tx: Transaction, exchange: Exchange) -> Rotation:
        found = tx.fetch_one(
            self._queries["lock"],
            {"id": exchange.id},
            lambda hash_, refresh, access, grace, *columns: (hash_, refresh, access, grace, Token(*columns)),
        )
        if found is None or not hmac.compare_digest(found[0], exchange.hash):
            return Rotation(Outcome.REJECTED)
        _, refresh_id, access_id, in_grace, token = found
        if token.state == State.ACTIVE and exchange.subject_active:
            self._exchange(tx, token, exchange)
            return self._succeeded(tx, Outcome.ROTATED, exchange.refresh_id, exchange.access_id)
        if token.state != State.USED:
            return Rotation(Outcome.REJECTED)
        if in_grace:
            replayed = self._succeeded(tx, Outcome.REPLAYED, refresh_id, access_id)
            state = State.REVOKED if replayed.refresh is None else replayed.refresh.state
            if state == State.ACTIVE and exchange.subject_active:
                return replayed
            if state != State.USED:
                return Rotation(Outcome.REJECTED)
        self._cut(tx, Selection(Scope.FAMILY, token.family_id))
        return Rotation(Outcome.REUSE_DETECTED, family_id=token.family_id)

    def _exchange(self, tx: Transaction, token: Token, exchange: Exchange) -> None:
        params = {
            "id": token.id,
            "refresh_id": exchange.refresh_id,
            "refresh_hash": exchange.refresh_hash,
            "access_id": exchange.access_id,
            "access_hash": exchange.access_hash,
            "mark": exchange.mark,
            "kept": KEPT,
        }
        tx.execute(self._queries["use"], params)
        tx.execute(self._queries["succeed"], params)
        tx.note(changes.Change(TOKEN, token.id, {"event": "used"}))

    def _succeeded(self, tx: Transaction, outcome: Outcome, refresh_id: str, access_id: str) -> Rotation:
        rows = tx.fetch_all(
            self._queries["successors"],
            {"ids": [refresh_id, access_id]},
            lambda mark, *columns: (mark, Token(*columns)),
        )
        if len(rows) != 2:  # noqa: PLR2004  # the two
            # An access token that was made so short-lived that it is purged: there is nothing to give again.
            return Rotation(Outcome.REJECTED)
        (mark, refresh), (_, access) = rows
        return Rotation(outcome, refresh, access, mark)

    def revoke(self, token_id: str, hash_: bytes | None, mutation: Mutation[None, Reply]) -> Reply:
        """Revoke a token, with its family when it is a refresh token; `hash_` None takes any of this id."""

        def work(tx: Transaction) -> None:
            params = {"id": token_id, "hash": hash_, "kept": KEPT}
            found = tx.fetch_one(self._queries["revoke"], params, as_row)
            if found is None:
                return
            record_id, kind, family_id, jwt_id = found
            # Also when it was revoked before: whoever did that may not have lived to have the copies dropped.
            tx.note(changes.Change(TOKEN, record_id, {"event": "revoked"}))
            if kind == Kind.JWT:
                tx.note(changes.Change(REVOKED_JWT, record_id, {"jwt_id": jwt_id}))
            if kind == Kind.REFRESH:
                self._cut(tx, Selection(Scope.FAMILY, family_id))

        return self._database.write(work, mutation)

    def revoke_many(self, selection: Selection, mutation: Mutation[int, Reply]) -> Reply:
        """Revoke all tokens of a selection at once; the result is how many active ones that were."""
        return self._database.write(lambda tx: self._cut(tx, selection), mutation)

    def _cut(self, tx: Transaction, selection: Selection) -> int:
        key = f"{selection.scope}:{selection.value}"
        number = tx.fetch_one(self._queries["begin_cutoff"], {"key": key}, int)
        params = {
            "key": key,
            "value": selection.value,
            # A time alone decides when there is one.
            "number": number if selection.before is None else 0,
            "before": selection.before or _NO_TIME,
        }
        found = tx.fetch_one(self._queries[f"cut_{selection.scope}"], params, as_row)
        if found is None:
            raise AssertionError("the row was locked just now")
        count, revoke_time = found
        before = selection.before or revoke_time
        tx.note(changes.Change(selection.scope, selection.value, {"before": before}))
        return int(count)

    def update(self, change: Change, mutation: Mutation[Token, Reply]) -> Reply:
        """Change a token. Raises TokenNotFoundError, TokenStateError, TokenEtagMismatchError or BadRequestError."""
        params = {
            "id": change.id,
            "fields": list(change.fields),
            "claims": Jsonb(change.claims),
            "sensitive_claims": change.sensitive_claims,
            "expire_time": change.expire_time,
            "kept": KEPT,
        }

        def work(tx: Transaction) -> Token:
            _check(tx.fetch_one(self._queries["get_locked"], params, Token), change)
            tx.execute(self._queries["update"], params)
            tx.note(changes.Change(TOKEN, change.id, {"event": "updated"}))
            changed = tx.fetch_one(self._queries["get"], params, Token)
            if changed is None:
                raise AssertionError("the row was locked just now")
            return changed

        return self._database.write(work, mutation)

    def note_uses(self, uses: Sequence[tuple[str, float]]) -> int:
        """Note that tokens were used so many seconds ago (ids of 32 digits); return of how many that was news."""
        uses = sorted(uses)
        # As texts: psycopg would look at each to make an array of them, and calls would wait for that.
        params = {
            "ids": f"{{{','.join([token_id for token_id, _ in uses])}}}",
            "agos": f"{{{','.join([str(ago) for _, ago in uses])}}}",
        }
        return self._database.execute(self._queries["see"], params)

    def revocations(self, limit: int) -> list[Revocation]:
        """Return at most `limit` revocations of each sort that matter to who verifies JWTs alone, latest first."""

        def of_many(key: str, before: datetime, revoke_time: datetime) -> Revocation:
            scope, _, value = key.partition(":")
            return Revocation(Scope(scope), value, before, revoke_time)

        def of_one(jwt_id: str, revoke_time: datetime) -> Revocation:
            return Revocation(None, jwt_id, None, revoke_time)

        def work(tx: Transaction) -> list[Revocation]:
            # In this order: a cutoff that goes in between has left its JWTs revoked one by one.
            many = tx.fetch_all(self._queries["cutoffs"], {"limit": limit}, of_many)
            return many + tx.fetch_all(self._queries["revoked_jwts"], {"limit": limit}, of_one)

        return sorted(self._database.read(work), key=lambda each: each.revoke_time, reverse=True)

    def mark_cutoffs(self, held: Callable[[], bool]) -> None:
        """Mark the tokens of older revocations one by one, and remove the revocations that nobody needs any more."""
        while held() and (cutoffs := self._database.fetch_all(self._queries["unmarked"], {}, as_row)):
            for key, number, before in cutoffs:
                scope, _, value = key.partition(":")
                of_it = {"key": key, "number": number, "before": before, "value": value, "kept": KEPT}
                while held() and self._database.execute(self._queries[f"mark_{scope}"], of_it):
                    pass
                if held():
                    self._database.execute(self._queries["marked_all"], of_it)
        while held() and self._database.execute(self._queries["drop_cutoffs"], {}):
            pass

    def purge(self) -> int:
        """Remove some tokens that are over for long; return how many."""
        return self._database.execute(self._queries["purge"], {}) or self._database.execute(
            self._queries["purge_idle"], {"kept": KEPT}
        )

    def purge_lag(self) -> float:
        """Return for how many seconds the oldest token that can be removed has been so."""
        return self._database.fetch_one(self._queries["purge_lag"], {}, float) or 0.0


def _check(token: Token | None, change: Change) -> None:
    """Raise why a token cannot be changed."""
    if token is None:
        raise TokenNotFoundError
    if change.version is not None and token.version != change.version:
        raise TokenEtagMismatchError(violations=[FieldViolation("token.etag", "is not the current one")])
    if token.state != State.ACTIVE:
        raise TokenStateError(metadata={"state": State(token.state).name.lower()})
    if "sensitive_claims" in change.fields and change.family_id != token.family_id:
        # They were sealed for that family, and would not open in this one.
        raise BadRequestError.of("token.family_id", "must be that of the token")
    if "expire_time" in change.fields and change.expire_time is None and token.kind != Kind.API_KEY:
        raise BadRequestError.of("token.expire_time", "is required")


def _rows(new: Sequence[NewToken]) -> str:
    """Return tokens as one text of JSON, without what is NULL: psycopg would look at each value of twenty arrays."""
    return orjson.dumps([_row(token) for token in new], default=_as_hex).decode()


def _row(token: NewToken) -> dict[str, Any]:
    fields = zip(NewToken._fields, token, strict=True)
    row: dict[str, Any] = {name: value for name, value in fields if value is not None}
    if token.claims:
        # They may hold integers of more than 64 bits, which orjson has no form for.
        row["claims"] = orjson.Fragment(json.dumps(token.claims))
    return row


def _as_hex(value: bytes) -> str:
    return f"\\x{value.hex()}"
