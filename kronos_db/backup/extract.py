"""Lays out the files of a base backup as its tar stream comes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from kronos_db.backup.tar import Member, TarReader


class Extraction:
    """A visitor of a tar stream that writes its members below `folder`. `written` counts bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self.written = 0

    def begin(self, member: Member) -> None:
        """Make the folder, or begin the file."""
        path = self._folder / member.path
        if member.folder:
            # The data directory itself is a member too.
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            self._file = path.open("xb", buffering=0)

    def data(self, piece: memoryview) -> None:
        """Write a piece of the file."""
        assert self._file is not None  # noqa: S101 - folders have no data
        while piece:
            count = self._file.write(piece)
            self.written += count
            piece = piece[count:]

    def end(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def extract(pieces: Iterable[bytes], folder: Path) -> Iterable[int]:
    """Write a tar stream below `folder`; return after each piece how many bytes were written so far."""
    folder.mkdir(mode=0o700)
    visitor = Extraction(folder)
    reader = TarReader(visitor)
    try:
        for piece in pieces:
            reader.feed(piece)
            yield visitor.written
        reader.finish()
    finally:
        visitor.end()


def sync_file_system(folder: Path) -> None:
    """Make all that was written on the file system of `folder` durable: one call for thousands of files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
