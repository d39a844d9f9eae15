"""Objects of a destination under keys that only the master key opens."""

from __future__ import annotations

import secrets
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing

from kronos_db.backup.destination import Destination
from kronos_db.backup.model import BackupDamagedError, BackupKeyError
from kronos_db.backup.sealed import KEY_SIZE, seal, unseal
from kronos_db.runtime.crypto.master_key import MasterKeys, WrappedKey
from kronos_db.runtime.errors import KeyUnavailableError

_MAGIC = b"KDBK\x01"
_LENGTH = struct.Struct(">B")


class Vault:
    """Reads and writes sealed objects. Each names a data key, which lies wrapped in the destination, `keys/ID`."""

    def __init__(self, destination: Destination, master_keys: MasterKeys) -> None:
        self.destination = destination
        self._master_keys = master_keys
        self._keys: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def new_key(self, key_id: str) -> None:
        """Make a data key and store it, wrapped under the current master key."""
        key = secrets.token_bytes(KEY_SIZE)
        wrapped = self._master_keys.wrap(key, _context(key_id))
        name = wrapped.master_key_id.encode()
        self.destination.put(f"keys/{key_id}", [_MAGIC, _LENGTH.pack(len(name)), name, wrapped.ciphertext])
        with self._lock:
            self._keys[key_id] = key

    def forget_key(self, key_id: str) -> None:
        """Remove a data key: what is sealed under it is lost, copies of it included."""
        self.destination.delete(f"keys/{key_id}")
        with self._lock:
            self._keys.pop(key_id, None)

    def write(self, name: str, key_id: str, pieces: Iterable[bytes]) -> int:
        """Seal `pieces` (of CHUNK bytes at most) as object `name`; return its bytes. Durable when this returns."""
        return self.destination.put(name, seal(self.key(key_id), key_id, name, pieces))

    def read(self, name: str) -> Iterator[bytes]:
        """Return the content, authenticated piece by piece. Raises BackupDamagedError, also when it is missing."""
        try:
            source = self.destination.open(name)
        except FileNotFoundError:
            raise BackupDamagedError(f"{name} is missing.") from None
        with closing(source):
            yield from unseal(source, name, self.key)

    def key(self, key_id: str) -> bytes:
        """Return a data key. Raises BackupKeyError when the master key here does not open it."""
        with self._lock:
            if key_id in self._keys:
                return self._keys[key_id]
        key = self._unwrapped(key_id)
        with self._lock:
            return self._keys.setdefault(key_id, key)

    def check_key(self, key_id: str) -> None:
        """Open a data key anew from the destination, whatever is remembered. Raises as `key` does."""
        self._unwrapped(key_id)

    def _unwrapped(self, key_id: str) -> bytes:
        try:
            source = self.destination.open(f"keys/{key_id}")
        except FileNotFoundError:
            raise BackupDamagedError(f"The data key {key_id!r} is missing.") from None
        with closing(source):
            data = source.read(1 << 16)
        length = data[len(_MAGIC)] if data.startswith(_MAGIC) and len(data) > len(_MAGIC) else None
        if length is None:
            raise BackupDamagedError(f"keys/{key_id} is no wrapped key.")
        start = len(_MAGIC) + 1
        name, ciphertext = data[start : start + length], data[start + length :]
        try:
            wrapped = WrappedKey(name.decode("ascii"), ciphertext)
            return self._master_keys.unwrap(wrapped, _context(key_id))
        except (KeyUnavailableError, UnicodeDecodeError):
            raise BackupKeyError(
                f"keys/{key_id} does not open: it was altered, or made under another master key than the one here."
            ) from None


def _context(key_id: str) -> bytes:
    return b"kronos-db backup key\0" + key_id.encode()
