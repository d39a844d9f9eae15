"""What holds for every method of every service of the contract, present and to come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    MethodOptions,
    ServiceDescriptorProto,
)

_IMAGE = Path(__file__).parent.parent.parent / "generated" / "kronos.binpb"
_READS = (
    "Advise",
    "Explain",
    "Get",
    "BatchGet",
    "List",
    "Query",
    "Verify",
    "Check",
    "BatchCheck",
    "Introspect",
    "BatchIntrospect",
    "Search",
    "Count",
    "Aggregate",
    "Watch",
    "Tail",
    "Peek",
    "Resolve",
)
# It takes leases.
_WRITES = ("GetOrLease", "VerifyBackup")
_SERVICE, _METHOD, _MESSAGE, _ENUM, _FIELD = 6, 2, 4, 5, 2

FILES = [file for file in FileDescriptorSet.FromString(_IMAGE.read_bytes()).file if file.package.startswith("kronos.")]
MESSAGES = {f".{file.package}.{message.name}": message for file in FILES for message in file.message_type}


def _methods() -> Iterator[tuple[FileDescriptorProto, ServiceDescriptorProto, MethodDescriptorProto]]:
    for file in FILES:
        for service in file.service:
            for method in service.method:
                yield file, service, method


METHODS = list(_methods())
each_method = pytest.mark.parametrize(
    ("file", "service", "method"), METHODS, ids=[f"{service.name}.{method.name}" for _, service, method in METHODS]
)


def _comment(file: FileDescriptorProto, *path: int) -> str:
    found = next((where for where in file.source_code_info.location if list(where.path) == list(path)), None)
    return found.leading_comments.strip() if found else ""


def _fields(message: DescriptorProto) -> dict[str, FieldDescriptorProto]:
    return {field.name: field for field in message.field}


def test_there_is_something_to_look_at() -> None:
    assert len(METHODS) >= 13


@each_method
def test_a_method_says_what_it_does(
    file: FileDescriptorProto, service: ServiceDescriptorProto, method: MethodDescriptorProto
) -> None:
    at = (list(file.service).index(service), list(service.method).index(method))

    comment = _comment(file, _SERVICE, at[0], _METHOD, at[1])

    assert comment.endswith(".")
    assert len(comment) > 20


@each_method
def test_reads_and_writes_are_told_apart(
    file: FileDescriptorProto, service: ServiceDescriptorProto, method: MethodDescriptorProto
) -> None:
    request = _fields(MESSAGES[method.input_type])

    if method.client_streaming and "request_id" not in request:
        # Each message of the caller is answered on the stream; a repeat of the whole makes no sense. Where each is a
        # write of its own, it is told apart as those are.
        assert "validate_only" not in request
    elif method.name.startswith(_READS) and method.name not in _WRITES:
        assert method.options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS
        assert not {"request_id", "validate_only"} & set(request)
    else:
        assert method.options.idempotency_level == MethodOptions.IDEMPOTENT
        assert request["request_id"].type == FieldDescriptorProto.TYPE_STRING
        assert request["validate_only"].type == FieldDescriptorProto.TYPE_BOOL


@each_method
def test_each_has_messages_of_its_own(
    file: FileDescriptorProto, service: ServiceDescriptorProto, method: MethodDescriptorProto
) -> None:
    assert method.input_type == f".{file.package}.{method.name}Request"
    assert method.output_type == f".{file.package}.{method.name}Response"


@each_method
def test_lists_have_pages(
    file: FileDescriptorProto, service: ServiceDescriptorProto, method: MethodDescriptorProto
) -> None:
    if not method.name.startswith("List"):
        return
    assert {"page_size", "page_token"} <= set(_fields(MESSAGES[method.input_type]))
    assert "next_page_token" in _fields(MESSAGES[method.output_type])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_packages_and_services_are_named_by_their_domain(file: FileDescriptorProto) -> None:
    _, domain, version = file.package.split(".")

    assert version == "v1"
    # A domain's one service is in the file of its name; messages may be in others beside it.
    own = f"kronos/{domain}/v1/{domain}.proto"
    assert file.name.rpartition("/")[0] == own.rpartition("/")[0]
    services = [service.name for service in file.service]
    assert services in ([], [f"{domain.title()}Service"] if file.name == own else [])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_message_field_and_value_is_explained(file: FileDescriptorProto) -> None:
    silent = []
    for number, message in enumerate(file.message_type):
        if not _comment(file, _MESSAGE, number):
            silent.append(message.name)
        silent += [
            f"{message.name}.{field.name}"
            for position, field in enumerate(message.field)
            if not _comment(file, _MESSAGE, number, _FIELD, position)
        ]
    for number, enum in enumerate(file.enum_type):
        silent += [
            f"{enum.name}.{value.name}"
            for position, value in enumerate(enum.value)
            if not _comment(file, _ENUM, number, _FIELD, position)
        ]

    assert silent == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_enums_begin_with_unspecified(file: FileDescriptorProto) -> None:
    for enum in file.enum_type:
        assert enum.value[0].number == 0
        assert enum.value[0].name.endswith("_UNSPECIFIED")
