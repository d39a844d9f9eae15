"""Who may do what, answered from copies: the question that everything asks.

There are two kinds of copies. What a user holds, one for each user: its state and its grants in force, each as the
number of a role and a place. And what roles give, one graph for all users, which any change of a role makes old as a
whole. So a change to a user drops that user's copy alone, a change of a role drops no user's, and neither holds what is
in the other. The copy of the user is taken first, and the graph is looked at after it:
docs/decisions/0010-permissions.md says why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from kronos_db.runtime.cache.board import Mark, now
from kronos_db.runtime.cache.engine import Cache, Loaded, Rules
from kronos_db.runtime.database.changes import tag
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.identifiers import canonical_uuid
from kronos_db.runtime.workers import Gatherer
from kronos_db.users.access_store import AccessStore, Holding
from kronos_db.users.account import State
from kronos_db.users.model import GRANT_KIND, KIND, ROLE_KIND
from kronos_db.users.permissions import covering, place
from kronos_db.users.role_graph import RoleGraph

# A graph that holds more permissions, all roles together, makes way for a new one: some ten megabytes.
_MOST_PERMISSIONS = 200_000
_ACTIVE = ord(State.ACTIVE)
_NOBODY: frozenset[str] = frozenset()


class Question(NamedTuple):
    """Whether a user has one of the permissions `wanted` in a place. The id is a UUID in lower case."""

    user_id: str
    wanted: frozenset[str]
    where: str


class _Kept(NamedTuple):
    graph: RoleGraph
    # Where the first reading for it began; None for a graph that may not be kept.
    mark: Mark | None


class Access:
    """Decisions of one process, for this domain and for others: they may name users by whatever their callers sent."""

    def __init__(self, store: AccessStore, cache: Cache) -> None:
        self._store = store
        self._board = cache.board
        self._holdings = cache.kind(Rules("what users hold"), self._load)
        # Roles that are not in the graph, by number: gathered for the calls that need them.
        self._roles: Gatherer[str, frozenset[str]] = Gatherer(self._load_roles)
        self._places = self._board.places([tag(ROLE_KIND)])
        self._kept = _Kept(RoleGraph(), None)

    def active(self, user_ids: Sequence[str]) -> frozenset[str]:
        """Return those of `user_ids` that exist, are active and not deleted."""
        if len(user_ids) == 1:
            # The question of every look at a token: gathered with what others ask.
            key = canonical_uuid(user_ids[0])
            copy = self._holdings.get(key) if key else None
            return frozenset(user_ids) if copy is not None and copy[0] == _ACTIVE else _NOBODY
        keys = {user_id: key for user_id in user_ids if (key := canonical_uuid(user_id))}
        copies = self._copies_of(set(keys.values()))
        return frozenset(user_id for user_id, key in keys.items() if (copy := copies.get(key)) and copy[0] == _ACTIVE)

    def may(self, questions: Sequence[tuple[str, str, str]]) -> list[bool]:
        """Return for each user id, permission and scope whether the user may do that there; who is unknown may not.

        Raises BadRequestError for what is no permission or no scope.
        """
        asked = [_question(index, *each) for index, each in enumerate(questions)]
        answers = iter(self.allow_all([question for question in asked if question.user_id]))
        return [bool(question.user_id) and next(answers) for question in asked]

    def allows(self, user_id: str, wanted: frozenset[str], where: str) -> bool:
        """Return whether a user, by its id in lower case, has one of the permissions `wanted` in a place."""
        copy = self._holdings.get(user_id)
        if copy is None:
            return False
        missing: list[str] = []
        if _allows(copy, self._current().gives, wanted, where, missing):
            return True
        return any(not wanted.isdisjoint(self._roles.get(number) or ()) for number in missing)

    def allow_all(self, questions: Sequence[Question]) -> list[bool]:
        """Return the answer to each question; what is not known of any of them is read at once."""
        copies = self._copies_of({question.user_id for question in questions})
        gives: Mapping[str, frozenset[str]] = self._current().gives
        missing: list[str] = []
        answers = _answers(questions, copies, gives, missing)
        if not missing:
            return answers
        gives = {**gives, **self._load_roles(list(set(missing)))}
        return _answers(questions, copies, gives, missing)

    def _copies_of(self, user_ids: Collection[str]) -> Mapping[str, bytes]:
        if len(user_ids) != 1:
            return self._holdings.get_many(list(user_ids))
        # What is asked of one user is gathered with what others ask.
        (user_id,) = user_ids
        copy = self._holdings.get(user_id)
        return {} if copy is None else {user_id: copy}

    def _current(self) -> RoleGraph:
        """Return the graph, a new and empty one when it is old or too large."""
        graph, mark = self._kept
        if mark is not None and self._board.is_current(mark, self._places, now()) and graph.size < _MOST_PERMISSIONS:
            return graph
        # The mark first: what is read into this graph is read after it.
        kept = self._kept = _Kept(RoleGraph(), self._board.mark())
        return kept.graph

    def _load(self, user_ids: Sequence[str]) -> Mapping[str, Loaded]:
        """Read what users hold for the cache, and in the same round trip the roles that are not in the graph."""
        graph = self._current()
        holdings, nodes = self._store.holdings(user_ids, graph.known)
        graph.add(nodes)
        return {each.user_id: _loaded(each) for each in holdings}

    def _load_roles(self, numbers: Sequence[str]) -> Mapping[str, frozenset[str]]:
        graph = self._current()
        asked = [int(number) for number in numbers]
        graph.add(self._store.roles(asked, graph.known), gone=asked)
        return {number: graph.gives[number] for number in numbers}


def _allows(  # of each check: as few steps as can be
    copy: bytes, gives: Mapping[str, frozenset[str]], wanted: frozenset[str], where: str, missing: list[str]
) -> bool:
    """Return whether what a user holds allows it; roles that would have to be known for it are added to `missing`."""
    if copy[0] != _ACTIVE:
        return False
    parts = copy.decode().split(" ")
    for number, there in zip(parts[1::2], parts[2::2], strict=True):
        if where.startswith(there):
            given = gives.get(number)
            if given is None:
                missing.append(number)
            elif not wanted.isdisjoint(given):
                return True
    return False


def _answers(
    questions: Iterable[Question],
    copies: Mapping[str, bytes],
    gives: Mapping[str, frozenset[str]],
    missing: list[str],
) -> list[bool]:
    get = copies.get
    return [
        (copy := get(user_id)) is not None and _allows(copy, gives, wanted, where, missing)
        for user_id, wanted, where in questions
    ]


def _loaded(holding: Holding) -> Loaded:
    copy = f"{holding.state} {holding.grants}" if holding.grants else holding.state
    return Loaded(copy.encode(), (tag(KIND, holding.user_id), tag(GRANT_KIND, holding.user_id)), holding.seconds)


def _question(index: int, user_id: str, permission: str, scope: str) -> Question:
    wanted, where = covering(permission), place(scope)
    if wanted is None:
        raise BadRequestError.of(f"questions[{index}].permission", "is no permission")
    if where is None:
        raise BadRequestError.of(f"questions[{index}].scope", "is no scope")
    # A text that is no UUID names nobody.
    return Question(canonical_uuid(user_id) or "", wanted, where)
