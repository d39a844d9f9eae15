"""Finds routes of which nothing but their age tells which goes first, and routes that no request ever reaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kronos_db.routes.model import NewRoute

_MOST_OTHERS = 16


class Conflict(NamedTuple):
    """A route that loses against `others`, by name: by age alone when `ambiguous`, else always."""

    ambiguous: bool
    route: str
    others: Sequence[str]


def conflicts(routes: Sequence[NewRoute]) -> list[Conflict]:
    """Return the conflicts among `routes`, by name of the one that loses.

    Only routes with one host, one template and the same headers can conflict: else precedence tells them apart. A route
    for all methods gives way to those that name the method, so it conflicts with its like alone.
    """
    alike: dict[tuple[str, str, str], list[NewRoute]] = {}
    for route in routes:
        alike.setdefault((route.spec.get("host", ""), route.shape, route.headers), []).append(route)
    found = [conflict for group in alike.values() if len(group) > 1 for conflict in _among(group)]
    return sorted(found, key=lambda conflict: conflict.route)


def _among(group: Sequence[NewRoute]) -> Iterator[Conflict]:
    ordered = sorted(group, key=lambda route: (-_priority(route), route.name))
    # By method ("" for all): the routes before, with their priority.
    before: dict[str, list[NewRoute]] = {}
    for route in ordered:
        methods = route.spec.get("methods") or [""]
        rivals = [rival for method in methods for rival in before.get(method, ())]
        equal = _names(rival for rival in rivals if _priority(rival) == _priority(route))
        if equal:
            yield Conflict(True, route.name, equal)
        elif all(method in before for method in methods):
            yield Conflict(False, route.name, _names(iter(rivals)))
        for method in methods:
            before.setdefault(method, []).append(route)


def _names(routes: Iterator[NewRoute]) -> list[str]:
    return sorted({route.name for route in routes})[:_MOST_OTHERS]


def _priority(route: NewRoute) -> int:
    priority: int = route.spec.get("priority", 0)
    return priority
