"""Deals the tests out to processes: those of a file stay together, and so do all that take a whole machine.

Tests that kill and flood fleets hold them to times, which one of them has on this machine, but not three at once.
"""

from __future__ import annotations

from xdist.scheduler.loadfile import LoadFileScheduling

_STORMY = ("tests/faults/", "tests/scale/")


class Lanes(LoadFileScheduling):
    """Hands out lanes where xdist hands out files."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "stormy" if file.startswith(_STORMY) else file
