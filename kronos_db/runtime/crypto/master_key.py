"""Master keys, which wrap the data keys and never leave their provider: here, one file outside of the database."""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kronos_db.runtime.crypto.xaes import Xaes256Gcm
from kronos_db.runtime.errors import KeyUnavailableError

KEY_SIZE = 32

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class MasterKeyFileError(KeyUnavailableError):
    """The file of master keys cannot be used; the text is one sentence without key material."""


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A key encrypted under the master key that is named."""

    master_key_id: str
    ciphertext: bytes


class MasterKeys(Protocol):
    """What a provider of master keys can do; a key management service can stand here as well as a file.

    Every method may raise KeyUnavailableError: the provider is away, or has no master key of that id.
    """

    @property
    def current_id(self) -> str:
        """The id of the master key that wraps from now on."""

    @property
    def ids(self) -> Sequence[str]:
        """The ids of all master keys, the current one first."""

    def wrap(self, key: bytes, context: bytes) -> WrappedKey:
        """Encrypt `key` under the current master key, bound to `context`."""

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        """Return the key. Raises KeyUnavailableError when it was altered or wrapped for another context."""

    def derive(self, purpose: str, master_key_id: str | None = None) -> bytes:
        """Return 32 bytes that only this master key (default: the current one) gives for `purpose`, always the same."""


def derive_key(key: bytes, info: str) -> bytes:
    """Return 32 bytes by HKDF-SHA256 (RFC 5869) without salt, for keys that are already uniformly random."""
    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=None, info=info.encode()).derive(key)


class FileMasterKeys:
    """Master keys from a text file: per line an id, a blank and the base64 of 32 bytes; `#` begins a comment line.

    The first key is the current one, the others only unwrap. Raises MasterKeyFileError when the file is not there, may
    be read by others, or is malformed. One that belongs to root may be read by the group of who is not root.
    """

    def __init__(self, path: Path) -> None:
        keys = dict(_parse(_read_private(path), path))
        if not keys:
            raise MasterKeyFileError(f"The master key file {path} holds no key.")
        self._keys = keys
        self._ciphers = {name: Xaes256Gcm(derive_key(key, "kronos-db master key: wrap")) for name, key in keys.items()}
        self.ids: Sequence[str] = tuple(keys)
        self.current_id = self.ids[0]

    def __repr__(self) -> str:
        return f"FileMasterKeys({', '.join(self._keys)})"

    def wrap(self, key: bytes, context: bytes) -> WrappedKey:
        """Encrypt `key` under the first key of the file with XAES-256-GCM; `context` is its associated data."""
        return WrappedKey(self.current_id, self._ciphers[self.current_id].seal(key, context))

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        """Return the key. Raises KeyUnavailableError when it was altered or wrapped for another context."""
        self._require(wrapped.master_key_id)
        try:
            return self._ciphers[wrapped.master_key_id].open(wrapped.ciphertext, context)
        except InvalidTag:
            raise KeyUnavailableError(f"a wrapped key does not open under master key {wrapped.master_key_id}") from None

    def derive(self, purpose: str, master_key_id: str | None = None) -> bytes:
        """Return 32 bytes by HKDF-SHA256 from the named master key."""
        name = self.current_id if master_key_id is None else master_key_id
        self._require(name)
        return derive_key(self._keys[name], f"kronos-db master key: derive: {purpose}")

    def _require(self, name: str) -> None:
        if name not in self._keys:
            raise KeyUnavailableError(f"the master key file has no key {name}")


def create_master_key_file(path: Path) -> None:
    """Write a file with one fresh master key, mode 0600, durably and all at once.

    Raises FileExistsError, and changes nothing, when `path` exists.
    """
    line = f"mk-{secrets.token_hex(8)} {base64.b64encode(secrets.token_bytes(KEY_SIZE)).decode()}\n"
    # Written aside and then linked: a crash leaves the whole file or none, and a link never replaces one.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123
            file.write(
                "# Master keys of kronos-db. Whoever has this file can open every sealed value: keep a copy safe.\n"
            )
            file.write(line)
            file.flush()
            os.fsync(descriptor)
        os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_private(path: Path) -> str:
    try:
        # Without O_NONBLOCK a named pipe would wait here for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            # Asked of the open file, so that nobody can exchange it in between.
            status = os.fstat(file.fileno())
            mode = status.st_mode
            if not stat.S_ISREG(mode):
                raise MasterKeyFileError(f"The master key file {path} is no regular file.")
            # Secrets of Kubernetes and credentials of systemd belong to root, and let our group alone read them.
            shared = stat.S_IRGRP if status.st_uid == 0 != os.geteuid() else 0
            if mode & (stat.S_IRWXG | stat.S_IRWXO) & ~shared:
                raise MasterKeyFileError(
                    f"The master key file {path} is open to others (mode {stat.S_IMODE(mode):04o}); give it mode 0600."
                )
            return file.read().decode("ascii")
    except OSError as error:
        raise MasterKeyFileError(f"The master key file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise MasterKeyFileError(f"The master key file {path} is not ASCII text.") from None


def _parse(text: str, path: Path) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        # A line is never quoted: with its columns swapped even the id would be a key.
        place = f"The master key file {path}, line {number},"
        if len(words) != 2 or not _ID.fullmatch(words[0]):  # noqa: PLR2004
            raise MasterKeyFileError(f"{place} is not an id (letters, digits, . _ -), a blank and a key in base64.")
        name, encoded = words
        if name in seen:
            raise MasterKeyFileError(f"{place} repeats the id of a key above it.")
        seen.add(name)
        yield name, _decode_key(encoded, place)


def _decode_key(encoded: str, place: str) -> bytes:
    try:
        key = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_SIZE:
        raise MasterKeyFileError(f"{place} does not hold {KEY_SIZE} bytes in base64.")
    return key
