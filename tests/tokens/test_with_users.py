"""Tokens beside the users that they speak for: a change of a user is seen by the next introspection."""

from __future__ import annotations

import grpc
import pytest
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub
from kronos.users.v1 import users_pb2
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.tokens.population import is_active, issue, outcome, reason, refresh, rotate
from tests.users.permits import grant, role
from tests.users.population import create


@pytest.fixture
def users(serving: Serving) -> UsersServiceStub:
    return serving.users()


def _issue(tokens: TokensServiceStub, user_id: str) -> str:
    return issue(tokens, subject_kind=pb.SUBJECT_KIND_USER, subject=user_id).issued.secret


def _check(tokens: TokensServiceStub, text: str, permission: str, scope: str = "") -> str:
    request = pb.CheckTokenRequest(token=text, permission=permission, scope_path=scope)
    return pb.CheckOutcome.Name(tokens.CheckToken(request).outcome).removeprefix("CHECK_OUTCOME_")


def test_a_token_is_active_while_its_user_is(tokens: TokensServiceStub, users: UsersServiceStub) -> None:
    user = create(users)
    secret = _issue(tokens, user.id)
    assert is_active(tokens, secret)

    for _ in range(5):
        users.SuspendUser(users_pb2.SuspendUserRequest(id=user.id))
        assert reason(tokens, secret) == "SUBJECT_INACTIVE"
        users.ReactivateUser(users_pb2.ReactivateUserRequest(id=user.id))
        assert is_active(tokens, secret)
    users.DeleteUser(users_pb2.DeleteUserRequest(id=user.id))
    assert reason(tokens, secret) == "SUBJECT_INACTIVE"
    users.UndeleteUser(users_pb2.UndeleteUserRequest(id=user.id))
    assert is_active(tokens, secret)
    users.EraseUser(users_pb2.EraseUserRequest(id=user.id))
    assert reason(tokens, secret) == "SUBJECT_INACTIVE"


def test_a_user_that_was_never_there(tokens: TokensServiceStub) -> None:
    assert reason(tokens, _issue(tokens, "01890a5d-ac96-774b-bcce-b302099a8057")) == "SUBJECT_INACTIVE"


def test_no_exchange_for_a_suspended_user(tokens: TokensServiceStub, users: UsersServiceStub) -> None:
    user = create(users)
    secret = refresh(tokens, subject_kind=pb.SUBJECT_KIND_USER, subject=user.id).issued.secret
    users.SuspendUser(users_pb2.SuspendUserRequest(id=user.id))

    assert outcome(rotate(tokens, secret)) == "REJECTED"


def test_what_a_user_may(tokens: TokensServiceStub, users: UsersServiceStub) -> None:
    user = create(users)
    secret = _issue(tokens, user.id)
    assert _check(tokens, secret, "doc:read", "tenant/acme") == "PERMISSION_DENIED"

    grant(users, user.id, role(users, "doc:read").id, "tenant/acme")

    assert _check(tokens, secret, "doc:read", "tenant/acme") == "ALLOWED"
    assert _check(tokens, secret, "doc:read") == "PERMISSION_DENIED"
    users.SuspendUser(users_pb2.SuspendUserRequest(id=user.id))
    assert _check(tokens, secret, "doc:read", "tenant/acme") == "NOT_ACTIVE"


@pytest.mark.parametrize(
    ("permission", "scope", "field"), [("DOC!:read", "", "permission"), ("doc:read", "//", "scope_path")]
)
def test_what_is_no_permission_or_scope(
    tokens: TokensServiceStub, users: UsersServiceStub, permission: str, scope: str, field: str
) -> None:
    secret = _issue(tokens, create(users).id)

    found = refused(lambda: _check(tokens, secret, permission, scope))

    assert (found.code, [*found.fields]) == (grpc.StatusCode.INVALID_ARGUMENT.name, [field])
