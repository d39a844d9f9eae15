"""Tokens of the tests: each test has subjects of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from google.protobuf.timestamp_pb2 import Timestamp
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceStub

DAY = 86_400.0


def unique(prefix: str = "service") -> str:
    return f"{prefix}-{uuid4().hex}"


def in_(seconds: float) -> Timestamp:
    """The time in so many seconds."""
    found = Timestamp()
    found.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return found


def new(kind: pb.TokenKind.ValueType = pb.TOKEN_KIND_SESSION, **changes: Any) -> pb.Token:
    """A token to be issued: of a subject that is no user, for a day."""
    named: dict[str, Any] = {
        "kind": kind,
        "subject_kind": pb.SUBJECT_KIND_SERVICE,
        "subject": unique(),
        "expire_time": in_(DAY),
    }
    return pb.Token(**{**named, **changes})


def new_jwt(**changes: Any) -> pb.Token:
    """A JWT to be registered."""
    return new(pb.TOKEN_KIND_UNSPECIFIED, **{"jwt_id": unique("jti"), **changes})


def issue(tokens: TokensServiceStub, *args: Any, **changes: Any) -> pb.IssueTokenResponse:
    return tokens.IssueToken(pb.IssueTokenRequest(token=new(*args, **changes)))


def refresh(tokens: TokensServiceStub, **changes: Any) -> pb.IssueTokenResponse:
    return issue(tokens, pb.TOKEN_KIND_REFRESH, **changes)


def register(tokens: TokensServiceStub, **changes: Any) -> pb.Token:
    return tokens.RegisterJwt(pb.RegisterJwtRequest(jwt=new_jwt(**changes))).jwt


def introspect(tokens: TokensServiceStub, text: str) -> pb.Introspection:
    return tokens.IntrospectToken(pb.IntrospectTokenRequest(token=text)).introspection


def introspect_jwt(tokens: TokensServiceStub, jwt_id: str) -> pb.Introspection:
    return tokens.IntrospectToken(pb.IntrospectTokenRequest(jwt_id=jwt_id)).introspection


def is_active(tokens: TokensServiceStub, text: str) -> bool:
    return introspect(tokens, text).active


def reason(tokens: TokensServiceStub, text: str) -> str:
    """Why a token is not active, without the prefix."""
    found = introspect(tokens, text)
    assert not found.active
    return pb.InactiveReason.Name(found.reason).removeprefix("INACTIVE_REASON_")


def rotate(tokens: TokensServiceStub, text: str, **named: Any) -> pb.RotateRefreshTokenResponse:
    return tokens.RotateRefreshToken(pb.RotateRefreshTokenRequest(refresh_token=text, **named))


def outcome(answer: pb.RotateRefreshTokenResponse) -> str:
    return pb.RotationOutcome.Name(answer.outcome).removeprefix("ROTATION_OUTCOME_")


def get(tokens: TokensServiceStub, token_id: str) -> pb.Token:
    return tokens.GetToken(pb.GetTokenRequest(id=token_id)).token


def state(tokens: TokensServiceStub, token_id: str) -> str:
    return pb.TokenState.Name(get(tokens, token_id).state).removeprefix("TOKEN_STATE_")


def sessions(tokens: TokensServiceStub, subject: str, **named: Any) -> list[pb.Token]:
    return list(tokens.ListSessions(pb.ListSessionsRequest(subject=subject, **named)).sessions)


class People:
    """Stands in for what tells of users: those in `active_ids` are, and may what `allowed` holds."""

    def __init__(self) -> None:
        self.active_ids: set[str] = set()
        self.allowed: set[tuple[str, str, str]] = set()
        # Run before each answer about permissions.
        self.meanwhile: Callable[[], object] = lambda: None

    def active(self, user_ids: Any) -> frozenset[str]:
        return frozenset(user_ids) & self.active_ids

    def may(self, questions: Any) -> list[bool]:
        self.meanwhile()
        return [question in self.allowed for question in questions]

    def new(self) -> str:
        """The id of another active user."""
        user_id = str(uuid4())
        self.active_ids.add(user_id)
        return user_id
