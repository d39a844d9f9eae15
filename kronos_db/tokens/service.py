"""TokensService: checks what the contract cannot say, calls the store, converts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import grpc
import structlog
from kronos.tokens.v1 import tokens_pb2 as pb
from kronos.tokens.v1.tokens_pb2_grpc import TokensServiceServicer

from kronos_db.runtime.cache.engine import Cache
from kronos_db.runtime.crypto.sealing import Sealer
from kronos_db.runtime.database.changes import Noted
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.errors import BadRequestError, FieldViolation
from kronos_db.runtime.etags import version_of
from kronos_db.runtime.feed.feed import Feed
from kronos_db.runtime.feed.subscription import Wanted
from kronos_db.runtime.identifiers import uuid7
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.outlet import CallOutlet, pushes
from kronos_db.runtime.paging import PageTokens, page_size
from kronos_db.runtime.update_masks import masked_fields
from kronos_db.tokens import messages, model
from kronos_db.tokens.credentials import Credentials, Presented, Secret
from kronos_db.tokens.introspection import Examined, Introspection
from kronos_db.tokens.model import Kind, NewToken, Token
from kronos_db.tokens.store import TokensStore
from kronos_db.tokens.uses import Uses

# Revocations of before that a watcher is told of: those that have one message each bear some 100 bytes.
MOST_IN_SNAPSHOT = 10_000
_SECRET_FIELD = "kronos.tokens.v1.IssuedToken.secret"  # noqa: S105  # a name
_SESSIONS = (Kind.SESSION, Kind.REFRESH)
_REVOCATIONS = Wanted(frozenset({model.REVOKED_JWT, *model.Scope}))
_log = structlog.get_logger(__name__)


class TokensService(TokensServiceServicer):
    """The handlers of the contract `kronos.tokens.v1`."""

    def __init__(
        self,
        store: TokensStore,
        credentials: Credentials,
        introspection: Introspection,
        *,
        access: model.Access,
        sealer: Sealer,
        page_tokens: PageTokens,
        feed: Feed,
    ) -> None:
        self._store = store
        self._credentials = credentials
        self.introspection = introspection
        self._examine = introspection.examine
        self._access = access
        self._sealer = sealer
        self._page_tokens = page_tokens
        self._feed = feed

    def IssueToken(self, request: pb.IssueTokenRequest, context: grpc.ServicerContext) -> pb.IssueTokenResponse:
        """Make a token, and of a refresh token its access token."""
        kind = messages.issued_kind(request.token, "token")
        token_id = uuid7()
        secrets = [self._credentials.make(kind, token_id)]
        new = [messages.new_token(request.token, "token", token_id, kind, secrets[0])]
        if kind is Kind.REFRESH:
            access_id = uuid7()
            secrets.append(self._credentials.make(Kind.ACCESS, access_id))
            new.append(_access_of(new[0], access_id, secrets[1]))
        call = Call.of(context)

        def reply(tokens: list[Token]) -> pb.IssueTokenResponse:
            response = pb.IssueTokenResponse()
            for field, token, secret in zip((response.issued, response.access), tokens, secrets, strict=False):
                self._fill_issued(field, token, secret, call)
            return response

        return self._store.add(new, call.mutation(pb.IssueTokenResponse, reply))

    def RegisterJwt(self, request: pb.RegisterJwtRequest, context: grpc.ServicerContext) -> pb.RegisterJwtResponse:
        """Store one JWT."""
        new = self._new_jwt(request.jwt, "jwt")
        mutation: Mutation[list[Token], pb.RegisterJwtResponse] = Call.of(context).mutation(
            pb.RegisterJwtResponse, lambda tokens: pb.RegisterJwtResponse(jwt=messages.as_message(tokens[0]))
        )
        return self._store.add([new], mutation)

    def BatchRegisterJwts(
        self, request: pb.BatchRegisterJwtsRequest, context: grpc.ServicerContext
    ) -> pb.BatchRegisterJwtsResponse:
        """Store all JWTs or none."""
        new = [self._new_jwt(jwt, f"jwts[{index}]") for index, jwt in enumerate(request.jwts)]
        mutation: Mutation[list[Token], pb.BatchRegisterJwtsResponse] = Call.of(context).mutation(
            pb.BatchRegisterJwtsResponse,
            lambda tokens: pb.BatchRegisterJwtsResponse(jwts=[messages.as_message(token) for token in tokens]),
        )
        return self._store.add(new, mutation)

    def IntrospectToken(
        self, request: pb.IntrospectTokenRequest, context: grpc.ServicerContext
    ) -> pb.IntrospectTokenResponse:
        """Tell whether a token is active."""
        reason, answer, sealed = self._examine(request.token) if request.token else self._examined(request)
        if reason:
            response = pb.IntrospectTokenResponse()
            _fill_inactive(response.introspection, reason, context)
            return response
        # The chain passes bytes on.
        return pb.IntrospectTokenResponse.FromString(answer) if sealed else answer  # type: ignore[return-value]

    def BatchIntrospectTokens(
        self, request: pb.BatchIntrospectTokensRequest, context: grpc.ServicerContext
    ) -> pb.BatchIntrospectTokensResponse:
        """Tell of each token whether it is active."""
        keys = [(each.jwt_id, True) if each.jwt_id else (each.token, False) for each in request.requests]
        response = pb.BatchIntrospectTokensResponse()
        for reason, answer, _ in self.introspection.examine_many(keys):
            if reason:
                _fill_inactive(response.introspections.add(), reason, context)
            else:
                response.MergeFromString(answer)
        return response

    def CheckToken(self, request: pb.CheckTokenRequest, context: grpc.ServicerContext) -> pb.CheckTokenResponse:
        """Tell whether a token is active and its user may do something."""
        found = self._examined(request)
        response = pb.CheckTokenResponse()
        if found.reason:
            return _not_active(response, found.reason, context)
        response.introspection.CopyFrom(pb.IntrospectTokenResponse.FromString(found.answer).introspection)
        token = response.introspection.token
        response.outcome = self._outcome(token, request)
        # A token that is active now was so when the user was asked about: none comes back to life.
        again = self._examined(request)
        if again.reason:
            response.Clear()
            return _not_active(response, again.reason, context)
        return response

    def RotateRefreshToken(
        self, request: pb.RotateRefreshTokenRequest, context: grpc.ServicerContext
    ) -> pb.RotateRefreshTokenResponse:
        """Exchange a refresh token."""
        call = Call.of(context)
        presented = self._credentials.read(request.refresh_token)
        if not isinstance(presented, Presented):
            return pb.RotateRefreshTokenResponse(outcome=pb.ROTATION_OUTCOME_REJECTED)
        exchange = self._exchange(presented, request.refresh_token)

        def reply(rotation: model.Rotation) -> pb.RotateRefreshTokenResponse:
            return self._rotated(rotation, request.refresh_token, call)

        response = self._store.rotate(exchange, call.mutation(pb.RotateRefreshTokenResponse, reply))
        if response.outcome == pb.ROTATION_OUTCOME_REUSE_DETECTED:
            _log.warning("a refresh token was presented again: its family is revoked", token=presented.id)
        return response

    def RevokeToken(self, request: pb.RevokeTokenRequest, context: grpc.ServicerContext) -> pb.RevokeTokenResponse:
        """Revoke one token; an unknown one is fine."""
        mutation: Mutation[None, pb.RevokeTokenResponse] = Call.of(context).mutation(
            pb.RevokeTokenResponse, lambda _: pb.RevokeTokenResponse()
        )
        if request.HasField("id"):
            return self._store.revoke(request.id, None, mutation)
        if request.HasField("jwt_id"):
            return self._store.revoke(self._credentials.jwt_record_id(request.jwt_id), None, mutation)
        presented = self._credentials.read(request.token)
        if not isinstance(presented, Presented):
            return pb.RevokeTokenResponse()
        return self._store.revoke(presented.id, presented.hash, mutation)

    def RevokeTokens(self, request: pb.RevokeTokensRequest, context: grpc.ServicerContext) -> pb.RevokeTokensResponse:
        """Revoke all tokens of something."""
        mutation: Mutation[int, pb.RevokeTokensResponse] = Call.of(context).mutation(
            pb.RevokeTokensResponse, lambda count: pb.RevokeTokensResponse(revoked_count=count)
        )
        return self._store.revoke_many(messages.selection(request), mutation)

    def ListSessions(self, request: pb.ListSessionsRequest, context: grpc.ServicerContext) -> pb.ListSessionsResponse:
        """Return one page."""
        size = page_size(request.page_size)
        after = self._page_tokens.read(request)
        kinds: Sequence[int] = request.kinds or _SESSIONS
        subject = messages.canonical_subject(request.subject)
        # One more than the page tells whether another page follows.
        tokens = self._store.list_page(subject, kinds, after[0] if after else None, size + 1)
        more = len(tokens) > size
        last = [tokens[size - 1].id] if more else []
        response = pb.ListSessionsResponse(next_page_token=self._page_tokens.make(request, last) if more else "")
        for token in tokens[:size]:
            messages.fill(response.sessions.add(), token)
        return response

    def GetToken(self, request: pb.GetTokenRequest, context: grpc.ServicerContext) -> pb.GetTokenResponse:
        """Return one token."""
        by_id = request.HasField("id")
        token = self._store.get(request.id if by_id else self._credentials.jwt_record_id(request.jwt_id))
        if token is None:
            raise model.TokenNotFoundError
        return pb.GetTokenResponse(token=messages.as_message(token))

    def UpdateToken(self, request: pb.UpdateTokenRequest, context: grpc.ServicerContext) -> pb.UpdateTokenResponse:
        """Change the fields that the mask names."""
        fields = masked_fields(request.update_mask, request.token, "token", messages.UPDATABLE)
        token = request.token
        change = model.Change(
            id=token.id.lower(),
            family_id=token.family_id,
            version=version_of(token.etag, "token.etag"),
            fields=fields,
            claims=messages.claims(token, "token.claims"),
            sensitive_claims=token.sensitive_claims or None,
            expire_time=messages.future(token, "token") if "expire_time" in fields else None,
        )
        mutation: Mutation[Token, pb.UpdateTokenResponse] = Call.of(context).mutation(
            pb.UpdateTokenResponse, lambda changed: pb.UpdateTokenResponse(token=messages.as_message(changed))
        )
        return self._store.update(change, mutation)

    @pushes
    def WatchRevocations(self, request: pb.WatchRevocationsRequest, outlet: CallOutlet) -> None:
        """Push revocations: first those of before, then each as it comes."""
        self._feed.watch(outlet, request.resume_token, _REVOCATIONS, _watched, opening=self._revoked_before)

    def _revoked_before(self) -> Iterator[pb.WatchRevocationsResponse]:
        found = self._store.revocations(MOST_IN_SNAPSHOT + 1)
        response = pb.WatchRevocationsResponse(snapshot_truncated=len(found) > MOST_IN_SNAPSHOT)
        response.snapshot.extend(messages.revocation(each) for each in found[:MOST_IN_SNAPSHOT])
        return iter([response])

    def _new_jwt(self, message: pb.Token, path: str) -> NewToken:
        issue_time = messages.jwt_times(message, path)
        token_id = UUID(self._credentials.jwt_record_id(message.jwt_id))
        new = messages.new_token(message, path, token_id, Kind.JWT)
        return new._replace(issue_time=issue_time, jwt_id=message.jwt_id)

    def _examined(self, request: Any) -> Examined:
        if request.HasField("jwt_id"):
            return self.introspection.examine_jwt(request.jwt_id)
        return self._examine(request.token)

    def _outcome(self, token: pb.Token, request: pb.CheckTokenRequest) -> pb.CheckOutcome.ValueType:
        if not set(request.required_scopes) <= set(token.scopes):
            return pb.CHECK_OUTCOME_SCOPE_MISSING
        if token.subject_kind != pb.SUBJECT_KIND_USER:
            return pb.CHECK_OUTCOME_PERMISSION_DENIED
        try:
            allowed = self._access.may([(token.subject, request.permission, request.scope_path)])[0]
        except BadRequestError as error:
            raise _of_this_request(error) from error
        return pb.CHECK_OUTCOME_ALLOWED if allowed else pb.CHECK_OUTCOME_PERMISSION_DENIED

    def _exchange(self, presented: Presented, text: str) -> model.Exchange:
        refresh_id, access_id = uuid7(), uuid7()
        refresh = self._credentials.succeed(Kind.REFRESH, refresh_id, text)
        access = self._credentials.succeed(Kind.ACCESS, access_id, text)
        return model.Exchange(
            presented.id,
            presented.hash,
            str(refresh_id),
            refresh.hash,
            str(access_id),
            access.hash,
            self._credentials.mark,
            self.introspection.subject_is_active(presented.id),
        )

    def _rotated(self, rotation: model.Rotation, text: str, call: Call) -> pb.RotateRefreshTokenResponse:
        # The numbers are those of the contract.
        response = pb.RotateRefreshTokenResponse(outcome=rotation.outcome)  # type: ignore[arg-type]
        for field, token in ((response.refresh, rotation.refresh), (response.access, rotation.access)):
            if token is not None:
                secret = self._credentials.succeed(Kind(token.kind), UUID(token.id), text, rotation.mark)
                self._fill_issued(field, token, secret, call)
        return response

    def _fill_issued(self, field: pb.IssuedToken, token: Token, secret: Secret, call: Call) -> None:
        field.id = token.id
        # Sealed: the answer is kept for repeats of the call.
        if not call.validate_only:
            field.secret = sealed = self._sealer.seal_text(secret.text, _SECRET_FIELD, token.id)
            call.sealed[sealed] = secret.text
        messages.fill(field.token, token)


def new_introspection(
    store: TokensStore, credentials: Credentials, cache: Cache, access: model.Access, uses: Uses
) -> Introspection:
    """Return what examines tokens, with answers as this service gives them."""
    return Introspection(
        credentials, load=store.load, cache=cache, access=access, answer=messages.introspected, uses=uses
    )


def _of_this_request(error: BadRequestError) -> BadRequestError:
    """Return what is wrong with a question about a user as what is wrong with CheckTokenRequest."""
    fields = {"permission": "permission", "scope": "scope_path"}
    return BadRequestError(
        str(error),
        violations=[
            FieldViolation(fields.get(found.field.rpartition(".")[2], found.field), found.description)
            for found in error.violations
        ],
    )


def _access_of(refresh: NewToken, access_id: UUID, secret: Secret) -> NewToken:
    """Return the access token that is issued with a refresh token."""
    return refresh._replace(
        id=str(access_id),
        hash=secret.hash,
        mark=secret.mark,
        kind=Kind.ACCESS,
        expire_time=messages.sooner(refresh.expire_time, refresh.access_seconds),
        idle_seconds=None,
        access_seconds=0,
        grace_seconds=0,
    )


def _fill_inactive(message: pb.Introspection, reason: int, context: object) -> None:
    if Call.of(context).may(model.REASON_CAPABILITY):
        message.reason = reason  # type: ignore[assignment]  # the numbers are those of the contract
    else:
        message.SetInParent()


def _not_active(response: pb.CheckTokenResponse, reason: int, context: object) -> pb.CheckTokenResponse:
    response.outcome = pb.CHECK_OUTCOME_NOT_ACTIVE
    _fill_inactive(response.introspection, reason, context)
    return response


def _watched(noted: Noted | None, resume_token: str) -> pb.WatchRevocationsResponse:
    """Return what is told of a change; of none, how far the stream is."""
    response = pb.WatchRevocationsResponse(resume_token=resume_token)
    if noted is not None:
        response.revocation.CopyFrom(messages.revocation_of(noted))
    return response
