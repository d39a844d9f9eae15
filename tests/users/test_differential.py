"""Checks, explanations and both listings against an evaluator that goes by the definitions: no difference.

Ten thousand models are judged in memory; those that are judged in PostgreSQL are 500 here, and 10,000 by `make soak`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
import pytest

from kronos_db.runtime.cache.board import Board, now
from kronos_db.runtime.cache.engine import Cache
from kronos_db.runtime.cache.memory import Memory
from kronos_db.runtime.database.database import Database
from kronos_db.users.access import Access
from kronos_db.users.access_store import AccessStore, Holder, HolderListing, Holding
from kronos_db.users.account import Account, Held, State
from kronos_db.users.permissions import around, covering, place, scope_of
from kronos_db.users.role_graph import Node, RoleGraph
from kronos_db.users.roles import Grant
from tests.parts.domain import opened, settings_of
from tests.parts.watching import LIMIT, SOAK
from tests.users.random_models import (
    Model,
    contains,
    covers,
    judged,
    latest,
    listed,
    questions,
    random_model,
    random_question,
)

MODELS = 10_000
STORED = 10_000 if SOAK else 250
BATCH = 100


@pytest.fixture(scope="module")
def board() -> Board:
    """Return a board on which nothing ever changes: copies may be answered from."""
    board = Board()
    board.extend(board.begin(1, 1, 1), now() + 3_600_000_000_000)
    return board


def access_to(store: AccessStore, board: Board) -> Access:
    return Access(store, Cache(board, Memory(1 << 24), None))


class InMemory(AccessStore):
    """Answers as PostgreSQL would, of one model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._nodes = [
            Node(number, role.id, role.id, role.parents, role.permissions) for number, role in enumerate(model.roles)
        ]

    def holdings(self, user_ids: Sequence[str], known: bytes) -> tuple[list[Holding], list[Node]]:
        found = []
        for number, (user_id, state) in enumerate(self._model.users):
            if user_id in user_ids:
                grants = [
                    f"{grant.role} {place(grant.scope)}"
                    for grant in self._model.grants
                    if grant.user == number and not grant.expired
                ]
                found.append(Holding(user_id, state, " ".join(grants) or None, None))
        return found, [node for node in self._nodes if not _has_bit(known, node.number)]

    def account(self, user_id: str) -> Account | None:
        number = [each for each, _ in self._model.users].index(user_id)
        graph = RoleGraph()
        graph.add(self._nodes)
        held = [
            Held(grant.role, _stored(self._model, number, grant))
            for grant in self._model.grants
            if grant.user == number and not grant.expired
        ]
        return Account(State(self._model.users[number][1]), held, graph)


