"""SetPassword and VerifyPassword by real calls."""

from __future__ import annotations

import unicodedata
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from argon2 import PasswordHasher
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.users.population import create, get

_GOOD = "correct horse battery staple"


@pytest.fixture
def users(serving: Serving) -> UsersServiceStub:
    return serving.users()


@pytest.fixture
def user(users: UsersServiceStub) -> pb.User:
    """A user with a password."""
    user = create(users)
    return users.SetPassword(pb.SetPasswordRequest(id=user.id, password=_GOOD)).user


def _verify(users: UsersServiceStub, password: str, **key: str) -> pb.VerifyPasswordResponse:
    return users.VerifyPassword(pb.VerifyPasswordRequest(password=password, **key))


def _stored(serving: Serving, user_id: str) -> str:
    with psycopg.connect(str(serving.settings.postgres_dsn.get_secret_value())) as connection:  # type: ignore[union-attr]
        row = connection.execute("SELECT password_hash FROM users.credentials WHERE user_id = %s", [user_id]).fetchone()
    assert row is not None
    return str(row[0])


_REJECTED = pb.VerifyPasswordResponse(outcome=pb.PASSWORD_OUTCOME_REJECTED)


def test_the_right_one_is_accepted_by_each_name(users: UsersServiceStub, user: pb.User) -> None:
    for key in ({"id": user.id}, {"username": user.username.upper()}, {"email": user.email.title()}):
        found = _verify(users, _GOOD, **key)
        assert (found.outcome, found.user_id) == (pb.PASSWORD_OUTCOME_ACCEPTED, user.id)


def test_the_answer_of_setting_has_a_new_etag(users: UsersServiceStub) -> None:
    before = create(users)

    after = users.SetPassword(pb.SetPasswordRequest(id=before.id, password=_GOOD, etag=before.etag)).user

    assert after.etag != before.etag
    assert after.email == before.email
    assert get(users, before.id) == after
    found = refused(lambda: users.SetPassword(pb.SetPasswordRequest(id=before.id, password="x" * 8, etag=before.etag)))
    assert (found.code, found.reason) == ("ABORTED", "ETAG_MISMATCH")
    assert _verify(users, _GOOD, id=before.id).outcome == pb.PASSWORD_OUTCOME_ACCEPTED


def test_all_that_is_not_right_is_alike(users: UsersServiceStub, user: pb.User) -> None:
    nameless = create(users)
    gone = create(users)
    users.SetPassword(pb.SetPasswordRequest(id=gone.id, password=_GOOD))
    users.DeleteUser(pb.DeleteUserRequest(id=gone.id))

    answers = [
        _verify(users, _GOOD + "!", id=user.id),
        _verify(users, _GOOD.upper(), id=user.id),
        _verify(users, _GOOD, id=str(uuid4())),
        _verify(users, _GOOD, username="no-such-user"),
        _verify(users, _GOOD, email="no@such.user"),
        _verify(users, _GOOD, id=nameless.id),
        _verify(users, "no password hashes to this", id=nameless.id),
        _verify(users, "no password hashes to this", id=str(uuid4())),
        _verify(users, _GOOD, id=gone.id),
    ]

    assert answers == [_REJECTED] * len(answers)


