"""The handlers of checks and of the two listings of permissions: part of UsersService."""

from __future__ import annotations

from bisect import bisect_right

from kronos.users.v1 import roles_pb2 as pb

from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.identifiers import canonical_uuid
from kronos_db.runtime.paging import PageTokens, page_size
from kronos_db.runtime.timestamps import set_timestamp
from kronos_db.users.access import Access, Question
from kronos_db.users.access_store import AccessStore, HolderListing
from kronos_db.users.account import State, Way
from kronos_db.users.model import UserNotFoundError
from kronos_db.users.permissions import around, covering, place, scope_of
from kronos_db.users.role_service import fill_grant


def _encoded(answer: pb.PermissionAnswer) -> bytes:
    return pb.BatchCheckPermissionsResponse(answers=[answer]).SerializeToString()


# The answers to most calls, made once: nobody writes to an answer on its way out.
_ALLOWED = pb.CheckPermissionResponse(allowed=True)
_DENIED = pb.CheckPermissionResponse(allowed=False)
# Those of batches, encoded: one behind the other they are an answer to all.
_YES, _NO = (_encoded(pb.PermissionAnswer(allowed=allowed)) for allowed in (True, False))
_REASONS = {
    State.ACTIVE: pb.CHECK_REASON_NOT_GRANTED,
    State.SUSPENDED: pb.CHECK_REASON_USER_SUSPENDED,
    State.DELETED: pb.CHECK_REASON_USER_DELETED,
}


class CheckHandlers:
    """Who may do what."""

    def __init__(self, access: Access, store: AccessStore, page_tokens: PageTokens) -> None:
        self._access = access
        self._access_store = store
        self._check_page_tokens = page_tokens

    def CheckPermission(self, request: pb.CheckPermissionRequest, context: object) -> pb.CheckPermissionResponse:
        """Tell whether a user may."""
        wanted, where = _asked(request.permission, request.scope)
        if request.explain:
            return self._explained(request.user_id.lower(), wanted, where)
        return _ALLOWED if self._access.allows(request.user_id.lower(), wanted, where) else _DENIED

    def BatchCheckPermissions(
        self, request: pb.BatchCheckPermissionsRequest, context: object
    ) -> pb.BatchCheckPermissionsResponse:
        """Answer each question, or say what is wrong with it."""
        questions: list[Question] = []
        wrong: dict[int, bytes] = {}
        for index, asked in enumerate(request.questions):
            user_id, wanted, where = canonical_uuid(asked.user_id), covering(asked.permission), place(asked.scope)
            if user_id is None or wanted is None or where is None:
                wrong[index] = _error(index, user_id is None, wanted is None)
            else:
                questions.append(Question(user_id, wanted, where))
        answers = [_YES if allowed else _NO for allowed in self._access.allow_all(questions)]
        for index in sorted(wrong):
            answers.insert(index, wrong[index])
        return pb.BatchCheckPermissionsResponse.FromString(b"".join(answers))

    def ListUserPermissions(
        self, request: pb.ListUserPermissionsRequest, context: object
    ) -> pb.ListUserPermissionsResponse:
        """Return one page of what a user may."""
        account = self._access_store.account(request.user_id.lower())
        if account is None:
            raise UserNotFoundError
        where = _place(request.scope) if request.HasField("scope") else None
        permissions = account.permissions(where)
        keys = list(permissions)
        after = self._check_page_tokens.read(request)
        start = bisect_right(keys, (after[0], after[1])) if after else 0
        end = start + page_size(request.page_size)
        page = pb.ListUserPermissionsResponse()
        for permission, there in keys[start:end]:
            entry = page.permissions.add(permission=permission, scope=scope_of(there))
            until = permissions[permission, there]
            if until is not None:
                set_timestamp(entry.expire_time, until)
        if end < len(keys):
            page.next_page_token = self._check_page_tokens.make(request, keys[end - 1])
        return page

    def ListPermissionHolders(
        self, request: pb.ListPermissionHoldersRequest, context: object
    ) -> pb.ListPermissionHoldersResponse:
        """Return one page of those who may."""
        wanted, where = _asked(request.permission, request.scope)
        size = page_size(request.page_size)
        after = self._check_page_tokens.read(request)
        # One more than the page tells whether another page follows.
        listing = HolderListing(sorted(wanted), around(where), after[0] if after else None, size + 1)
        holders = self._access_store.holders(listing)
        page = pb.ListPermissionHoldersResponse()
        for holder in holders[:size]:
            entry = page.holders.add(user_id=holder.user_id)
            if holder.expire_time is not None:
                set_timestamp(entry.expire_time, holder.expire_time)
        if len(holders) > size:
            page.next_page_token = self._check_page_tokens.make(request, [holders[size - 1].user_id])
        return page

    def _explained(self, user_id: str, wanted: frozenset[str], where: str) -> pb.CheckPermissionResponse:
        account = self._access_store.account(user_id)
        if account is None:
            return _denied(pb.CHECK_REASON_USER_UNKNOWN)
        way = account.explain(wanted, where)
        return _denied(_REASONS[account.state]) if way is None else _allowed(way)


def _denied(reason: pb.CheckReason.ValueType) -> pb.CheckPermissionResponse:
    return pb.CheckPermissionResponse(explanation=pb.CheckExplanation(reason=reason))


def _allowed(way: Way) -> pb.CheckPermissionResponse:
    response = pb.CheckPermissionResponse(allowed=True)
    explanation = response.explanation
    explanation.reason = pb.CHECK_REASON_GRANTED
    explanation.permission = way.permission
    fill_grant(explanation.grant, way.grant)
    for role in way.roles:
        explanation.roles.add(id=role.id, name=role.name)
    return response


def _asked(permission: str, scope: str) -> tuple[frozenset[str], str]:
    """Return the permissions that cover the one asked for, and the place: the contract's rules let no others in."""
    wanted = covering(permission)
    if wanted is None:
        raise BadRequestError.of("permission", "is no permission")
    return wanted, _place(scope)


def _place(scope: str) -> str:
    found = place(scope)
    if found is None:
        raise BadRequestError.of("scope", "is no scope")
    return found


def _error(index: int, no_user: bool, no_permission: bool) -> bytes:
    """Return the answer to a question that is wrong, encoded."""
    field, what = (
        ("user_id", "must be a UUID")
        if no_user
        else ("permission", "must be resource:action, each side * or 1 to 64 letters, digits and . _ -")
        if no_permission
        else ("scope", "must be empty or a path of at most 16 parts and 256 characters")
    )
    error = pb.QuestionError(reason="BAD_REQUEST", field=f"questions[{index}].{field}", description=what)
    return _encoded(pb.PermissionAnswer(error=error))
