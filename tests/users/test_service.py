"""UsersService, by real calls: creation, reading, changes and the life of a user."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from tests.parts.refusal import Refusal, refused
from tests.parts.serving import Serving
from tests.users.population import create, get, new, phone, unique


@pytest.fixture
def users(serving: Serving) -> UsersServiceStub:
    return serving.users()


def _create(users: UsersServiceStub, user: pb.User, **kw: Any) -> pb.User:
    return users.CreateUser(pb.CreateUserRequest(user=user, **kw)).user


def _refused_user(users: UsersServiceStub, user: pb.User) -> Refusal:
    return refused(lambda: _create(users, user))


def _update(users: UsersServiceStub, user: pb.User, *paths: str, **kw: Any) -> pb.User:
    mask = FieldMask(paths=paths) if paths else None
    return users.UpdateUser(pb.UpdateUserRequest(user=user, update_mask=mask, **kw)).user


class TestCreate:
    """CreateUser."""

    def test_the_answer_is_the_whole_user(self, users: UsersServiceStub) -> None:
        wanted = new()

        user = _create(users, wanted)

        assert UUID(user.id).version == 7
        for name in ("username", "email", "phone", "display_name", "attributes"):
            assert getattr(user, name) == getattr(wanted, name)
        assert user.state == pb.USER_STATE_ACTIVE
        assert user.etag
        assert user.create_time == user.update_time
        assert user.create_time.seconds > 1_700_000_000
        assert not user.HasField("delete_time")
        assert get(users, user.id) == user

    def test_a_username_is_enough(self, users: UsersServiceStub) -> None:
        user = _create(users, pb.User(username=unique()))

        assert (user.email, user.phone, user.display_name) == ("", "", "")
        assert not user.HasField("attributes")
        assert get(users, user.id) == user

    def test_an_id_of_the_callers_choice_is_kept(self, users: UsersServiceStub) -> None:
        chosen = str(uuid4())

        assert _create(users, new(id=chosen.upper())).id == chosen

    def test_output_only_fields_are_ignored(self, users: UsersServiceStub) -> None:
        wanted = new(state=pb.USER_STATE_DELETED, etag="77", delete_time=Timestamp(seconds=5))

        user = _create(users, wanted)

        assert user.state == pb.USER_STATE_ACTIVE
        assert user.etag != "77"
        assert not user.HasField("delete_time")

    @pytest.mark.parametrize("name", ["Zoë.O+Brien_7-x", "名前", "é", "9lives", "x" * 64, "ñ" * 64])
    def test_usernames_of_all_scripts(self, users: UsersServiceStub, name: str) -> None:
        users.EraseUser(pb.EraseUserRequest(id=_create(users, pb.User(username=name)).id))

    @pytest.mark.parametrize(
        ("changes", "path"),
        [
            ({"username": "x" * 65}, "user.username"),
            ({"username": ""}, "user.username"),
            ({"username": ".dot"}, "user.username"),
            ({"username": "two words"}, "user.username"),
            ({"username": "a@b"}, "user.username"),
            ({"username": "a\n"}, "user.username"),
            ({"username": "\u115f"}, "user.username"),
            ({"id": "not-a-uuid"}, "user.id"),
            ({"id": "0190b6f27c1e70008000000000000000"}, "user.id"),
            ({"email": "no-at"}, "user.email"),
            ({"email": "a@b"}, "user.email"),
            ({"email": "a b@example.org"}, "user.email"),
            ({"email": "a@b@example.org"}, "user.email"),
            ({"email": "a\x01@example.org"}, "user.email"),
            ({"email": "x" * 243 + "@example.org"}, "user.email"),
            ({"phone": "12"}, "user.phone"),
            ({"phone": "call me"}, "user.phone"),
            ({"phone": "+" + "1" * 32}, "user.phone"),
            ({"display_name": "x" * 201}, "user.display_name"),
            ({"etag": "x" * 65}, "user.etag"),
            ({"attributes": {"x": "y" * 16_400}}, "user.attributes"),
            ({"attributes": {"x": float("nan")}}, "user.attributes"),
            ({"attributes": {"x": [float("inf")]}}, "user.attributes"),
            ({"attributes": {"x\0": 1}}, "user.attributes.fields"),
            ({"attributes": {"x": "\0"}}, 'user.attributes.fields["x"].string_value'),
            ({"display_name": "a\0b"}, "user.display_name"),
            ({"username": "a\0b"}, "user.username"),
        ],
        ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else value,
    )
    def test_a_field_at_fault_is_named_and_nothing_written(
        self, users: UsersServiceStub, changes: dict[str, Any], path: str
    ) -> None:
        wanted = new(**changes)
        found = _refused_user(users, wanted)

        assert (found.code, found.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
        assert list(found.fields) == [path]
        if "@" in wanted.email and path != "user.email":
            assert refused(lambda: users.GetUser(pb.GetUserRequest(email=wanted.email))).code == "NOT_FOUND"

    def test_a_missing_user_is_named(self, users: UsersServiceStub) -> None:
        assert list(refused(lambda: users.CreateUser(pb.CreateUserRequest())).fields) == ["user"]

    def test_attributes_up_to_16_kib_of_json(self, users: UsersServiceStub) -> None:
        # {"x":"…"} has 8 bytes around the text.
        user = create(users, attributes={"x": "y" * (16 * 1024 - 8)})

        assert get(users, user.id).attributes["x"] == "y" * (16 * 1024 - 8)
        found = _refused_user(users, new(attributes={"x": "y" * (16 * 1024 - 7)}))
        assert found.fields == {"user.attributes": "must not be larger than 16384 bytes as JSON"}
        # Small numbers have many bytes on the wire, and few as JSON.
        create(users, attributes={"x": [1.0] * 4000})

    def test_all_faults_are_told_at_once(self, users: UsersServiceStub) -> None:
        found = _refused_user(users, new(username="?", email="?", phone="?"))

        assert set(found.fields) == {"user.username", "user.email", "user.phone"}


class TestUniqueness:
    """What no two users may share, in whatever spelling."""

    @pytest.mark.parametrize(
        "spell",
        [
            str.upper,
            str.title,
            lambda name: "".join(
                chr(ord(char) + 0xFEE0) if "!" <= char <= "~" and char.isalpha() else char for char in name
            ),
            lambda name: name.replace("fi", "ﬁ"),
            lambda name: name.replace("é", "e\u0301"),
            lambda name: name.replace("ss", "ß"),
        ],
        ids=["upper", "title", "fullwidth", "ligature", "combining", "sharp s"],
    )
    def test_usernames(self, users: UsersServiceStub, spell: Callable[[str], str]) -> None:
        name = unique("fiéss")
        user = _create(users, pb.User(username=name))
        other = spell(name)
        assert other != name

        found = _refused_user(users, pb.User(username=other))

        assert (found.code, found.reason) == ("ALREADY_EXISTS", "USERNAME_TAKEN")
        assert (found.metadata, list(found.fields)) == ({"field": "user.username"}, ["user.username"])
        assert users.GetUser(pb.GetUserRequest(username=other)).user == user
        assert user.username == name

    @pytest.mark.parametrize("spell", [str.upper, str.swapcase, lambda email: email.replace("fi", "ﬁ")])
    def test_emails_though_sealed(self, users: UsersServiceStub, spell: Callable[[str], str]) -> None:
        email = f"{unique('fi')}@example.org"
        user = create(users, email=email)

        found = _refused_user(users, new(email=spell(email)))

        assert (found.code, found.reason, list(found.fields)) == ("ALREADY_EXISTS", "EMAIL_TAKEN", ["user.email"])
        assert users.GetUser(pb.GetUserRequest(email=spell(email))).user == user
        # Whose it is and how it reads is not told.
        assert email.encode() not in found.everything
        assert user.id.encode() not in found.everything

    def test_phones_by_their_digits(self, users: UsersServiceStub) -> None:
        number = phone()[:12]
        create(users, phone=number)

        for spelled in (number, f"{number[:2]} ({number[2:5]}) {number[5:]}", f"{number[:2]}-{number[2:]}"):
            found = _refused_user(users, new(phone=spelled))
            assert (found.code, found.reason, list(found.fields)) == ("ALREADY_EXISTS", "PHONE_TAKEN", ["user.phone"])

    def test_ids(self, users: UsersServiceStub) -> None:
        user = create(users)

        found = _refused_user(users, new(id=user.id.upper()))

        assert (found.code, found.reason, list(found.fields)) == ("ALREADY_EXISTS", "USER_EXISTS", ["user.id"])
        assert get(users, user.id) == user

    def test_empty_emails_and_phones_are_no_values(self, users: UsersServiceStub) -> None:
        create(users, email="", phone="")
        create(users, email="", phone="")

    def test_soft_deleted_users_keep_theirs_and_erased_ones_do_not(self, users: UsersServiceStub) -> None:
        user = create(users)
        users.DeleteUser(pb.DeleteUserRequest(id=user.id))
        again = new(username=user.username, email=user.email, phone=user.phone, id=user.id)
        assert _refused_user(users, again).code == "ALREADY_EXISTS"

        users.EraseUser(pb.EraseUserRequest(id=user.id))

        assert _create(users, again).username == user.username

    def test_an_update_is_held_to_it(self, users: UsersServiceStub) -> None:
        first, second = create(users), create(users)

        for name, reason in (("username", "USERNAME_TAKEN"), ("email", "EMAIL_TAKEN"), ("phone", "PHONE_TAKEN")):
            change = pb.User(id=second.id, **{name: getattr(first, name).upper()})
            found = refused(partial(_update, users, change))
            assert (found.code, found.reason, list(found.fields)) == ("ALREADY_EXISTS", reason, [f"user.{name}"])
        assert get(users, second.id) == second


class TestBatchCreate:
    """BatchCreateUsers: all or none."""

    def test_answers_in_the_order_of_the_request(self, users: UsersServiceStub) -> None:
        wanted = [new() for _ in range(20)]

        created = users.BatchCreateUsers(pb.BatchCreateUsersRequest(users=wanted)).users

        assert [(user.username, user.email) for user in created] == [(user.username, user.email) for user in wanted]
        assert len({user.id for user in created}) == 20

    def test_a_thousand_at_once_and_no_more(self, users: UsersServiceStub) -> None:
        prefix = unique("bulk")
        wanted = [pb.User(username=f"{prefix}-{number}") for number in range(1001)]

        found = refused(lambda: users.BatchCreateUsers(pb.BatchCreateUsersRequest(users=wanted)))
        assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", ["users"])
        created = users.BatchCreateUsers(pb.BatchCreateUsersRequest(users=wanted[:1000])).users

        assert len(created) == 1000
        answer = users.BatchGetUsers(pb.BatchGetUsersRequest(ids=[user.id for user in created]))
        assert list(answer.users) == list(created)

    def test_none_is_refused(self, users: UsersServiceStub) -> None:
        assert list(refused(lambda: users.BatchCreateUsers(pb.BatchCreateUsersRequest())).fields) == ["users"]

    @pytest.mark.parametrize(
        ("field", "reason"),
        [("username", "USERNAME_TAKEN"), ("email", "EMAIL_TAKEN"), ("phone", "PHONE_TAKEN"), ("id", "USER_EXISTS")],
    )
    @pytest.mark.parametrize("where", ["stored", "in the batch"])
    def test_a_conflict_names_its_index_and_nothing_is_written(
        self, users: UsersServiceStub, field: str, reason: str, where: str
    ) -> None:
        wanted = [new(id=str(uuid4())) for _ in range(5)]
        other = create(users) if where == "stored" else wanted[1]
        setattr(wanted[3], field, getattr(other, field).upper())

        found = refused(lambda: users.BatchCreateUsers(pb.BatchCreateUsersRequest(users=wanted)))

        assert (found.code, found.reason, list(found.fields)) == ("ALREADY_EXISTS", reason, [f"users[3].{field}"])
        assert found.metadata == {"field": f"users[3].{field}"}
        missing = users.BatchGetUsers(pb.BatchGetUsersRequest(ids=[user.id for user in wanted])).missing_ids
        assert set(missing) == {user.id.lower() for user in wanted} - {other.id if where == "stored" else ""}

    @pytest.mark.parametrize(
        ("changes", "path"),
        [
            ({"email": "bad"}, "users[2].email"),
            ({"username": ""}, "users[2].username"),
            ({"attributes": {"x": "\0"}}, 'users[2].attributes.fields["x"].string_value'),
            ({"attributes": {"x": "y" * 17_000}}, "users[2].attributes"),
        ],
    )
    def test_a_fault_names_its_index(self, users: UsersServiceStub, changes: dict[str, Any], path: str) -> None:
        wanted = [new(), new(), new(**changes)]

        found = refused(lambda: users.BatchCreateUsers(pb.BatchCreateUsersRequest(users=wanted)))

        assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", [path])
        assert refused(lambda: users.GetUser(pb.GetUserRequest(email=wanted[0].email))).code == "NOT_FOUND"

    def test_a_thousand_faults_still_make_an_answer(self, users: UsersServiceStub) -> None:
        wanted = [new(email="bad") for _ in range(1000)]

        found = refused(lambda: users.BatchCreateUsers(pb.BatchCreateUsersRequest(users=wanted)))

        assert (found.code, found.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
        assert found.metadata["violations"] == "1000"
        assert "users[0].email" in found.fields


class TestRead:
    """GetUser and BatchGetUsers."""

    def test_by_each_of_its_names(self, users: UsersServiceStub) -> None:
        user = create(users)

        for key in (
            {"id": user.id},
            {"id": user.id.upper()},
            {"username": user.username},
            {"username": user.username.upper()},
            {"email": user.email},
            {"email": user.email.title()},
        ):
            assert users.GetUser(pb.GetUserRequest(**key)).user == user

    def test_soft_deleted_ones_too(self, users: UsersServiceStub) -> None:
        user = create(users)
        deleted = users.DeleteUser(pb.DeleteUserRequest(id=user.id)).user

        assert get(users, user.id) == deleted
        assert users.GetUser(pb.GetUserRequest(email=user.email)).user == deleted

    @pytest.mark.parametrize(
        "key", [{"id": str(uuid4())}, {"username": "no-such-user"}, {"username": "?!"}, {"email": "no@such.user"}]
    )
    def test_an_unknown_user(self, users: UsersServiceStub, key: dict[str, str]) -> None:
        found = refused(lambda: users.GetUser(pb.GetUserRequest(**key)))

        assert (found.code, found.reason) == ("NOT_FOUND", "USER_NOT_FOUND")

    @pytest.mark.parametrize(
        ("key", "path"),
        [
            ({}, "key"),
            ({"id": ""}, "id"),
            ({"id": "x"}, "id"),
            ({"username": ""}, "username"),
            ({"username": "x" * 65}, "username"),
            ({"email": ""}, "email"),
            ({"email": "x" * 255}, "email"),
            ({"email": "a\0b"}, "email"),
        ],
    )
    def test_a_key_at_fault(self, users: UsersServiceStub, key: dict[str, str], path: str) -> None:
        found = refused(lambda: users.GetUser(pb.GetUserRequest(**key)))

        assert (found.code, found.reason, list(found.fields)) == ("INVALID_ARGUMENT", "BAD_REQUEST", [path])

    def test_a_batch_keeps_order_and_repeats_and_reports_the_missing(self, users: UsersServiceStub) -> None:
        first, second = create(users), create(users)
        deleted = users.DeleteUser(pb.DeleteUserRequest(id=create(users).id)).user
        unknown = [str(uuid4()), str(uuid4())]
        ids = [second.id, unknown[1], first.id, second.id.upper(), deleted.id, unknown[0], unknown[1]]

        answer = users.BatchGetUsers(pb.BatchGetUsersRequest(ids=ids))

        assert list(answer.users) == [second, first, second, deleted]
        assert list(answer.missing_ids) == [unknown[1], unknown[0], unknown[1]]

    def test_a_batch_at_fault(self, users: UsersServiceStub) -> None:
        many = [str(uuid4()) for _ in range(1001)]

        assert len(users.BatchGetUsers(pb.BatchGetUsersRequest(ids=many[:1000])).missing_ids) == 1000
        for ids, path in ((many, "ids"), ([], "ids"), ([many[0], "x"], "ids[1]")):
            found = refused(partial(users.BatchGetUsers, pb.BatchGetUsersRequest(ids=ids)))
            assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", [path])


class TestUpdate:
    """UpdateUser: masks and etags."""

    def test_only_what_the_mask_names_changes(self, users: UsersServiceStub) -> None:
        user = create(users)
        values = new(id=user.id)

        changed = _update(users, values, "email", "display_name")

        assert (changed.email, changed.display_name) == (values.email, values.display_name)
        assert (changed.username, changed.phone, changed.attributes) == (user.username, user.phone, user.attributes)
        assert changed.etag != user.etag
        assert changed.create_time == user.create_time
        assert changed.update_time.ToNanoseconds() > user.update_time.ToNanoseconds()
        assert get(users, user.id) == changed

    def test_without_a_mask_what_has_a_value(self, users: UsersServiceStub) -> None:
        user = create(users)

        changed = _update(users, pb.User(id=user.id, display_name="New", email=""))

        assert (changed.display_name, changed.email, changed.phone) == ("New", user.email, user.phone)

    def test_a_star_replaces_everything(self, users: UsersServiceStub) -> None:
        user = create(users)
        name = unique()

        changed = _update(users, pb.User(id=user.id, username=name), "*")

        assert (changed.username, changed.email, changed.phone, changed.display_name) == (name, "", "", "")
        assert not changed.HasField("attributes")
        assert refused(lambda: users.GetUser(pb.GetUserRequest(email=user.email))).code == "NOT_FOUND"

    def test_a_star_needs_a_username(self, users: UsersServiceStub) -> None:
        user = create(users)

        assert list(refused(lambda: _update(users, pb.User(id=user.id), "*")).fields) == ["user.username"]
        assert list(refused(lambda: _update(users, pb.User(id=user.id), "username")).fields) == ["user.username"]
        assert get(users, user.id) == user

    def test_named_and_empty_is_cleared(self, users: UsersServiceStub) -> None:
        user = create(users)

        changed = _update(users, pb.User(id=user.id), "email", "phone", "attributes", "display_name")

        assert (changed.email, changed.phone, changed.display_name) == ("", "", "")
        assert not changed.HasField("attributes")
        assert changed.username == user.username

    @pytest.mark.parametrize(
        ("paths", "at"),
        [
            (["nickname"], 0),
            (["id"], 0),
            (["display_name", "state"], 1),
            (["etag"], 0),
            (["create_time"], 0),
            (["user.email"], 0),
            (["attributes.fields"], 0),
            (["*", "email"], 0),
            (["email", "*"], 1),
            (["Email"], 0),
            ([""], 0),
        ],
    )
    def test_an_unknown_or_output_only_path_is_refused(
        self, users: UsersServiceStub, paths: list[str], at: int
    ) -> None:
        user = create(users)

        found = refused(lambda: _update(users, new(id=user.id), *paths))

        assert (found.code, found.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
        assert list(found.fields) == [f"update_mask.paths[{at}]"]
        assert get(users, user.id) == user

    def test_nothing_to_change_is_refused(self, users: UsersServiceStub) -> None:
        user = create(users)

        assert list(refused(lambda: _update(users, pb.User(id=user.id))).fields) == ["update_mask"]

    def test_an_etag_that_is_current_or_none_passes_and_another_is_aborted(self, users: UsersServiceStub) -> None:
        user = create(users)
        changed = _update(users, pb.User(id=user.id, display_name="1", etag=user.etag))

        found = refused(lambda: _update(users, pb.User(id=user.id, display_name="2", etag=user.etag)))

        assert (found.code, found.reason, list(found.fields)) == ("ABORTED", "ETAG_MISMATCH", ["user.etag"])
        assert get(users, user.id) == changed
        _update(users, pb.User(id=user.id, display_name="3"))

    @pytest.mark.parametrize("etag", ["x", "-1", "1.0", "٣", "9" * 30])
    def test_an_etag_that_is_none_is_named(self, users: UsersServiceStub, etag: str) -> None:
        user = create(users)

        for found, path in (
            (refused(lambda: _update(users, pb.User(id=user.id, display_name="x", etag=etag))), "user.etag"),
            (refused(lambda: users.DeleteUser(pb.DeleteUserRequest(id=user.id, etag=etag))), "etag"),
        ):
            assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", [path])
        assert get(users, user.id) == user

    def test_an_unknown_user_and_a_missing_id(self, users: UsersServiceStub) -> None:
        assert refused(lambda: _update(users, new(id=str(uuid4())))).reason == "USER_NOT_FOUND"
        found = refused(lambda: _update(users, new()))
        assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", ["user"])
        assert list(refused(lambda: users.UpdateUser(pb.UpdateUserRequest())).fields) == ["user"]

    def test_a_soft_deleted_user_is_not_changed(self, users: UsersServiceStub) -> None:
        user = create(users)
        users.DeleteUser(pb.DeleteUserRequest(id=user.id))

        found = refused(lambda: _update(users, pb.User(id=user.id, display_name="x")))

        assert (found.code, found.reason, found.metadata) == ("FAILED_PRECONDITION", "USER_STATE", {"state": "deleted"})


class TestLife:
    """SuspendUser, ReactivateUser, DeleteUser, UndeleteUser, EraseUser."""

    def test_there_and_back(self, users: UsersServiceStub) -> None:
        user = create(users)
        steps: list[tuple[Any, int]] = [
            (lambda: users.SuspendUser(pb.SuspendUserRequest(id=user.id)), pb.USER_STATE_SUSPENDED),
            (lambda: users.DeleteUser(pb.DeleteUserRequest(id=user.id)), pb.USER_STATE_DELETED),
            (lambda: users.UndeleteUser(pb.UndeleteUserRequest(id=user.id)), pb.USER_STATE_SUSPENDED),
            (lambda: users.ReactivateUser(pb.ReactivateUserRequest(id=user.id)), pb.USER_STATE_ACTIVE),
            (lambda: users.DeleteUser(pb.DeleteUserRequest(id=user.id)), pb.USER_STATE_DELETED),
            (lambda: users.UndeleteUser(pb.UndeleteUserRequest(id=user.id)), pb.USER_STATE_ACTIVE),
        ]
        etags = {user.etag}

        for step, state in steps:
            changed = step().user
            assert changed.state == state
            assert changed.HasField("delete_time") == (state == pb.USER_STATE_DELETED)
            assert get(users, user.id) == changed
            etags.add(changed.etag)

        assert len(etags) == len(steps) + 1

    @pytest.mark.parametrize(
        ("state", "allowed"),
        [("active", {"Suspend", "Delete"}), ("suspended", {"Reactivate", "Delete"}), ("deleted", {"Undelete"})],
    )
    def test_from_other_states_it_is_refused(self, users: UsersServiceStub, state: str, allowed: set[str]) -> None:
        for verb in {"Suspend", "Reactivate", "Delete", "Undelete"} - allowed:
            user = create(users)
            if state == "suspended":
                users.SuspendUser(pb.SuspendUserRequest(id=user.id))
            if state == "deleted":
                users.DeleteUser(pb.DeleteUserRequest(id=user.id))
            before = get(users, user.id)

            found = refused(partial(_transition, users, verb, user.id))

            if (state, verb) == ("deleted", "Delete"):
                assert (found.code, found.reason) == ("NOT_FOUND", "USER_NOT_FOUND")
            else:
                assert (found.code, found.reason) == ("FAILED_PRECONDITION", "USER_STATE")
                assert found.metadata == {"state": state}
                assert state in found.message
            assert get(users, user.id) == before

    @pytest.mark.parametrize("verb", ["Suspend", "Reactivate", "Delete", "Undelete", "Erase"])
    def test_an_unknown_user_a_wrong_etag_and_no_id(self, users: UsersServiceStub, verb: str) -> None:
        user = create(users)

        assert refused(lambda: _transition(users, verb, str(uuid4()))).reason == "USER_NOT_FOUND"
        found = refused(lambda: _transition(users, verb, user.id, etag="999"))
        assert (found.code, found.reason, list(found.fields)) == ("ABORTED", "ETAG_MISMATCH", ["etag"])
        assert list(refused(lambda: _transition(users, verb, "")).fields) == ["id"]
        assert get(users, user.id) == user

    @pytest.mark.parametrize("verb", ["Suspend", "Reactivate", "Delete", "Undelete", "Erase"])
    @pytest.mark.parametrize(
        ("changes", "path"),
        [({"user_id": "x"}, "id"), ({"etag": "1" * 65}, "etag"), ({"request_id": "x"}, "request_id")],
        ids=["id", "etag", "request_id"],
    )
    def test_a_field_at_fault_is_named(
        self, users: UsersServiceStub, verb: str, changes: dict[str, Any], path: str
    ) -> None:
        found = refused(lambda: _transition(users, verb, **{"user_id": str(uuid4()), **changes}))

        assert (found.code, found.reason, list(found.fields)) == ("INVALID_ARGUMENT", "BAD_REQUEST", [path])

    @pytest.mark.parametrize("state", ["active", "suspended", "deleted"])
    def test_erased_is_gone_for_good(self, users: UsersServiceStub, state: str) -> None:
        user = create(users)
        if state != "active":
            _transition(users, "Suspend" if state == "suspended" else "Delete", user.id)

        users.EraseUser(pb.EraseUserRequest(id=user.id, etag=get(users, user.id).etag))

        assert refused(lambda: get(users, user.id)).code == "NOT_FOUND"
        assert refused(lambda: users.EraseUser(pb.EraseUserRequest(id=user.id))).reason == "USER_NOT_FOUND"


def _transition(users: UsersServiceStub, verb: str, user_id: str, etag: str = "", **kw: Any) -> Any:
    request = getattr(pb, f"{verb}UserRequest")(id=user_id, etag=etag, **kw)
    return getattr(users, f"{verb}User")(request)


class TestValidateOnly:
    """Same checks, same answer, nothing written."""

    def test_creation(self, users: UsersServiceStub) -> None:
        wanted = new()

        user = _create(users, wanted, validate_only=True)

        assert (user.username, user.email, user.state) == (wanted.username, wanted.email, pb.USER_STATE_ACTIVE)
        assert refused(lambda: get(users, user.id)).code == "NOT_FOUND"
        assert refused(lambda: users.GetUser(pb.GetUserRequest(email=wanted.email))).code == "NOT_FOUND"
        _create(users, wanted)
        assert refused(lambda: _create(users, wanted, validate_only=True)).code == "ALREADY_EXISTS"

    def test_batches(self, users: UsersServiceStub) -> None:
        wanted = [new() for _ in range(3)]

        answer = users.BatchCreateUsers(pb.BatchCreateUsersRequest(users=wanted, validate_only=True))

        assert [user.username for user in answer.users] == [user.username for user in wanted]
        ids = [user.id for user in answer.users]
        assert len(users.BatchGetUsers(pb.BatchGetUsersRequest(ids=ids)).missing_ids) == 3

    def test_changes(self, users: UsersServiceStub) -> None:
        user = create(users)

        assert _update(users, pb.User(id=user.id, display_name="x"), validate_only=True).display_name == "x"
        for verb, state in (("Suspend", pb.USER_STATE_SUSPENDED), ("Delete", pb.USER_STATE_DELETED)):
            assert _transition(users, verb, user.id, validate_only=True).user.state == state
        _transition(users, "Erase", user.id, validate_only=True)
        users.SetPassword(pb.SetPasswordRequest(id=user.id, password="correct horse", validate_only=True))
        assert refused(lambda: _transition(users, "Reactivate", user.id, validate_only=True)).reason == "USER_STATE"

        assert get(users, user.id) == user
        check = users.VerifyPassword(pb.VerifyPasswordRequest(id=user.id, password="correct horse"))
        assert check.outcome == pb.PASSWORD_OUTCOME_REJECTED

    def test_its_request_id_is_not_used_up(self, users: UsersServiceStub) -> None:
        wanted, request_id = new(), str(uuid4())

        _create(users, wanted, validate_only=True, request_id=request_id)

        assert _create(users, wanted, request_id=request_id).username == wanted.username


def test_permission_comes_before_existence_and_before_checks(serving: Serving) -> None:
    reader = serving.users("reader")
    calls: list[Callable[[], Any]] = [
        lambda: reader.DeleteUser(pb.DeleteUserRequest(id=str(uuid4()))),
        lambda: reader.UpdateUser(pb.UpdateUserRequest(user=pb.User(id=str(uuid4()), display_name="x"))),
        lambda: reader.EraseUser(pb.EraseUserRequest(id="no uuid")),
        lambda: reader.CreateUser(pb.CreateUserRequest()),
        lambda: reader.BatchGetUsers(pb.BatchGetUsersRequest()),
        lambda: reader.VerifyPassword(pb.VerifyPasswordRequest(id=str(uuid4()), password="x")),
    ]

    for call in calls:
        found = refused(call)
        assert (found.code, found.reason) == ("PERMISSION_DENIED", "METHOD_NOT_ALLOWED")
        assert found.metadata["caller"] == "reader"
    assert refused(lambda: get(reader, str(uuid4()))).reason == "USER_NOT_FOUND"
