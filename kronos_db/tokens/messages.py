"""Converts between the messages of the contract `kronos.tokens.v1` and what the store knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from google.protobuf.json_format import MessageToDict
from kronos.tokens.v1 import tokens_pb2 as pb

from kronos_db.runtime.database.changes import Noted
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.identifiers import canonical_uuid
from kronos_db.runtime.timestamps import from_timestamp, set_timestamp
from kronos_db.tokens import model
from kronos_db.tokens.credentials import Secret

_MAX_CLAIMS_BYTES = 8 * 1024
UPDATABLE = ("claims", "sensitive_claims", "expire_time")
_ISSUED: Mapping[int, model.Kind] = {
    kind: kind for kind in (model.Kind.SESSION, model.Kind.REFRESH, model.Kind.API_KEY)
}


def as_message(token: model.Token) -> pb.Token:
    """Return all of a token."""
    message = pb.Token()
    fill(message, token)
    return message


def fill(message: pb.Token, token: model.Token) -> None:
    """Write all of a token into an empty message."""
    fill_introspected(message, token)
    if token.device_name:
        message.device_name = token.device_name
    if token.ip_address:
        message.ip_address = token.ip_address
    message.state = token.state  # type: ignore[assignment]  # see above
    if token.kind == model.Kind.REFRESH:
        message.access_lifetime.seconds = token.access_seconds
        message.rotation_grace.seconds = token.grace_seconds
    set_timestamp(message.last_seen_time, token.seen_time)
    if token.use_time is not None:
        set_timestamp(message.use_time, token.use_time)
    if token.revoke_time is not None:
        set_timestamp(message.revoke_time, token.revoke_time)
    message.etag = str(token.version)


def fill_introspected(message: pb.Token, token: model.Token) -> None:
    """Write what an introspection tells of a token into an empty message."""
    message.id = token.id
    message.family_id = token.family_id
    # Stored numbers are those of the contract.
    message.kind = token.kind  # type: ignore[assignment]
    message.subject_kind = token.subject_kind  # type: ignore[assignment]
    message.subject = token.subject
    message.client_id = token.client_id
    message.device_id = token.device_id
    if token.scope:
        message.scopes.extend(token.scope.split(" "))
    if token.claims:
        message.claims.update(token.claims)
    if token.sensitive_claims:
        message.sensitive_claims = token.sensitive_claims
    if token.jwt_id:
        message.jwt_id = token.jwt_id
    if token.expire_time is not None:
        set_timestamp(message.expire_time, token.expire_time)
    if token.idle_seconds is not None:
        message.idle_timeout.seconds = token.idle_seconds
    set_timestamp(message.grant_time, token.grant_time)
    set_timestamp(message.issue_time, token.issue_time)


def canonical_subject(subject: str) -> str:
    """Return a subject as it is stored: UUIDs, of users for one, in lower case."""
    return canonical_uuid(subject) or subject


def sooner(expire_time: datetime | None, seconds: int) -> datetime:
    """Return the time so many seconds from now, or `expire_time` if that is sooner."""
    lasts = datetime.now(UTC) + timedelta(seconds=seconds)
    return lasts if expire_time is None else min(lasts, expire_time)


def introspected(token: model.Token) -> bytes:
    """Return the bytes of an IntrospectTokenResponse about an active token."""
    response = pb.IntrospectTokenResponse()
    response.introspection.active = True
    fill_introspected(response.introspection.token, token)
    return response.SerializeToString()


def new_token(
    message: pb.Token, path: str, token_id: UUID, kind: model.Kind, secret: Secret | None = None
) -> model.NewToken:
    """Return the token to be stored that a request describes. Raises BadRequestError."""
    subject = _subject(message, path)
    expire_time = future(message, path)
    if expire_time is None and kind is not model.Kind.API_KEY:
        raise BadRequestError.of(f"{path}.expire_time", "is required")
    refresh = kind is model.Kind.REFRESH
    return model.NewToken(
        path=path,
        id=str(token_id),
        family_id=message.family_id,
        kind=kind,
        hash=secret.hash if secret else None,
        mark=secret.mark if secret else "",
        subject_kind=message.subject_kind,
        subject=subject,
        client_id=message.client_id,
        device_id=message.device_id,
        device_name=message.device_name or None,
        ip_address=message.ip_address or None,
        scope=" ".join(message.scopes),
        claims=claims(message, f"{path}.claims"),
        sensitive_claims=message.sensitive_claims or None,
        expire_time=expire_time,
        idle_seconds=message.idle_timeout.seconds if message.HasField("idle_timeout") else None,
        access_seconds=_seconds(message, path, "access_lifetime", model.DEFAULT_ACCESS_SECONDS) if refresh else 0,
        grace_seconds=_seconds(message, path, "rotation_grace", model.DEFAULT_GRACE_SECONDS) if refresh else 0,
    )


def issued_kind(message: pb.Token, path: str) -> model.Kind:
    """Return the kind of a token to be issued. Raises BadRequestError."""
    kind = _ISSUED.get(message.kind)
    if kind is None:
        raise BadRequestError.of(f"{path}.kind", "must be SESSION, REFRESH or API_KEY")
    return kind


def jwt_times(message: pb.Token, path: str) -> datetime | None:
    """Return the `iat` of a JWT, None when it is not given. Raises BadRequestError."""
    if not message.jwt_id:
        raise BadRequestError.of(f"{path}.jwt_id", "is required")
    issue_time = _time(message, path, "issue_time")
    if issue_time is not None and issue_time > datetime.now(UTC):
        raise BadRequestError.of(f"{path}.issue_time", "must not lie in the future")
    return issue_time


def future(message: pb.Token, path: str) -> datetime | None:
    """Return the `expire_time`, None when it is not given. Raises BadRequestError."""
    expire_time = _time(message, path, "expire_time")
    if expire_time is not None and expire_time <= datetime.now(UTC):
        raise BadRequestError.of(f"{path}.expire_time", "must lie in the future")
    return expire_time


def claims(message: pb.Token, path: str) -> Mapping[str, Any]:
    """Return the claims as JSON. Raises BadRequestError."""
    if not message.HasField("claims"):
        return {}
    try:
        found: dict[str, Any] = MessageToDict(message.claims)
    except ValueError:
        # JSON has no NaN and no infinity.
        raise BadRequestError.of(path, "numbers must be finite") from None
    size = len(json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode())
    if size > _MAX_CLAIMS_BYTES:
        raise BadRequestError.of(path, f"must not be larger than {_MAX_CLAIMS_BYTES} bytes as JSON")
    return found


def selection(request: pb.RevokeTokensRequest) -> model.Selection:
    """Return which tokens are to be revoked. Raises BadRequestError."""
    before = from_timestamp(request, "issued_before")
    if before is not None and before > datetime.now(UTC):
        raise BadRequestError.of("issued_before", "must not lie in the future")
    which = request.WhichOneof("selection")
    if which == "everything":
        if before is None:
            raise BadRequestError.of("issued_before", "is required with everything")
        return model.Selection(model.Scope.EVERYTHING, "", before)
    if which == "subject":
        return model.Selection(model.Scope.SUBJECT, canonical_subject(request.subject), before)
    if which == "family_id":
        return model.Selection(model.Scope.FAMILY, request.family_id.lower(), before)
    if which == "client_id":
        return model.Selection(model.Scope.CLIENT, request.client_id, before)
    return model.Selection(model.Scope.DEVICE, request.device_id, before)


def revocation_of(noted: Noted) -> pb.Revocation:
    """Return the revocation that a change tells of."""
    change = noted.change
    if change.kind == model.REVOKED_JWT:
        found = model.Revocation(None, change.body["jwt_id"], None, noted.time)
    else:
        before = datetime.fromisoformat(change.body["before"])
        found = model.Revocation(model.Scope(change.kind), change.record_id, before, noted.time)
    return revocation(found)


def revocation(found: model.Revocation) -> pb.Revocation:
    """Return a revocation as message."""
    message = pb.Revocation()
    if found.scope is None:
        message.jwt_id = found.value
    elif found.scope is model.Scope.EVERYTHING:
        message.everything = True
    elif found.scope is model.Scope.SUBJECT:
        message.subject = found.value
    else:
        setattr(message, f"{found.scope}_id", found.value)
    if found.issued_before is not None:
        set_timestamp(message.issued_before, found.issued_before)
    set_timestamp(message.revoke_time, found.revoke_time)
    return message


def _subject(message: pb.Token, path: str) -> str:
    if not message.subject:
        raise BadRequestError.of(f"{path}.subject", "is required")
    if message.subject_kind == pb.SUBJECT_KIND_UNSPECIFIED:
        raise BadRequestError.of(f"{path}.subject_kind", "is required")
    user_id = canonical_uuid(message.subject)
    if message.subject_kind == pb.SUBJECT_KIND_USER and user_id is None:
        raise BadRequestError.of(f"{path}.subject", "must be the UUID of a user")
    return user_id or message.subject


def _seconds(message: pb.Token, path: str, name: str, default: int) -> int:
    if not message.HasField(name):  # type: ignore[arg-type]  # one of its fields
        return default
    duration = getattr(message, name)
    if duration.nanos:
        raise BadRequestError.of(f"{path}.{name}", "must be whole seconds")
    return int(duration.seconds)


def _time(message: pb.Token, path: str, name: str) -> datetime | None:
    try:
        return from_timestamp(message, name)
    except BadRequestError as error:
        raise BadRequestError.of(f"{path}.{name}", error.violations[0].description) from None
