"""Makes the secrets that a server needs before its first start: master key, role secret, and a first caller."""

from __future__ import annotations

import os
import secrets
import tomllib
from pathlib import Path

from kronos_db.runtime.crypto.master_key import FileMasterKeys, create_master_key_file
from kronos_db.runtime.interceptors.authentication import hash_token, new_token

MASTER_KEY, ROLE_SECRET, TOKEN, ACCESS = "master.key", "role.secret", "token", "access.toml"


def make_secrets(folder: Path, caller: str) -> list[Path]:
    """Make what is missing in `folder`, each of mode 0600; return what was made.

    `master.key` is for KRONOS_DB_MASTER_KEY_FILE, `role.secret` for KRONOS_DB_POSTGRES_ROLE_SECRET_FILE, `access.toml`
    for KRONOS_DB_ACCESS_FILE: it lets `caller` call everything, by the bearer token in `token`. Where there is an
    access file, no token is made. Raises MasterKeyFileError, and OSError when the folder cannot be written.
    """
    missing = [name for name in (MASTER_KEY, ROLE_SECRET, TOKEN, ACCESS) if not (folder / name).exists()]
    if MASTER_KEY in missing:
        create_master_key_file(folder / MASTER_KEY)
    if ROLE_SECRET in missing:
        write_private(folder / ROLE_SECRET, secrets.token_urlsafe(32))
    if ACCESS not in missing:
        # A new token would be one that the file does not know.
        missing = [name for name in missing if name != TOKEN]
    if TOKEN in missing:
        write_private(folder / TOKEN, new_token())
    if ACCESS in missing:
        write_access(folder, caller)
    return [folder / name for name in missing]


def write_access(folder: Path, caller: str) -> None:
    """Write the access file anew, with `caller` alone in it."""
    write_private(folder / ACCESS, f'[callers.{caller}]\ntokens = ["{_hashed(folder)}"]\nallow = ["*"]\nmay = ["*"]\n')


def knows_token(folder: Path) -> bool:
    """Return whether the access file has the token of the folder."""
    callers = tomllib.loads((folder / ACCESS).read_text(encoding="utf-8")).get("callers", {})
    return _hashed(folder) in [token for entry in callers.values() for token in entry.get("tokens", [])]


def _hashed(folder: Path) -> str:
    return hash_token((folder / TOKEN).read_text(encoding="ascii"), FileMasterKeys(folder / MASTER_KEY))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
