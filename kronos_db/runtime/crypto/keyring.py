"""The data keys of one domain: loaded, made when missing, found by the id that a sealed value carries."""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

from kronos_db.runtime.crypto.master_key import KEY_SIZE, MasterKeys, WrappedKey, derive_key
from kronos_db.runtime.crypto.xaes import Xaes256Gcm
from kronos_db.runtime.errors import KeyUnavailableError
from kronos_db.runtime.identifiers import uuid7

# Keys of persons that are held at once; the longest held goes first.
_FOUND_LIMIT = 4096
# Ids without a key that are remembered, and for how many seconds. While there are so many, no further unknown id is
# looked up: forged ids cost the database this many reads per so many seconds, at most.
_MISSING_LIMIT = 256
_MISSING_SECONDS = 10.0
# Seconds that a call waits for others' look-ups of unknown ids.
_LOOK_UP_SECONDS = 5.0


class Purpose(enum.StrEnum):
    """What a data key is for."""

    SEAL = "seal"
    INDEX = "index"


@dataclass(frozen=True, slots=True)
class DataKeyRow:
    """A data key as the database keeps it: wrapped. `person` is None for a key of the domain itself."""

    id: UUID
    purpose: Purpose
    person: UUID | None
    master_key_id: str
    wrapped: bytes = field(repr=False)
    create_time: datetime


class DataKeyRows(Protocol):
    """The rows of a domain's data keys. Methods may raise what the database runtime raises."""

    def load(self) -> Sequence[DataKeyRow]:
        """Return the keys of the domain itself, in any order; those of persons are left to `find`."""

    def add_first(self, row: DataKeyRow) -> DataKeyRow:
        """Insert `row` unless the domain has a key of its own for this purpose; return the one that is there now.

        Atomic: of processes that race on a first start all get the same row.
        """

    def find(self, key_id: UUID) -> DataKeyRow | None:
        """Return the key of this id, of the domain or of a person, or None."""


@dataclass(frozen=True)
class DataKey:
    """A data key, unwrapped."""

    id: UUID
    purpose: Purpose
    person: UUID | None
    key: bytes = field(repr=False)

    @functools.cached_property
    def id_bytes(self) -> bytes:
        """The id as 16 bytes."""
        return self.id.bytes

    @functools.cached_property
    def cipher(self) -> Xaes256Gcm:
        """The cipher under this key."""
        return Xaes256Gcm(self.key)


class KeyRing:
    """The data keys of one domain; usable from any thread.

    Loads the domain's keys and makes those that are missing. Raises KeyUnavailableError when one does not unwrap. The
    newest key of a purpose is the current one. `clock` is in seconds and only ages remembered misses.
    """

    def __init__(
        self, domain: str, masters: MasterKeys, rows: DataKeyRows, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._domain = domain
        self._masters = masters
        self._rows = rows
        self._clock = clock
        self._lock = threading.Lock()
        self._own: dict[bytes, DataKey] = {}
        self._found: dict[bytes, DataKey] = {}
        self._missing: dict[bytes, float] = {}
        newest = sorted(rows.load(), key=lambda row: (row.create_time, row.id))
        current = {row.purpose: self._keep(row) for row in newest if row.person is None}
        for purpose in Purpose:
            if purpose not in current:
                current[purpose] = self._keep(rows.add_first(self._fresh(purpose)))
        self._seal_key = current[Purpose.SEAL]
        self._index_key = current[Purpose.INDEX]

    def __repr__(self) -> str:
        return f"KeyRing({self._domain!r}, {len(self._own)} keys)"

    def seal_key(self) -> DataKey:
        """Return the key that seals from now on."""
        return self._seal_key

    @property
    def index_key(self) -> DataKey:
        """The key from which the keys of blind indexes and other keyed hashes are derived."""
        return self._index_key

    def subkey(self, label: str) -> bytes:
        """Return 32 bytes derived from the index key, the same for `label` in every process of the domain."""
        return derive_key(self._index_key.key, f"kronos-db data key: {label}")

    def key(self, key_id: bytes) -> DataKey | None:
        """Return the key of this id (16 bytes), or None when there is none: never was, or erased.

        Raises KeyUnavailableError when that cannot be told now: too many unknown ids of late, or a key that does not
        unwrap; also what the database runtime raises.
        """
        return self._own.get(key_id) or self._found.get(key_id) or self._look_up(key_id)

    def _look_up(self, key_id: bytes) -> DataKey | None:
        with self._locked():
            known = self._own.get(key_id) or self._found.get(key_id)
            if known or self._is_missing(key_id):
                return known
            row = self._rows.find(UUID(bytes=key_id))
            if row is None:
                self._missing[key_id] = self._clock() + _MISSING_SECONDS
                return None
            return self._keep(row)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=_LOOK_UP_SECONDS):
            raise KeyUnavailableError(f"look-ups of data keys of {self._domain} take too long")
        try:
            yield
        finally:
            self._lock.release()

    def _is_missing(self, key_id: bytes) -> bool:
        now = self._clock()
        # In order of insertion, hence of expiry.
        while self._missing and next(iter(self._missing.values())) <= now:
            del self._missing[next(iter(self._missing))]
        if key_id in self._missing:
            return True
        if len(self._missing) >= _MISSING_LIMIT:
            raise KeyUnavailableError(f"too many unknown ids of data keys of {self._domain}: not looked up")
        return False

    def _fresh(self, purpose: Purpose) -> DataKeyRow:
        key_id = uuid7()
        wrapped = self._masters.wrap(os.urandom(KEY_SIZE), self._context(key_id, purpose, None))
        return DataKeyRow(key_id, purpose, None, wrapped.master_key_id, wrapped.ciphertext, datetime.now(UTC))

    def _keep(self, row: DataKeyRow) -> DataKey:
        key = DataKey(row.id, row.purpose, row.person, self._unwrap(row))
        if row.person is None:
            self._own[key.id_bytes] = key
        else:
            if len(self._found) >= _FOUND_LIMIT:
                del self._found[next(iter(self._found))]
            self._found[key.id_bytes] = key
        return key

    def _unwrap(self, row: DataKeyRow) -> bytes:
        wrapped = WrappedKey(row.master_key_id, row.wrapped)
        try:
            return self._masters.unwrap(wrapped, self._context(row.id, row.purpose, row.person))
        except KeyUnavailableError as error:
            raise KeyUnavailableError(f"data key {row.id} of {self._domain}: {error}") from error

    def _context(self, key_id: UUID, purpose: Purpose, person: UUID | None) -> bytes:
        """Bind a wrapped key to its row: under another id, purpose, person or domain it does not unwrap."""
        return f"kronos-db data key/{self._domain}/{key_id}/{purpose}/{person or ''}".encode()
