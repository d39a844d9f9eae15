"""The contract's marks are read right, contradictions are refused, and no sensitive field goes without."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc_tools  # type: ignore[import-untyped]  # ships no types
import kronos
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FileDescriptor
from grpc_tools import protoc
from hypothesis import given
from hypothesis import strategies as st
from kronos.options.v1 import options_pb2
from kronos.users.v1 import users_pb2

from kronos_db.runtime.crypto import marks as marks_module
from kronos_db.runtime.crypto.marks import MarkError, Marks, Plan, one_line, unmarked_fields
from kronos_db.runtime.crypto.normalization import Normalization
from kronos_db.runtime.crypto.sealing import Index, Sealer
from kronos_db.runtime.errors import BadRequestError, SealBrokenError

PROTOS = Path(__file__).resolve().parents[3] / "protos"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"
RECORD = "01890a5d-ac96-774b-bcce-b302099a8057"
EMAIL = Index("users.email", Normalization.CASELESS)
PHONE = Index("users.phone", Normalization.PHONE)

# Names that sound like a secret and are none, each with its reason.
NOT_SENSITIVE: Mapping[str, str] = {
    "page_token": "opaque place in a listing, made by the server, worthless without permission to list",
    "next_page_token": "the same, on its way out",
    "resume_token": "opaque place in a log of changes, made by the server, worthless without permission to watch",
}

numbers = itertools.count(1)


@pytest.fixture
def contract(tmp_path: Path) -> Callable[[str], Mapping[str, Any]]:
    """Compile messages written in proto3; `option` names are short: (sensitive), (record_id)."""

    def compile_(body: str, package: str = "trial") -> Mapping[str, Any]:
        name = f"trial{next(numbers)}"
        source, target = tmp_path / f"{name}.proto", tmp_path / f"{name}.binpb"
        body = body.replace("(sensitive)", "(kronos.options.v1.sensitive)")
        body = body.replace("(record_id)", "(kronos.options.v1.record_id)")
        source.write_text(
            f'syntax = "proto3"; package {package}.{name}; import "kronos/options/v1/options.proto";'
            f'import "google/protobuf/any.proto"; {body}'
        )
        paths = [f"-I{path}" for path in (tmp_path, PROTOS, WELL_KNOWN)]
        assert protoc.main(["protoc", *paths, f"--descriptor_set_out={target}", source.name]) == 0
        importlib.import_module("google.protobuf.any_pb2")
        pool = descriptor_pool.Default()
        for file in descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file:
            pool.AddSerializedFile(file.SerializeToString())
        types = pool.FindFileByName(source.name).message_types_by_name.values()
        return {found.name: message_factory.GetMessageClass(found) for found in types}

    return compile_


def planned(descriptor: Descriptor) -> Plan:
    plan = Marks().plan(descriptor)
    assert plan is not None
    return plan


@pytest.fixture(scope="module")
def create() -> Plan:
    return planned(users_pb2.CreateUserRequest.DESCRIPTOR)


@pytest.fixture(scope="module")
def get_response() -> Plan:
    return planned(users_pb2.GetUserResponse.DESCRIPTOR)


def user(**values: Any) -> users_pb2.User:
    return users_pb2.User(**({"id": RECORD, "username": "ann"} | values))


# --- The contract of users.


def test_a_request_is_sealed_and_its_answer_opened(sealer: Sealer, create: Plan, get_response: Plan) -> None:
    request = users_pb2.CreateUserRequest(user=user(email="Ann@example.org", phone="+1 555"))
    create.seal(request, sealer)
    assert request.user.username == "ann"
    assert request.user.email.split(".")[2] == sealer.blind_index("ann@EXAMPLE.org", EMAIL)
    assert request.user.phone.split(".")[2] == sealer.blind_index("+1555", PHONE)
    answer = users_pb2.GetUserResponse(user=request.user)
    get_response.open(answer, sealer)
    assert answer.user == user(email="Ann@example.org", phone="+1 555")


@given(st.text(), st.text())
def test_any_values_come_back(sealer: Sealer, create: Plan, get_response: Plan, email: str, phone: str) -> None:
    request = users_pb2.CreateUserRequest(user=user(id="", email=email, phone=phone))
    create.seal(request, sealer)
    answer = users_pb2.GetUserResponse(user=request.user)
    get_response.open(answer, sealer)
    assert (answer.user.email, answer.user.phone) == (email, phone)


def test_empty_values_stay_empty(sealer: Sealer, create: Plan, get_response: Plan) -> None:
    request = users_pb2.CreateUserRequest(user=user())
    create.seal(request, sealer)
    assert request.user == user()
    answer = users_pb2.GetUserResponse(user=user())
    get_response.open(answer, sealer)
    assert answer.user == user()
    empty = users_pb2.CreateUserRequest()
    create.seal(empty, sealer)
    assert not empty.HasField("user")


def test_what_looks_sealed_in_a_request_is_sealed_again(sealer: Sealer, create: Plan, get_response: Plan) -> None:
    forged = sealer.seal_text("x", "kronos.users.v1.User.email", RECORD, EMAIL)
    request = users_pb2.CreateUserRequest(user=user(email=forged))
    create.seal(request, sealer)
    answer = users_pb2.GetUserResponse(user=request.user)
    get_response.open(answer, sealer)
    assert answer.user.email == forged


def test_each_new_record_gets_an_id_of_its_own(sealer: Sealer) -> None:
    request = users_pb2.BatchCreateUsersRequest(users=[user(id="", email=f"{n}@example.org") for n in range(20)])
    planned(request.DESCRIPTOR).seal(request, sealer)
    ids = [UUID(found.id) for found in request.users]
    assert ids == sorted(set(ids))
    assert {found.version for found in ids} == {7}
    answer = users_pb2.BatchGetUsersResponse(users=request.users)
    planned(answer.DESCRIPTOR).open(answer, sealer)
    assert [found.email for found in answer.users] == [f"{n}@example.org" for n in range(20)]


def test_a_record_id_is_made_canonical(sealer: Sealer, create: Plan, get_response: Plan) -> None:
    request = users_pb2.CreateUserRequest(user=user(id=RECORD.upper(), email="a@b.c"))
    create.seal(request, sealer)
    assert request.user.id == RECORD
    answer = users_pb2.GetUserResponse(user=request.user)
    get_response.open(answer, sealer)
    assert answer.user.email == "a@b.c"


def test_a_record_id_that_is_no_uuid_is_refused(sealer: Sealer, create: Plan) -> None:
    with pytest.raises(BadRequestError) as caught:
        create.seal(users_pb2.CreateUserRequest(user=user(id="7")), sealer)
    assert caught.value.violations[0].field == "id"


def test_a_value_does_not_open_in_another_record_or_column(sealer: Sealer, create: Plan, get_response: Plan) -> None:
    request = users_pb2.CreateUserRequest(user=user(email="a@b.c", phone="+1555"))
    create.seal(request, sealer)
    moved = user(id=str(UUID(int=7)), email=request.user.email)
    swapped = user(email=request.user.phone)
    for wrong in (moved, swapped, user(email="a@b.c")):
        with pytest.raises(SealBrokenError) as caught:
            get_response.open(users_pb2.GetUserResponse(user=wrong), sealer)
        assert caught.value.metadata == {"field": "kronos.users.v1.User.email"}


def test_a_look_up_is_hashed_to_what_the_sealed_form_holds(sealer: Sealer, create: Plan) -> None:
    stored = users_pb2.CreateUserRequest(user=user(email="Ann@example.org"))
    create.seal(stored, sealer)
    request = users_pb2.GetUserRequest(email=" ann@EXAMPLE.org")
    planned(request.DESCRIPTOR).seal(request, sealer)
    assert request.email == stored.user.email.split(".")[2]
    assert request.WhichOneof("key") == "email"


def test_the_other_members_of_a_oneof_are_not_touched(sealer: Sealer) -> None:
    request = users_pb2.GetUserRequest(username="ann")
    plan = planned(request.DESCRIPTOR)
    plan.seal(request, sealer)
    assert request == users_pb2.GetUserRequest(username="ann")
    assert plan.redacted(request) == 'username: "ann"'


def test_redacted_values_reach_the_handler(sealer: Sealer) -> None:
    request = users_pb2.VerifyPasswordRequest(email="a@b.c", password="open sesame")
    planned(request.DESCRIPTOR).seal(request, sealer)
    assert request.password == "open sesame"


def test_messages_without_marks_have_no_plan() -> None:
    marks = Marks()
    for kind in (users_pb2.BatchGetUsersRequest, users_pb2.EraseUserRequest, users_pb2.VerifyPasswordResponse):
        assert marks.plan(kind.DESCRIPTOR) is None


marked_values = st.text(max_size=10).map(lambda text: f"marker{text}marker")


@given(marked_values, marked_values, st.text())
def test_redacted_text_shows_no_marked_value(create: Plan, email: str, phone: str, username: str) -> None:
    request = users_pb2.CreateUserRequest(user=user(username=username.replace("marker", ""), email=email, phone=phone))
    before = request.SerializeToString(deterministic=True)
    text = create.redacted(request)
    assert "marker" not in text
    assert text.count("***") - username.count("***") == 2
    assert text.isascii()
    assert text.isprintable()
    assert request.SerializeToString(deterministic=True) == before


def test_redacted_shows_the_rest() -> None:
    request = users_pb2.SetPasswordRequest(id=RECORD, password="open sesame")
    assert planned(request.DESCRIPTOR).redacted(request) == f'id: "{RECORD}" password: "***"'
    assert one_line(users_pb2.BatchGetUsersRequest(ids=["ä\n"])) == r'ids: "\303\244\n"'


# --- Every shape that a contract can have.

RECORD_MESSAGE = """
message Record {
  string key = 1 [(record_id) = true];
  string text = 2 [(sensitive) = {protection: PROTECTION_ENCRYPTED}];
  bytes raw = 3 [(sensitive) = {protection: PROTECTION_ENCRYPTED index: "raw"}];
  bytes raw_wanted = 4 [(sensitive) = {protection: PROTECTION_HASHED index: "raw"}];
  optional string maybe = 5 [(sensitive) = {protection: PROTECTION_ENCRYPTED}];
  bytes hidden = 6 [(sensitive) = {protection: PROTECTION_REDACTED}];
}
"""

TREE = (
    RECORD_MESSAGE
    + """
