"""UsersService: checks what the contract cannot say, calls the store, converts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, get_args

import grpc
from google.protobuf.json_format import MessageToDict
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceServicer

from kronos_db.runtime.cache.engine import Cache, Kind, Loaded, Rules
from kronos_db.runtime.crypto.normalization import caseless
from kronos_db.runtime.database.changes import Noted, tag
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.etags import version_of
from kronos_db.runtime.feed.feed import Feed
from kronos_db.runtime.feed.subscription import Wanted
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.outlet import CallOutlet, pushes
from kronos_db.runtime.paging import PageTokens, page_size
from kronos_db.runtime.timestamps import from_timestamp, set_timestamp
from kronos_db.runtime.update_masks import masked_fields
from kronos_db.users import model
from kronos_db.users.access import Access
from kronos_db.users.access_store import AccessStore
from kronos_db.users.check_service import CheckHandlers
from kronos_db.users.grant_store import GrantStore
from kronos_db.users.passwords import Passwords
from kronos_db.users.role_service import RoleHandlers
from kronos_db.users.role_store import RoleStore
from kronos_db.users.store import UsersStore

_MAX_ATTRIBUTES_BYTES = 16 * 1024
_UPDATABLE = ("username", "email", "phone", "display_name", "attributes")
_ORDERS = {
    pb.USER_ORDER_UNSPECIFIED: model.Order.OLDEST_FIRST,
    pb.USER_ORDER_CREATE_TIME_ASC: model.Order.OLDEST_FIRST,
    pb.USER_ORDER_CREATE_TIME_DESC: model.Order.NEWEST_FIRST,
    pb.USER_ORDER_USERNAME_ASC: model.Order.USERNAME_ASCENDING,
    pb.USER_ORDER_USERNAME_DESC: model.Order.USERNAME_DESCENDING,
}
_STATES: Mapping[int, pb.UserState.ValueType] = {
    model.State.ACTIVE: pb.USER_STATE_ACTIVE,
    model.State.SUSPENDED: pb.USER_STATE_SUSPENDED,
}
_EVENTS = {event.value: pb.UserEvent.Value(f"USER_EVENT_{event.name}") for event in model.Event}
_KINDS: Mapping[int, str] = {
    pb.WATCHED_KIND_USERS: model.KIND,
    pb.WATCHED_KIND_GRANTS: model.GRANT_KIND,
    pb.WATCHED_KIND_ROLES: model.ROLE_KIND,
}
# Every answer that holds the changed user has the same shape.
Changed = TypeVar(
    "Changed",
    pb.UpdateUserResponse,
    pb.SuspendUserResponse,
    pb.ReactivateUserResponse,
    pb.DeleteUserResponse,
    pb.UndeleteUserResponse,
    pb.SetPasswordResponse,
)


class Stores(NamedTuple):
    """What the service asks and tells."""

    users: UsersStore
    roles: RoleStore
    grants: GrantStore
    access: AccessStore


class UsersService(RoleHandlers, CheckHandlers, UsersServiceServicer):
    """The handlers of the contract `kronos.users.v1`: those of users here, the others in the modules of the bases."""

    def __init__(
        self,
        stores: Stores,
        access: Access,
        passwords: Passwords,
        *,
        page_tokens: PageTokens,
        cache: Cache,
        feed: Feed,
    ) -> None:
        RoleHandlers.__init__(self, stores.roles, stores.grants, page_tokens)
        CheckHandlers.__init__(self, access, stores.access, page_tokens)
        self._store = stores.users
        self._passwords = passwords
        self._page_tokens = page_tokens
        self._feed = feed
        # Users as messages on the wire, sealed: what goes into an answer, and what may be kept anywhere.
        self._users: Mapping[model.Key, Kind] = {
            key: cache.kind(Rules(f"users by {key}"), partial(self._load, key)) for key in get_args(model.Key)
        }
        # Dear to read and the same for all who ask; any change of any user makes them old.
        self._pages = cache.kind(Rules("pages of users", lifetime=60.0, remote=True), self._load_pages)

    def CreateUser(self, request: pb.CreateUserRequest, context: grpc.ServicerContext) -> pb.CreateUserResponse:
        """Create one user."""
        new = _named(_new_user(request.user, "user"))
        mutation: Mutation[list[model.User], pb.CreateUserResponse] = Call.of(context).mutation(
            pb.CreateUserResponse, lambda users: pb.CreateUserResponse(user=_message(users[0]))
        )
        return self._store.create([new], mutation)

    def BatchCreateUsers(
        self, request: pb.BatchCreateUsersRequest, context: grpc.ServicerContext
    ) -> pb.BatchCreateUsersResponse:
        """Create all users or none."""
        new = [_named(_new_user(user, f"users[{index}]")) for index, user in enumerate(request.users)]
        mutation: Mutation[list[model.User], pb.BatchCreateUsersResponse] = Call.of(context).mutation(
            pb.BatchCreateUsersResponse,
            lambda users: pb.BatchCreateUsersResponse(users=[_message(user) for user in users]),
        )
        return self._store.create(new, mutation)

    def GetUser(self, request: pb.GetUserRequest, context: grpc.ServicerContext) -> pb.GetUserResponse:
        """Return one user."""
        key, value = _key(request)
        user = self._users[key].get(value)
        if user is None:
            raise model.UserNotFoundError
        response = pb.GetUserResponse()
        response.user.MergeFromString(user)
        return response

    def BatchGetUsers(
        self, request: pb.BatchGetUsersRequest, context: grpc.ServicerContext
    ) -> pb.BatchGetUsersResponse:
        """Return the users that exist and name the ids that do not."""
        ids = [text.lower() for text in request.ids]
        found = self._users["id"].get_many(ids)
        response = pb.BatchGetUsersResponse(missing_ids=[user_id for user_id in ids if user_id not in found])
        add = response.users.add
        for user_id in ids:
            if user_id in found:
                add().MergeFromString(found[user_id])
        return response

    def ListUsers(self, request: pb.ListUsersRequest, context: grpc.ServicerContext) -> pb.ListUsersResponse:
        """Return one page."""
        page = self._pages.get(_as_key(request))
        if page is None:
            raise AssertionError("a page is always there, if empty")
        return pb.ListUsersResponse.FromString(page)

    def UpdateUser(self, request: pb.UpdateUserRequest, context: grpc.ServicerContext) -> pb.UpdateUserResponse:
        """Change the fields that the mask names."""
        fields = masked_fields(request.update_mask, request.user, "user", _UPDATABLE)
        values = _new_user(request.user, "user")
        if "username" in fields:
            _named(values)
        change = model.Change(values.id, version_of(request.user.etag, "user.etag"), fields, values)
        return self._store.update(change, _changed(context, pb.UpdateUserResponse))

    def SuspendUser(self, request: pb.SuspendUserRequest, context: grpc.ServicerContext) -> pb.SuspendUserResponse:
        """Suspend an active user."""
        return self._change_state(request, model.SUSPEND, _changed(context, pb.SuspendUserResponse))

    def ReactivateUser(
        self, request: pb.ReactivateUserRequest, context: grpc.ServicerContext
    ) -> pb.ReactivateUserResponse:
        """Reactivate a suspended user."""
        return self._change_state(request, model.REACTIVATE, _changed(context, pb.ReactivateUserResponse))

    def DeleteUser(self, request: pb.DeleteUserRequest, context: grpc.ServicerContext) -> pb.DeleteUserResponse:
        """Soft-delete a user."""
        try:
            return self._change_state(request, model.DELETE, _changed(context, pb.DeleteUserResponse))
        except model.UserStateError as error:
            # The one state that is not deleted from is deleted.
            raise model.UserNotFoundError from error

    def UndeleteUser(self, request: pb.UndeleteUserRequest, context: grpc.ServicerContext) -> pb.UndeleteUserResponse:
        """Bring a soft-deleted user back."""
        return self._change_state(request, model.UNDELETE, _changed(context, pb.UndeleteUserResponse))

    def EraseUser(self, request: pb.EraseUserRequest, context: grpc.ServicerContext) -> pb.EraseUserResponse:
        """Remove a user for good."""
        mutation: Mutation[model.User, pb.EraseUserResponse] = Call.of(context).mutation(
            pb.EraseUserResponse, lambda _user: pb.EraseUserResponse()
        )
        return self._store.erase(request.id.lower(), version_of(request.etag, "etag"), mutation)

    def SetPassword(self, request: pb.SetPasswordRequest, context: grpc.ServicerContext) -> pb.SetPasswordResponse:
        """Hash and keep a password."""
        hashed = self._passwords.hash(request.password)
        mutation = _changed(context, pb.SetPasswordResponse)
        return self._store.set_password_hash(request.id.lower(), version_of(request.etag, "etag"), hashed, mutation)

    def VerifyPassword(
        self, request: pb.VerifyPasswordRequest, context: grpc.ServicerContext
    ) -> pb.VerifyPasswordResponse:
        """Check a password in the same time whoever it is for."""
        credential = self._store.credential(*_key(request))
        verdict = self._passwords.check(request.password, credential.password_hash if credential else None)
        if credential is None or credential.deleted or not verdict.matches:
            return pb.VerifyPasswordResponse(outcome=pb.PASSWORD_OUTCOME_REJECTED)
        if verdict.upgraded and credential.password_hash:
            self._store.upgrade_password_hash(credential.user_id, credential.password_hash, verdict.upgraded)
        active = credential.state == model.State.ACTIVE
        outcome = pb.PASSWORD_OUTCOME_ACCEPTED if active else pb.PASSWORD_OUTCOME_SUSPENDED
        return pb.VerifyPasswordResponse(outcome=outcome, user_id=credential.user_id)

    @pushes
    def WatchUsers(self, request: pb.WatchUsersRequest, outlet: CallOutlet) -> None:
        """Push changes of users, grants and roles."""
        self._feed.watch(outlet, request.resume_token, _wanted(request), _watched)

    def _load(self, key: model.Key, values: Sequence[str]) -> Mapping[str, Loaded]:
        """Read users for the cache: each depends on itself alone, under whichever name it was asked for."""
        users = self._store.get_many(key, values)
        return {
            value: Loaded(_message(user).SerializeToString(), (tag(model.KIND, user.id),))
            for value, user in users.items()
        }

    def _load_pages(self, keys: Sequence[str]) -> Mapping[str, Loaded]:
        pages = {key: self._page(pb.ListUsersRequest.FromString(_from_key(key))) for key in keys}
        return {key: Loaded(page.SerializeToString(), (tag(model.KIND),)) for key, page in pages.items()}

    def _page(self, request: pb.ListUsersRequest) -> pb.ListUsersResponse:
        size = page_size(request.page_size)
        listing = self._listing(request, size + 1)
        users = self._store.list_page(listing)
        # One more than the page tells whether another page follows.
        more = len(users) > size
        last = listing.order.key_of(users[size - 1]) if more else []
        response = pb.ListUsersResponse(next_page_token=self._page_tokens.make(request, last) if more else "")
        for user in users[:size]:
            _fill(response.users.add(), user)
        return response

    def _change_state(
        self, request: Any, transition: model.Transition, mutation: Mutation[model.User, Changed]
    ) -> Changed:
        return self._store.change_state(request.id.lower(), version_of(request.etag, "etag"), transition, mutation)

    def _listing(self, request: pb.ListUsersRequest, limit: int) -> model.Listing:
        only_deleted = request.state == pb.USER_STATE_DELETED
        undeleted_state = request.state in {pb.USER_STATE_ACTIVE, pb.USER_STATE_SUSPENDED}
        everything = request.show_deleted and not undeleted_state
        return model.Listing(
            limit=limit,
            order=_ORDERS[request.order],
            state=model.State(request.state) if undeleted_state else None,
            deleted=True if only_deleted else None if everything else False,
            create_time_from=from_timestamp(request, "create_time_from"),
            create_time_until=from_timestamp(request, "create_time_until"),
            username_prefix=caseless(request.username_prefix),
            after=self._page_tokens.read(request),
        )


def _changed(context: grpc.ServicerContext, answer: type[Changed]) -> Mutation[model.User, Changed]:
    return Call.of(context).mutation(answer, lambda user: answer(user=_message(user)))


def _wanted(request: pb.WatchUsersRequest) -> Wanted:
    if request.user_ids and pb.WATCHED_KIND_ROLES in request.kinds:
        raise BadRequestError.of("kinds", "must not name roles beside user_ids: a role belongs to no user")
    kinds = frozenset(_KINDS[kind] for kind in request.kinds or _KINDS)
    return Wanted(kinds, frozenset(user_id.lower() for user_id in request.user_ids))


def _watched(noted: Noted | None, resume_token: str) -> pb.WatchUsersResponse:
    """Return what is told of a change; of none, how far the stream is."""
    response = pb.WatchUsersResponse(resume_token=resume_token)
    if noted is not None:
        kind, record_id, body = noted.change.kind, noted.change.record_id, noted.change.body
        change = response.change
        if kind == model.ROLE_KIND:
            change.role_id = record_id
        else:
            change.user_id = record_id
        if kind == model.GRANT_KIND:
            change.grant_id, change.role_id = body["grant_id"], body["role_id"]
        change.event = _EVENTS[body["event"]]
        change.etag = str(body["version"])
        set_timestamp(change.change_time, noted.time)
    return response


def _key(request: pb.GetUserRequest | pb.VerifyPasswordRequest) -> tuple[model.Key, str]:
    """Return by which of its names a user is asked for, in the form in which it is stored."""
    if request.HasField("id"):
        return "id", request.id.lower()
    if request.HasField("email"):
        return "email", request.email
    return "username", caseless(request.username)


def _as_key(request: pb.ListUsersRequest) -> str:
    return request.SerializeToString(deterministic=True).decode("latin-1")


def _from_key(key: str) -> bytes:
    return key.encode("latin-1")


def _new_user(user: pb.User, path: str) -> model.NewUser:
    return model.NewUser(
        path=path,
        id=user.id.lower(),
        username=user.username,
        username_key=caseless(user.username),
        email=user.email or None,
        phone=user.phone or None,
        display_name=user.display_name,
        attributes=_attributes(user, f"{path}.attributes"),
    )


def _named(new: model.NewUser) -> model.NewUser:
    # Not a rule of the contract: an update without the username in its mask may leave it empty.
    if not new.username_key:
        raise BadRequestError.of(f"{new.path}.username", "must not be empty")
    return new


def _attributes(user: pb.User, path: str) -> dict[str, Any]:
    if not user.HasField("attributes"):
        return {}
    try:
        found: dict[str, Any] = MessageToDict(user.attributes)
    except ValueError:
        # JSON has no NaN and no infinity.
        raise BadRequestError.of(path, "numbers must be finite") from None
    size = len(json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode())
    if size > _MAX_ATTRIBUTES_BYTES:
        raise BadRequestError.of(path, f"must not be larger than {_MAX_ATTRIBUTES_BYTES} bytes as JSON")
    return found


def _message(user: model.User) -> pb.User:
    message = pb.User()
    _fill(message, user)
    return message


def _fill(message: pb.User, user: model.User) -> None:
    """Write `user` into an empty message: in place and without detours, since answers hold up to a thousand."""
    user_id, username, _, email, phone, display_name, attributes, state, version, created, updated, deleted = user
    message.id = user_id
    message.username = username
    if email:
        message.email = email
    if phone:
        message.phone = phone
    if display_name:
        message.display_name = display_name
    message.state = pb.USER_STATE_DELETED if deleted else _STATES[state]
    message.etag = str(version)
    set_timestamp(message.create_time, created)
    set_timestamp(message.update_time, updated)
    if attributes:
        message.attributes.update(attributes)
    if deleted is not None:
        set_timestamp(message.delete_time, deleted)
