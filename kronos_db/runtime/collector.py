"""Keeps Python's collector of cycles out of the way: off while a process imports, and then blind for what stays.

A start makes a hundred thousand objects and hardly any garbage, and the collector looked at them again and again: a
fifth of the processor time of the imports.
"""

from __future__ import annotations

import gc

# So many more objects than were given back have it look for cycles; Python's own number is 700. More than a large
# request or a table of routes is made of: one look at those takes 50 ms under load, while all calls stand still.
_OBJECTS = 100_000


def pause() -> None:
    """Collect nothing until `resume`."""
    gc.disable()


def resume() -> None:
    """Collect once, and from now on: a start may wait for PostgreSQL for hours, and fail to connect all the while."""
    gc.collect()
    gc.set_threshold(_OBJECTS)
    gc.enable()


def spare() -> None:
    """Never look again at what stands now."""
    gc.freeze()