message Tree {
  Record record = 1;
  repeated Tree branches = 2;
  map<string, Leaf> leaves = 3;
  oneof choice { Record chosen = 4; string name = 5; }
  map<string, string> labels = 6;
}
message Leaf { Tree back = 1; repeated Record records = 2; Plain plain = 3; }
message Plain { Plain next = 1; string text = 2; repeated Plain more = 3; }
"""
)


def records_of(tree: Any) -> Iterator[Any]:
    """Yield every record of a tree, found in another way than the plan's."""
    for candidate in ("record", "chosen"):
        if tree.HasField(candidate):
            yield getattr(tree, candidate)
    for branch in tree.branches:
        yield from records_of(branch)
    for name in sorted(tree.leaves):
        yield from tree.leaves[name].records
        if tree.leaves[name].HasField("back"):
            yield from records_of(tree.leaves[name].back)


def a_tree(types: Mapping[str, Any]) -> Any:
    def record(text: str) -> Any:
        return types["Record"](text=text, raw=text.encode(), raw_wanted=text.encode(), hidden=b"hidden")

    deep = types["Tree"](record=record("deep"), name="deep")
    leaf = types["Leaf"](back=deep, records=[record("one"), record("two")], plain={"text": "plain"})
    branch = types["Tree"](leaves={"a": leaf}, chosen=record("chosen"))
    return types["Tree"](record=record("top"), branches=[branch, deep], labels={"k": "v"})


