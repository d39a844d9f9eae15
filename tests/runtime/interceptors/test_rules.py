"""A narrowed type reads the same bytes and is held to the same rules."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from kronos.logs.v1 import logs_pb2
from kronos.messages.v1 import messages_pb2
from kronos.users.v1 import users_pb2
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from protovalidate import Validator

from kronos_db.runtime.interceptors.rules import RuledTypes, has_rules
from kronos_db.schemas import SERVED

_TYPES = RuledTypes()
_TEXTS = ["", "a", "x@y.z", "A b", "x" * 130, "x" * 5000, "0189d5c0-0000-7000-8000-000000000000", "/a/{b}/**"]
_NUMBERS = [0, 1, -1, 7, 1 << 30]
_DEPTH = 4


def _requests() -> Iterator[Descriptor]:
    for domain in SERVED:
        for method in Default().FindServiceByName(f"kronos.{domain}.v1.{domain.capitalize()}Service").methods:
            yield method.input_type


def _fill(message: Any, chance: random.Random, depth: int = 0) -> None:
    """Give about half of the fields a value, some of them one that no rule allows."""
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.5 or (depth == _DEPTH and field.message_type):
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            _fill_map(getattr(message, field.name), field.message_type, chance, depth)
        elif field.is_repeated:
            for _ in range(chance.choice([1, 2, 3])):
                if field.message_type:
                    _fill(getattr(message, field.name).add(), chance, depth + 1)
                else:
                    getattr(message, field.name).append(_value(field, chance))
        elif field.message_type:
            getattr(message, field.name).SetInParent()
            _fill(getattr(message, field.name), chance, depth + 1)
        else:
            setattr(message, field.name, _value(field, chance))


def _fill_map(values: Any, entry: Descriptor, chance: random.Random, depth: int) -> None:
    key = _value(entry.fields_by_name["key"], chance)
    value = entry.fields_by_name["value"]
    if value.message_type:
        _fill(values[key], chance, depth + 1)
    else:
        values[key] = _value(value, chance)


def _value(field: FieldDescriptor, chance: random.Random) -> Any:
    kinds = FieldDescriptor
    if field.cpp_type == kinds.CPPTYPE_STRING:
        text = chance.choice(_TEXTS)
        return text.encode() if field.type == kinds.TYPE_BYTES else text
    if field.cpp_type == kinds.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if field.cpp_type in (kinds.CPPTYPE_FLOAT, kinds.CPPTYPE_DOUBLE):
        return chance.choice([0.0, -1.5, 1e9])
    if field.cpp_type in (kinds.CPPTYPE_UINT32, kinds.CPPTYPE_UINT64):
        return abs(chance.choice(_NUMBERS))
    return chance.choice(_NUMBERS)


def _told(violations: Any) -> list[str]:
    return sorted(str(violation.proto) for violation in violations)


def test_what_is_refused_does_not_change() -> None:
    whole, narrow = Validator(), Validator()
    chance = random.Random(1)
    narrowed, told = 0, 0
    for request in _requests():
        made = _TYPES.narrowed(request)
        if made is None:
            continue
        narrowed += 1
        for _ in range(20):
            message: Message = GetMessageClass(request)()
            _fill(message, chance)
            expected = _told(whole.collect_violations(message))
            assert _told(narrow.collect_violations(made.FromString(message.SerializeToString()))) == expected
            told += len(expected)
    assert narrowed > 20
    assert told > 1000


@pytest.mark.parametrize(
    ("request_type", "kept", "left_out"),
    [
        (messages_pb2.EnqueueMessagesRequest, {"headers", "delay", "time_to_live", "failures"}, {"due_time"}),
        (users_pb2.UpdateUserRequest, {"email", "phone"}, {"attributes", "create_time"}),
        (logs_pb2.WriteLogsRequest, {"trace_id"}, {"body", "filed_time"}),
    ],
)
def test_what_is_left_out(request_type: Any, kept: set[str], left_out: set[str]) -> None:
    made = _TYPES.narrowed(request_type.DESCRIPTOR)
    assert made is not None
    names = {
        inner.name for field in made.DESCRIPTOR.fields if field.message_type for inner in field.message_type.fields
    }
    assert kept <= names
    assert not left_out & names


def test_a_type_that_would_lose_nothing_is_left_alone() -> None:
    assert _TYPES.narrowed(users_pb2.GetUserRequest.DESCRIPTOR) is None


def test_rules_are_found_however_deep() -> None:
    assert has_rules(logs_pb2.WriteLogsRequest.DESCRIPTOR)
    assert has_rules(users_pb2.BatchCreateUsersRequest.DESCRIPTOR)
    # In a oneof alone, and in a message further down.
    assert has_rules(users_pb2.GetUserRequest.DESCRIPTOR)
    assert not has_rules(logs_service_pb2.ExportLogsServiceRequest.DESCRIPTOR)
    # One that holds itself ends too.
    assert not has_rules(descriptor_pb2.DescriptorProto.DESCRIPTOR)
    assert not has_rules(health_pb2.HealthCheckRequest.DESCRIPTOR)
