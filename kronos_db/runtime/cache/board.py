"""A board in memory shared by the serving processes of one machine: when what was last changed.

Time is told in moments (`runtime.database.changes.moment`): numbers that order the snapshots of one database. A copy
carries the moment at which its reading began; for what it depends on, the board holds the moment after the last change.
The copy is current when its own moment is not the smaller one. Tags share the places of the board by their hash: two in
one place cost copies, never truth.
"""

from __future__ import annotations

import base64
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4
from zlib import crc32

PLACES = 1 << 16
# What a bundle of tags begins with; no tag does.
_BUNDLE = "#"

# Words of eight bytes before the places. The epoch grows whenever all copies are void; until VALID_UNTIL (nanoseconds
# of CLOCK_BOOTTIME) others wait for us before they acknowledge a change; LATEST is the latest moment known here.
_EPOCH, _VALID_UNTIL, _LATEST, _SINCE, _TIMELINE, _IDENTITY, _HOLDER_HIGH, _HOLDER_LOW = range(8)
_HEADER = 16
_WORD = 8
_MASK = (1 << 64) - 1
_PLACE = struct.Struct(">H")


class Mark(NamedTuple):
    """Where a reading began: the epoch and the moment."""

    epoch: int
    moment: int


def now() -> int:
    """Return nanoseconds that go on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Board:
    """The board in the file `path`, which the first process makes; None is a board of this process alone."""

    def __init__(self, path: Path | None = None) -> None:
        size = (_HEADER + PLACES) * _WORD
        # Threads of one process are not kept apart by locks on files.
        self._lock = threading.Lock()
        self._file = None if path is None else _open(path)
        self._keeper = None if path is None else _open(path.with_suffix(".keeper"))
        if self._file is None:
            memory = mmap.mmap(-1, size)
        else:
            os.ftruncate(self._file, size)
            memory = mmap.mmap(self._file, size)
        # Aligned words are read and written whole by the processor.
        self._words = memoryview(memory).cast("Q")
        with self._locked():
            if not self._words[_HOLDER_LOW]:
                self._words[_HOLDER_HIGH], self._words[_HOLDER_LOW] = divmod(uuid4().int, 1 << 64)

    @property
    def holder(self) -> UUID:
        """Names all processes that share the board."""
        return UUID(int=self._words[_HOLDER_HIGH] << 64 | self._words[_HOLDER_LOW])

    @property
    def epoch(self) -> int:
        """Grows whenever all copies become void."""
        return self._words[_EPOCH]

    @property
    def identity(self) -> tuple[int, int]:
        """Which database, and which history of it, the moments are of."""
        return self._words[_IDENTITY], self._words[_TIMELINE]

    @property
    def since(self) -> int:
        """The moment from which on changes have been followed."""
        return self._words[_SINCE]

    @staticmethod
    def places(tags: Iterable[str]) -> tuple[int, ...]:
        """Return the places of `tags`, and of those in bundles: the same in every process."""
        places = []
        for tag in tags:
            if tag[0] == _BUNDLE:
                places += [_HEADER + place for (place,) in _PLACE.iter_unpack(base64.b64decode(tag[1:]))]
            else:
                places.append(_HEADER + crc32(tag.encode()) % PLACES)
        return tuple(places)

    @staticmethod
    def bundle(tags: Iterable[str]) -> str:
        """Return one tag that stands for all of `tags` in a change of many records: their places, without names."""
        places = sorted({crc32(tag.encode()) % PLACES for tag in tags})
        return _BUNDLE + base64.b64encode(struct.pack(f">{len(places)}H", *places)).decode()

    def mark(self) -> Mark | None:
        """Return what a reading that begins now carries; None when nothing may be kept."""
        words = self._words
        epoch = words[_EPOCH]
        # In this order: a new epoch is valid only once its latest moment is there.
        if words[_VALID_UNTIL] <= now():
            return None
        moment = words[_LATEST]
        return Mark(epoch, moment) if words[_EPOCH] == epoch else None

    def is_current(self, mark: Mark, places: Sequence[int], at: int) -> bool:
        """Tell whether nothing at `places` changed since `mark`; `at` is `now()`."""
        words = self._words
        epoch, moment = mark
        if words[_VALID_UNTIL] <= at or words[_EPOCH] != epoch:
            return False
        for place in places:
            if words[place] > moment:
                return False
        # Had the epoch changed meanwhile, the places might be those of another history.
        return words[_EPOCH] == epoch

    def begin(self, moment: int, identity: int, timeline: int) -> int:
        """Void all copies and begin anew: changes are followed from `moment` on. Returns the new epoch."""
        with self._locked():
            self._void()
            # Moments of another history may lie on either side of ours.
            self._words[_HEADER:] = memoryview(bytes(PLACES * _WORD)).cast("Q")
            self._words[_SINCE] = self._words[_LATEST] = moment
            self._words[_IDENTITY], self._words[_TIMELINE] = identity & _MASK, timeline
            return self._words[_EPOCH]

    def extend(self, epoch: int, until: int) -> bool:
        """Let copies of `epoch` be answered from until `until`; False when the epoch is over."""
        with self._locked():
            if self._words[_EPOCH] != epoch:
                return False
            self._words[_VALID_UNTIL] = until
            return True

    def change(self, tags: Iterable[str], moment: int, timeline: int) -> None:
        """Take note of a change that is visible at `moment`: copies of before are refused from now on.

        When the timeline is another one everything is void: the database is a former standby, and its moments may go
        back behind ours.
        """
        places = self.places(tags)
        words = self._words
        with self._locked():
            if timeline != words[_TIMELINE]:
                self._void()
                return
            for place in places:
                words[place] = max(words[place], moment)
            words[_LATEST] = max(words[_LATEST], moment)

    def advance(self, moment: int) -> None:
        """Take note that everything visible at `moment` has been taken note of."""
        with self._locked():
            self._words[_LATEST] = max(self._words[_LATEST], moment)

    def void(self) -> None:
        """Void all copies, until somebody begins anew."""
        with self._locked():
            self._void()

    def try_keep(self) -> bool:
        """Try to become the one process that keeps the board; whoever does stays it until its end."""
        if self._keeper is None:
            return True
        try:
            fcntl.flock(self._keeper, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def resign(self) -> None:
        """Let another process keep the board."""
        if self._keeper is not None:
            fcntl.flock(self._keeper, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the files. The memory stays until nobody looks at it any more."""
        for descriptor in (self._file, self._keeper):
            if descriptor is not None:
                os.close(descriptor)

    def _void(self) -> None:
        self._words[_VALID_UNTIL] = 0
        self._words[_EPOCH] += 1

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude other writers: of this process and of the others. The kernel opens the lock of one that died."""
        with self._lock:
            if self._file is None:
                yield
                return
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