def test_every_shape_is_sealed_and_opened(sealer: Sealer, contract: Callable[[str], Mapping[str, Any]]) -> None:
    types = contract(TREE)
    plan, tree = planned(types["Tree"].DESCRIPTOR), a_tree(types)
    texts = [record.text for record in records_of(tree)]
    assert sorted(texts) == ["chosen", "deep", "deep", "one", "top", "two"]
    plan.seal(tree, sealer)
    for record, text in zip(records_of(tree), texts, strict=True):
        assert record.text.startswith("k1.")
        assert record.raw[1:33] == record.raw_wanted == sealer.blind_index_bytes(text.encode(), Index("raw"))
        assert not record.HasField("maybe")
        assert record.hidden == b"hidden"
    plan.open(tree, sealer)
    assert [record.text for record in records_of(tree)] == texts
    assert [record.raw.decode() for record in records_of(tree)] == texts
    assert all(len(record.raw_wanted) == 32 for record in records_of(tree))


def test_every_shape_is_redacted(contract: Callable[[str], Mapping[str, Any]]) -> None:
    types = contract(TREE)
    tree = a_tree(types)
    text = planned(types["Tree"].DESCRIPTOR).redacted(tree)
    for shown, times in {"hidden": 6, "***": 24, "plain": 2, "chosen": 1, "one": 0, "two": 0, "top": 0}.items():
        assert text.count(shown) == times, shown
    assert tree == a_tree(types)