def _has_bit(bits: bytes, number: int) -> bool:
    return number < 8 * len(bits) and bool(bits[number // 8] >> number % 8 & 1)


def _stored(model: Model, user: int, grant: Any) -> Grant:
    ends = grant.expire_time
    where = place(grant.scope)
    assert where is not None
    return Grant(grant.id, model.users[user][0], model.roles[grant.role].id, where, ends, 1, ends, ends)


def assert_checks_agree(model: Model, access: Access) -> None:
    asked = list(questions(model))
    answers = access.may([(model.users[user][0], permission, scope) for user, permission, scope in asked])
    for (user, permission, scope), answer in zip(asked, answers, strict=True):
        assert answer == bool(judged(model, user, permission, scope)), (model, user, permission, scope)


def assert_single_checks_agree(model: Model, access: Access, chance: random.Random, count: int) -> None:
    for user, permission, scope in (random_question(model, chance) for _ in range(count)):
        wanted, where = covering(permission), place(scope)
        assert wanted is not None
        assert where is not None
        expected = bool(judged(model, user, permission, scope))
        assert access.allows(model.users[user][0], wanted, where) == expected, (model, user, permission, scope)


def assert_accounts_agree(model: Model, store: AccessStore, chance: random.Random) -> None:
    for user, (user_id, _) in enumerate(model.users):
        account = store.account(user_id)
        assert account is not None
        for scope in (None, chance.choice(["", "a", "a/b", "a/b/c", "c"])):
            permissions = account.permissions(None if scope is None else place(scope))
            found = {(permission, scope_of(where)): until for (permission, where), until in permissions.items()}
            assert found == listed(model, user, scope), (model, user, scope)
            assert list(permissions) == sorted(permissions)
        for _ in range(5):
            _, permission, scope = random_question(model, chance)
            assert_explanation(model, account, user, permission, scope)


def assert_explanation(model: Model, account: Account, user: int, permission: str, scope: str) -> None:
    wanted, where = covering(permission), place(scope)
    assert wanted is not None
    assert where is not None
    way = account.explain(wanted, where)
    allowing = judged(model, user, permission, scope)
    if way is None:
        assert not allowing, (model, user, permission, scope)
        return
    longest = [grant for grant in allowing if grant.expire_time == latest(allowing)]
    assert way.grant.id == min(grant.id for grant in longest)
    roles = {role.id: role for role in model.roles}
    ids = [node.id for node in way.roles]
    for child, parent in itertools.pairwise(ids):
        assert parent in [model.roles[each].id for each in roles[child].parents]
    assert ids[0] == way.grant.role_id
    assert way.permission in roles[ids[-1]].permissions
    assert covers(way.permission, permission)
    assert contains(scope_of(way.grant.place), scope)


def test_ten_thousand_models_in_memory(board: Board) -> None:
    chance = random.Random(20)
    for _ in range(MODELS):
        model = random_model(chance)
        store = InMemory(model)
        assert_single_checks_agree(model, access_to(store, board), chance, 20)
        assert_accounts_agree(model, store, chance)


@pytest.fixture(scope="module")
def database(admin_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with opened(settings_of(tmp_path_factory.mktemp("differential"), admin_dsn)) as database:
        yield database


def fill(connection: psycopg.Connection[Any], models: Sequence[Model]) -> None:
    """Put models into an empty database, past the rules of the calls: some grants have expired."""
    connection.execute("TRUNCATE users.users, users.roles RESTART IDENTITY CASCADE")
    with connection.cursor() as cursor:
        cursor.executemany(
            """INSERT INTO users.users (id, username, username_key, display_name, attributes, state, create_time,
            update_time, delete_time)
            VALUES (%(id)s::text::uuid, %(id)s::text, %(id)s::text, '', '{}', %(state)s, now(), now(), %(gone)s)""",
            [
                {"id": user_id, "state": 2 if state == "S" else 1, "gone": "now" if state == "D" else None}
                for model in models
                for user_id, state in model.users
            ],
        )
        cursor.executemany(
            """INSERT INTO users.roles (id, name, name_key, description, permissions, create_time, update_time)
            VALUES (%(id)s::text::uuid, %(id)s::text, %(id)s::text, '', %(permissions)s, now(), now())""",
            [{"id": role.id, "permissions": list(role.permissions)} for model in models for role in model.roles],
        )
        cursor.executemany(
            """INSERT INTO users.role_parents SELECT role.number, parent.number FROM users.roles AS role,
            users.roles AS parent WHERE role.id = %s AND parent.id = %s""",
            [(role.id, model.roles[each].id) for model in models for role in model.roles for each in role.parents],
        )
        cursor.executemany(
            """INSERT INTO users.grants (user_id, id, role, scope, expire_time, create_time, update_time)
            SELECT %s, %s, number, %s, %s, now(), now() FROM users.roles WHERE id = %s""",
            [
                (model.users[g.user][0], g.id, place(g.scope), g.expire_time, model.roles[g.role].id)
                for model in models
                for g in model.grants
            ],
        )


def holders(store: AccessStore, permission: str, scope: str, size: int) -> dict[str, Any]:
    """Return all holders, read page by page."""
    wanted, where = covering(permission), place(scope)
    assert wanted is not None
    assert where is not None
    found: list[Holder] = []
    while True:
        after = found[-1].user_id if found else None
        page = store.holders(HolderListing(sorted(wanted), around(where), after, size))
        found += page
        if len(page) < size:
            assert [each.user_id for each in found] == sorted({each.user_id for each in found})
            return {each.user_id: each.expire_time for each in found}


def held_by(models: Sequence[Model], permission: str, scope: str) -> Mapping[str, Any]:
    """Return the holders by the definitions."""
    return {
        user_id: latest(grants)
        for model in models
        for user, (user_id, _) in enumerate(model.users)
        if (grants := judged(model, user, permission, scope))
    }


@pytest.mark.soak
@pytest.mark.timeout(LIMIT + 60)
def test_models_in_postgresql(admin_dsn: str, database: Database, board: Board) -> None:
    chance = random.Random(4)
    store = AccessStore(database)
    with psycopg.connect(admin_dsn, autocommit=True) as connection:
        for _ in range(STORED // BATCH):
            models = [random_model(chance) for _ in range(BATCH)]
            fill(connection, models)
            access = access_to(store, board)
            for model in models:
                assert_checks_agree(model, access)
                assert_accounts_agree(model, store, chance)
            for _, permission, scope in (random_question(models[0], chance) for _ in range(12)):
                expected = held_by(models, permission, scope)
                assert holders(store, permission, scope, chance.choice([7, 50, 1000])) == expected