def test_each_check_hashes_once_whoever_it_is_for(
    users: UsersServiceStub, user: pb.User, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    hashed: list[str] = []
    verify, make = PasswordHasher.verify, PasswordHasher.hash

    def count_verify(self: PasswordHasher, stored: Any, password: Any) -> bool:
        checked.append(stored.split("$")[3])
        return verify(self, stored, password)

    def count_hash(self: PasswordHasher, password: Any, **kw: Any) -> str:
        hashed.append("one")
        return make(self, password, **kw)

    monkeypatch.setattr(PasswordHasher, "verify", count_verify)
    monkeypatch.setattr(PasswordHasher, "hash", count_hash)
    nameless = create(users)
    gone = users.DeleteUser(pb.DeleteUserRequest(id=create(users).id)).user

    for key in (user.id, str(uuid4()), nameless.id, gone.id):
        _verify(users, "wrong password", id=key)
    _verify(users, _GOOD, id=user.id)

    # The same work with the same parameters.
    assert checked == ["m=64,t=1,p=1"] * 5
    assert hashed == []


def test_a_suspended_user_is_told_apart_only_by_the_right_password(users: UsersServiceStub, user: pb.User) -> None:
    users.SuspendUser(pb.SuspendUserRequest(id=user.id))

    right = _verify(users, _GOOD, id=user.id)
    assert (right.outcome, right.user_id) == (pb.PASSWORD_OUTCOME_SUSPENDED, user.id)
    assert _verify(users, "wrong", id=user.id) == _REJECTED


def test_a_new_password_replaces_the_old(users: UsersServiceStub, user: pb.User) -> None:
    users.SetPassword(pb.SetPasswordRequest(id=user.id, password="a new one, please"))

    assert _verify(users, _GOOD, id=user.id) == _REJECTED
    assert _verify(users, "a new one, please", id=user.id).outcome == pb.PASSWORD_OUTCOME_ACCEPTED


def test_undeleted_users_keep_theirs_and_erased_ones_do_not(users: UsersServiceStub, user: pb.User) -> None:
    users.DeleteUser(pb.DeleteUserRequest(id=user.id))
    users.UndeleteUser(pb.UndeleteUserRequest(id=user.id))
    assert _verify(users, _GOOD, id=user.id).outcome == pb.PASSWORD_OUTCOME_ACCEPTED

    users.EraseUser(pb.EraseUserRequest(id=user.id))
    create(users, id=user.id)

    assert _verify(users, _GOOD, id=user.id) == _REJECTED


def test_composed_and_decomposed_spellings_are_one(users: UsersServiceStub, user: pb.User) -> None:
    spelled = "pässwörd-né"
    users.SetPassword(pb.SetPasswordRequest(id=user.id, password=unicodedata.normalize("NFD", spelled)))

    for form in ("NFC", "NFD"):
        found = _verify(users, unicodedata.normalize(form, spelled), id=user.id)
        assert found.outcome == pb.PASSWORD_OUTCOME_ACCEPTED


@pytest.mark.parametrize("password", ["", "short77", "ü" * 3, "x" * 1025, "nul\0nul\0nul"])
def test_a_password_out_of_bounds_is_named_and_not_repeated(
    users: UsersServiceStub, user: pb.User, password: str
) -> None:
    found = refused(lambda: users.SetPassword(pb.SetPasswordRequest(id=user.id, password=password)))

    assert (found.code, found.reason, list(found.fields)) == ("INVALID_ARGUMENT", "BAD_REQUEST", ["password"])
    assert len(password) < 2 or password.encode() not in found.everything
    assert _verify(users, _GOOD, id=user.id).outcome == pb.PASSWORD_OUTCOME_ACCEPTED


def test_checks_are_checked_too(users: UsersServiceStub, user: pb.User) -> None:
    assert list(refused(lambda: _verify(users, "", id=user.id)).fields) == ["password"]
    assert list(refused(lambda: _verify(users, "x" * 1025, id=user.id)).fields) == ["password"]
    assert list(refused(lambda: _verify(users, "x")).fields) == ["key"]


def test_whose_password_cannot_be_set(users: UsersServiceStub) -> None:
    gone = users.DeleteUser(pb.DeleteUserRequest(id=create(users).id)).user

    assert (
        refused(lambda: users.SetPassword(pb.SetPasswordRequest(id=str(uuid4()), password=_GOOD))).code == "NOT_FOUND"
    )
    found = refused(lambda: users.SetPassword(pb.SetPasswordRequest(id=gone.id, password=_GOOD)))
    assert (found.code, found.reason) == ("FAILED_PRECONDITION", "USER_STATE")


def test_only_an_argon2id_hash_is_stored(serving: Serving, user: pb.User) -> None:
    assert _stored(serving, user.id).startswith("$argon2id$v=19$m=64,t=1,p=1$")


def test_a_hash_with_other_parameters_is_replaced_by_a_successful_check(
    serving: Serving, users: UsersServiceStub, user: pb.User
) -> None:
    old = PasswordHasher(time_cost=2, memory_cost=128, parallelism=1).hash(_GOOD)
    with psycopg.connect(serving.settings.postgres_dsn.get_secret_value()) as connection:  # type: ignore[union-attr]
        connection.execute("UPDATE users.credentials SET password_hash = %s WHERE user_id = %s", [old, user.id])
    etag = get(users, user.id).etag

    assert _verify(users, "wrong", id=user.id) == _REJECTED
    assert _stored(serving, user.id) == old
    assert _verify(users, _GOOD, id=user.id).outcome == pb.PASSWORD_OUTCOME_ACCEPTED

    assert "$m=64,t=1,p=1$" in _stored(serving, user.id)
    assert _verify(users, _GOOD, id=user.id).outcome == pb.PASSWORD_OUTCOME_ACCEPTED
    assert get(users, user.id).etag == etag


def test_a_damaged_hash_is_nobodys(serving: Serving, users: UsersServiceStub, user: pb.User) -> None:
    with psycopg.connect(serving.settings.postgres_dsn.get_secret_value()) as connection:  # type: ignore[union-attr]
        connection.execute("UPDATE users.credentials SET password_hash = 'x' WHERE user_id = %s", [user.id])

    assert _verify(users, _GOOD, id=user.id) == _REJECTED