def test_what_leads_to_no_mark_is_left_out(contract: Callable[[str], Mapping[str, Any]]) -> None:
    types = contract(TREE)
    marks = Marks()
    assert marks.plan(types["Plain"].DESCRIPTOR) is None
    # Of its three fields a leaf has a step for two: the plain one and all below it cost nothing.
    leaf = marks.plan(types["Leaf"].DESCRIPTOR)
    assert leaf is not None
    assert len(leaf._sealing) == len(leaf._opening) == len(leaf._redacting) == 2


def test_a_plan_does_not_depend_on_what_was_planned_before(contract: Callable[[str], Mapping[str, Any]]) -> None:
    types = contract(TREE)
    for order in itertools.permutations(["Record", "Tree", "Leaf", "Plain"]):
        marks = Marks()
        plans = {name: marks.plan(types[name].DESCRIPTOR) for name in order}
        sizes = {name: plan and len(plan._sealing) for name, plan in plans.items()}
        assert sizes == {"Record": 5, "Tree": 4, "Leaf": 2, "Plain": None}


def test_a_present_optional_value_is_sealed(sealer: Sealer, contract: Callable[[str], Mapping[str, Any]]) -> None:
    record = contract(RECORD_MESSAGE)["Record"](maybe="ann")
    plan = planned(record.DESCRIPTOR)
    plan.seal(record, sealer)
    assert record.maybe.startswith("k1.")
    plan.open(record, sealer)
    assert record.maybe == "ann"
    record.maybe = ""
    plan.seal(record, sealer)
    assert record.HasField("maybe")
    assert record.maybe == ""


# --- Marks that contradict themselves.

ENCRYPTED = "(sensitive) = {protection: PROTECTION_ENCRYPTED}"
PHONE_HASH = '(sensitive) = {protection: PROTECTION_HASHED index: "x" normalization: NORMALIZATION_PHONE}'
EXACT_HASH = '(sensitive) = {protection: PROTECTION_HASHED index: "x"}'


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (f"int32 n = 2 [{ENCRYPTED}];", "n is marked sensitive, but only singular string and bytes"),
        (f"repeated string n = 2 [{ENCRYPTED}];", "n is marked sensitive, but only singular"),
        (f"map<string, string> n = 2 [{ENCRYPTED}];", "n is marked sensitive, but only singular"),
        (f"Top n = 2 [{ENCRYPTED}];", "n is marked sensitive, but only singular"),
        ("string n = 2 [(sensitive) = {protection: PROTECTION_HASHED}];", "n is HASHED, which needs an index"),
        ('string n = 2 [(sensitive) = {index: "x"}];', "n is marked sensitive without a protection"),
        ("string n = 2 [(sensitive) = {}];", "n is marked sensitive without a protection"),
        ('string n = 2 [(sensitive) = {protection: PROTECTION_REDACTED index: "x"}];', "n is REDACTED"),
        (f"bytes n = 2 [{PHONE_HASH}];", "n holds bytes"),
        ("string n = 2 [(record_id) = true];", "more than one record_id: id, n"),
        ("google.protobuf.Any n = 2;", "holds a google.protobuf.Any"),
        ("map<string, google.protobuf.Any> n = 2;", "holds a google.protobuf.Any"),
        (f"string n = 2 [{EXACT_HASH}]; string m = 3 [{PHONE_HASH}];", "m normalises index x in another way"),
    ],
)
def test_contradictions_are_refused(contract: Callable[[str], Mapping[str, Any]], body: str, fault: str) -> None:
    types = contract(
        f"message Top {{ string id = 1 [(record_id) = true]; {body} }} message Outer {{ repeated Top tops = 1; }}"
    )
    marks = Marks()
    for name in ("Top", "Outer", "Outer"):
        with pytest.raises(MarkError, match=fault):
            marks.plan(types[name].DESCRIPTOR)


