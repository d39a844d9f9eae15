"""The handlers of roles and grants: part of UsersService."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from kronos.users.v1 import roles_pb2 as pb

from kronos_db.runtime.crypto.normalization import caseless
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.etags import version_of
from kronos_db.runtime.identifiers import uuid7_text
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.paging import PageTokens, page_size
from kronos_db.runtime.timestamps import from_timestamp, set_timestamp
from kronos_db.runtime.update_masks import masked_fields
from kronos_db.users.grant_store import GrantListing, GrantStore
from kronos_db.users.permissions import place, scope_of
from kronos_db.users.role_store import RoleStore
from kronos_db.users.roles import (
    Grant,
    NewGrant,
    NewRole,
    Removal,
    Role,
    RoleChange,
    RoleNotFoundError,
)

_UPDATABLE = ("name", "description", "permissions", "parent_ids")
RoleAnswer = TypeVar("RoleAnswer", pb.CreateRoleResponse, pb.UpdateRoleResponse)
GrantAnswer = TypeVar("GrantAnswer", pb.GrantRoleResponse, pb.UpdateGrantResponse)


class RoleHandlers:
    """Roles, and who has them."""

    def __init__(self, roles: RoleStore, grants: GrantStore, page_tokens: PageTokens) -> None:
        self._roles = roles
        self._grants = grants
        self._role_page_tokens = page_tokens

    def CreateRole(self, request: pb.CreateRoleRequest, context: object) -> pb.CreateRoleResponse:
        """Create one role."""
        new = _named(_new_role(request.role, uuid7_text()))
        return self._roles.create(new, _role_mutation(context, pb.CreateRoleResponse))

    def GetRole(self, request: pb.GetRoleRequest, context: object) -> pb.GetRoleResponse:
        """Return one role."""
        if request.HasField("id"):
            role = self._roles.get("id", request.id.lower())
        else:
            role = self._roles.get("name", caseless(request.name))
        if role is None:
            raise RoleNotFoundError
        return pb.GetRoleResponse(role=_role_message(role))

    def ListRoles(self, request: pb.ListRolesRequest, context: object) -> pb.ListRolesResponse:
        """Return one page."""
        size = page_size(request.page_size)
        after = self._role_page_tokens.read(request)
        # One more than the page tells whether another page follows.
        roles = self._roles.list_page(caseless(request.name_prefix), after[0] if after else None, size + 1)
        page = pb.ListRolesResponse(roles=[_role_message(role) for role in roles[:size]])
        if len(roles) > size:
            page.next_page_token = self._role_page_tokens.make(request, [roles[size - 1].name_key])
        return page

    def UpdateRole(self, request: pb.UpdateRoleRequest, context: object) -> pb.UpdateRoleResponse:
        """Change the fields that the mask names."""
        fields = masked_fields(request.update_mask, request.role, "role", _UPDATABLE)
        values = _new_role(request.role, request.role.id.lower())
        if "name" in fields:
            _named(values)
        change = RoleChange(version_of(request.role.etag, "role.etag"), fields, values)
        return self._roles.update(change, _role_mutation(context, pb.UpdateRoleResponse))

    def DeleteRole(self, request: pb.DeleteRoleRequest, context: object) -> pb.DeleteRoleResponse:
        """Remove a role."""
        removal = Removal(
            request.id.lower(), version_of(request.etag, "etag"), request.revoke_grants, request.detach_children
        )
        mutation: Mutation[None, pb.DeleteRoleResponse] = Call.of(context).mutation(
            pb.DeleteRoleResponse, lambda _: pb.DeleteRoleResponse()
        )
        return self._roles.delete(removal, mutation)

    def GrantRole(self, request: pb.GrantRoleRequest, context: object) -> pb.GrantRoleResponse:
        """Give a role to a user."""
        grant = request.grant
        new = NewGrant(
            id=uuid7_text(),
            user_id=grant.user_id.lower(),
            role_id=grant.role_id.lower(),
            place=_place(grant.scope, "grant.scope"),
            expire_time=from_timestamp(grant, "expire_time", "grant"),
        )
        return self._grants.create(new, _grant_mutation(context, pb.GrantRoleResponse))

    def UpdateGrant(self, request: pb.UpdateGrantRequest, context: object) -> pb.UpdateGrantResponse:
        """Change when a grant ends."""
        grant = request.grant
        masked_fields(request.update_mask, grant, "grant", ("expire_time",))
        return self._grants.update(
            grant.id.lower(),
            version_of(grant.etag, "grant.etag"),
            from_timestamp(grant, "expire_time", "grant"),
            _grant_mutation(context, pb.UpdateGrantResponse),
        )

    def RevokeRole(self, request: pb.RevokeRoleRequest, context: object) -> pb.RevokeRoleResponse:
        """Take a role from a user."""
        mutation: Mutation[Grant, pb.RevokeRoleResponse] = Call.of(context).mutation(
            pb.RevokeRoleResponse, lambda _: pb.RevokeRoleResponse()
        )
        return self._grants.revoke(request.grant_id.lower(), version_of(request.etag, "etag"), mutation)

    def ListGrants(self, request: pb.ListGrantsRequest, context: object) -> pb.ListGrantsResponse:
        """Return one page."""
        size = page_size(request.page_size)
        after = self._role_page_tokens.read(request)
        listing = GrantListing(
            limit=size + 1,
            user_id=request.user_id or None,
            role_id=request.role_id or None,
            place=_place(request.scope, "scope"),
            after=after[0] if after else None,
        )
        grants = self._grants.list_page(listing)
        page = pb.ListGrantsResponse()
        for grant in grants[:size]:
            fill_grant(page.grants.add(), grant)
        if len(grants) > size:
            page.next_page_token = self._role_page_tokens.make(request, [grants[size - 1].id])
        return page


def fill_grant(message: pb.Grant, grant: Grant) -> None:
    """Write `grant` into an empty message."""
    message.id = grant.id
    message.user_id = grant.user_id
    message.role_id = grant.role_id
    message.scope = scope_of(grant.place)
    message.etag = str(grant.version)
    if grant.expire_time is not None:
        set_timestamp(message.expire_time, grant.expire_time)
    set_timestamp(message.create_time, grant.create_time)
    set_timestamp(message.update_time, grant.update_time)


def _role_mutation(context: object, answer: type[RoleAnswer]) -> Mutation[Role, RoleAnswer]:
    return Call.of(context).mutation(answer, lambda role: answer(role=_role_message(role)))


def _grant_mutation(context: object, answer: type[GrantAnswer]) -> Mutation[Grant, GrantAnswer]:
    return Call.of(context).mutation(answer, partial(_grant_answer, answer))


def _grant_answer(answer: type[GrantAnswer], grant: Grant) -> GrantAnswer:
    message = answer()
    fill_grant(message.grant, grant)
    return message


def _role_message(role: Role) -> pb.Role:
    message = pb.Role(
        id=role.id,
        name=role.name,
        description=role.description,
        permissions=role.permissions,
        parent_ids=role.parent_ids,
        etag=str(role.version),
    )
    set_timestamp(message.create_time, role.create_time)
    set_timestamp(message.update_time, role.update_time)
    return message


def _new_role(role: pb.Role, role_id: str) -> NewRole:
    return NewRole(
        id=role_id,
        name=role.name,
        name_key=caseless(role.name),
        description=role.description,
        permissions=sorted(set(role.permissions)),
        parent_ids=list(dict.fromkeys(parent.lower() for parent in role.parent_ids)),
    )


def _named(new: NewRole) -> NewRole:
    # Not a rule of the contract: an update without the name in its mask may leave it empty.
    if not new.name_key:
        raise BadRequestError.of("role.name", "must not be empty")
    return new


def _place(scope: str, field: str) -> str:
    found = place(scope)
    if found is None:
        # The rules of the contract let none through that this would refuse.
        raise BadRequestError.of(field, "is no scope")
    return found
