"""PostgreSQL's backup manifest: the files of a backup with their checksums, and what WAL it needs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from kronos_db.backup.model import BackupDamagedError, Lsn

NAME = "backup_manifest"
# How the files of a backup are summed up.
ALGORITHM = "CRC32C"
_CHECKSUM = re.compile(rb'"Manifest-Checksum": "([0-9a-f]{64})"\}\s*\Z')


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file: its bytes, and its CRC-32C as PostgreSQL writes it: hexadecimal digits, the last byte first."""

    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest says (PostgreSQL documentation, chapter "Backup Manifest Format")."""

    system_identifier: int
    timeline: int
    start_lsn: Lsn
    stop_lsn: Lsn
    files: Mapping[str, ManifestFile]


def parse(data: bytes) -> Manifest:
    """Read a manifest and check its own checksum. Raises BackupDamagedError."""
    found = _CHECKSUM.search(data)
    # It covers all lines before the last one.
    if (
        found is None
        or hashlib.sha256(data[: data.rindex(b"\n", 0, found.start()) + 1]).hexdigest() != found[1].decode()
    ):
        raise BackupDamagedError("The manifest of the base backup does not match its own checksum.")
    try:
        content = json.loads(data)
        ranges = content["WAL-Ranges"]
        return Manifest(
            int(content["System-Identifier"]),
            int(ranges[-1]["Timeline"]),
            Lsn.parse(ranges[0]["Start-LSN"]),
            Lsn.parse(ranges[-1]["End-LSN"]),
            {_path(file): ManifestFile(int(file["Size"]), _checksum(file)) for file in content["Files"]},
        )
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise BackupDamagedError("The manifest of the base backup cannot be read.") from error


def _checksum(file: Mapping[str, str]) -> str:
    if file["Checksum-Algorithm"] != ALGORITHM:
        raise ValueError
    return file["Checksum"]


def _path(file: Mapping[str, str]) -> str:
    if "Path" in file:
        return file["Path"]
    return bytes.fromhex(file["Encoded-Path"]).decode("utf-8", "surrogateescape")