@pytest.mark.parametrize(
    "field", ["int32 id = 1", "repeated string id = 1", "optional string id = 1", "oneof x { string id = 1"]
)
def test_a_record_id_is_a_plain_string(contract: Callable[[str], Mapping[str, Any]], field: str) -> None:
    end = "}" if "{" in field else ""
    types = contract(f"message Top {{ {field} [(record_id) = true]; {end} }}")
    with pytest.raises(MarkError, match="only a plain string field"):
        Marks().plan(types["Top"].DESCRIPTOR)


def test_an_encrypted_field_needs_a_record_id(contract: Callable[[str], Mapping[str, Any]]) -> None:
    types = contract(f"message Top {{ string text = 1 [{ENCRYPTED}]; }}")
    with pytest.raises(MarkError, match="no record_id"):
        Marks().plan(types["Top"].DESCRIPTOR)


def test_an_index_has_one_normalisation_in_all_messages(contract: Callable[[str], Mapping[str, Any]]) -> None:
    hashed = 'message Top { string text = 1 [(sensitive) = {protection: PROTECTION_HASHED index: "shared.index"}]; }'
    one = contract(hashed)
    two = contract(hashed.replace('"}', '" normalization: NORMALIZATION_CASELESS}'))
    marks = Marks()
    assert marks.plan(one["Top"].DESCRIPTOR)
    with pytest.raises(MarkError, match=r"another way than .*Top\.text does"):
        marks.plan(two["Top"].DESCRIPTOR)
    assert Marks().plan(two["Top"].DESCRIPTOR)


def test_the_protections_are_those_of_the_contract() -> None:
    contract = {name.removeprefix("PROTECTION_"): number for name, number in options_pb2.Protection.items() if number}
    assert contract == {member.name: member.value for member in marks_module._Protection}


# --- No sensitive field without a mark.


def generated_files() -> list[FileDescriptor]:
    """Return the descriptors of every generated module of the contract."""
    names = [found.name for found in pkgutil.walk_packages(kronos.__path__, "kronos.") if found.name.endswith("_pb2")]
    return [importlib.import_module(name).DESCRIPTOR for name in names]


def test_every_field_of_the_contract_that_sounds_sensitive_is_marked() -> None:
    files = generated_files()
    assert users_pb2.DESCRIPTOR in files
    assert unmarked_fields(files, NOT_SENSITIVE) == []


def test_every_exception_is_needed() -> None:
    names = {full_name.rpartition(".")[2] for full_name in unmarked_fields(generated_files())}
    assert names == set(NOT_SENSITIVE)


def test_every_message_of_the_contract_can_be_planned() -> None:
    marks = Marks()
    for file in generated_files():
        for descriptor in file.message_types_by_name.values():
            marks.plan(descriptor)


def test_finds_unmarked_fields_wherever_they_are(contract: Callable[..., Mapping[str, Any]]) -> None:
    types = contract(
        """
        message Top {
          string email = 1;
          repeated string phones = 2;
          bytes api_secret_hash = 3;
          map<string, string> tokens = 4;
          message Inner { optional string user_password = 1; }
          string password = 5 [(sensitive) = {protection: PROTECTION_REDACTED}];
          int64 token_count = 6;
          bool phone_verified = 7;
          string secretary = 8;
          string tokenizer = 9;
          Inner credentials = 10;
          map<string, int32> emails = 11;
        }
        """,
        package="kronos.trial",
    )
    top = types["Top"].DESCRIPTOR
    below = [name.removeprefix(top.full_name + ".") for name in unmarked_fields([top.file])]
    assert below == ["email", "phones", "api_secret_hash", "tokens", "Inner.user_password"]
    allowed = ["email", f"{top.full_name}.phones", "hash"]
    assert len(unmarked_fields([top.file], allowed)) == 3
    assert unmarked_fields([contract("message Top { string email = 1; }")["Top"].DESCRIPTOR.file]) == []
