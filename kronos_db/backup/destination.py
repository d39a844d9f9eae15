"""Where backups lie: what a destination can do, and which one a URL names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from kronos_db.backup.model import DestinationError


@dataclass(frozen=True, slots=True)
class Stored:
    """An object in a destination: its name, its bytes, and when it was put there (UTC)."""

    name: str
    size: int
    modified: datetime


class Source(Protocol):
    """An object that is read from its beginning to its end."""

    def read(self, size: int) -> bytes:
        """Return `size` bytes, or less at the end only."""

    def close(self) -> None:
        """Let go of it."""


class Destination(Protocol):
    """Objects by name: parts of ASCII letters, digits, `.`, `_` and `-`, with `/` between them.

    Every method may raise DestinationError. Names that begin with a dot are the destination's own.
    """

    @property
    def url(self) -> str:
        """What `open_destination` makes the same destination of."""

    def put(self, name: str, pieces: Iterable[bytes]) -> int:
        """Store an object, whole and durable when this returns, or not at all; return its bytes. May replace one."""

    def open(self, name: str) -> Source:
        """Open an object. Raises FileNotFoundError when there is none."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """Return all objects whose names begin with `prefix`, a name with `/` behind it, in no order."""

    def delete(self, name: str) -> None:
        """Remove an object if it is there."""

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Hold the lock `name` for a while. Raises BackupBusyError when it is held. Ends with its process."""

    def clean(self) -> None:
        """Remove what unfinished puts of more than a day ago left."""


def open_destination(url: str) -> Destination:
    """Return the destination of `url`: a folder's path, `file:///folder`, or `s3://bucket/prefix?endpoint=URL`.

    Credentials for object storage come from where the AWS SDK looks for them, never from the URL. Raises
    DestinationError when the URL names neither, or the library for it is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        try:
            from kronos_db.backup.objects import ObjectStorage  # noqa: PLC0415 - an extra, and slow to import
        except ImportError:
            raise DestinationError("Object storage needs boto3: pip install 'kronos-db[s3]'.") from None
        return ObjectStorage(url)
    from kronos_db.backup.directory import Directory  # noqa: PLC0415 - beside its sibling

    if parts.scheme == "file" and not parts.netloc:
        return Directory(Path(unquote(parts.path)))
    if not parts.scheme:
        return Directory(Path(url))
    raise DestinationError(f"{url!r} is neither a folder nor s3://bucket/prefix.")
