"""Roles and what they inherit, in memory: what each of them gives, and by which way."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Key = TypeVar("Key")


class Node(NamedTuple):
    """A role: the short number that grants name it by, the numbers of its parents, and its own permissions."""

    number: int
    id: str
    name: str
    parents: Sequence[int]
    permissions: Sequence[str]


class RoleGraph:
    """What some roles give. Every role in it is there with all that it inherits from.

    Roles are only added: who has a graph may read it while another thread adds.
    """

    def __init__(self) -> None:
        # What each role gives, its own and inherited, by its number in digits. A role that is gone gives nothing.
        self.gives: dict[str, frozenset[str]] = {}
        # A bit for the number of each role that is in `gives`, as get_bit of PostgreSQL reads it.
        self.known = b""
        # How many permissions are held, all roles together.
        self.size = 0
        self._nodes: dict[int, Node] = {}
        self._lock = threading.Lock()

    def add(self, nodes: Iterable[Node], gone: Iterable[int] = ()) -> None:
        """Add roles, with all that they inherit from unless that is there; `gone` are numbers that no role has."""
        with self._lock:
            fresh = {node.number: node for node in nodes if node.number not in self._nodes}
            self._nodes |= fresh
            gives = {number: self._given_by(number) for number in fresh}
            gives |= {number: frozenset() for number in gone if number not in self._nodes}
            self.size += sum(map(len, gives.values()))
            # Only now may others see them, when nothing is missing.
            self.gives |= {str(number): given for number, given in gives.items()}
            self.known = _with_bits(self.known, gives)

    def way(self, number: int, wanted: frozenset[str]) -> tuple[list[Node], str] | None:
        """Return a shortest way from a role to one that carries a permission of `wanted`, and that permission."""
        nodes = self._nodes
        for way in _ways(number, {key: node.parents for key, node in nodes.items()}):
            carried = wanted.intersection(nodes[way[-1]].permissions)
            if carried:
                return [nodes[each] for each in way], min(carried)
        return None

    def _given_by(self, number: int) -> frozenset[str]:
        nodes = self._nodes
        seen, ahead = {number}, [number]
        for each in ahead:
            further = [parent for parent in nodes[each].parents if parent not in seen]
            seen.update(further)
            ahead += further
        return frozenset(permission for each in ahead for permission in nodes[each].permissions)


def way_to(start: Iterable[Key], goal: Key, parents: Mapping[Key, Sequence[Key]]) -> list[Key] | None:
    """Return a shortest way from one of `start` to `goal` by `parents`, None when there is none."""
    ways = (way for each in start for way in _ways(each, parents) if way[-1] == goal)
    return min(ways, key=len, default=None)


def _ways(start: Key, parents: Mapping[Key, Sequence[Key]]) -> Iterable[list[Key]]:
    """Yield the shortest way to each that `start` leads to, nearest first; the first is that to itself."""
    seen = {start}
    ahead = deque([[start]])
    while ahead:
        way = ahead.popleft()
        yield way
        for parent in parents.get(way[-1], ()):
            if parent not in seen:
                seen.add(parent)
                ahead.append([*way, parent])


def _with_bits(bits: bytes, numbers: Iterable[int]) -> bytes:
    numbers = list(numbers)
    grown = bytearray(max([len(bits), *(number // 8 + 1 for number in numbers)]))
    grown[: len(bits)] = bits
    for number in numbers:
        grown[number // 8] |= 1 << number % 8
    return bytes(grown)
