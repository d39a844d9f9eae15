"""Which message types the contract states rules for, and the same types without what has none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

# What a file imports that states rules.
_RULES = "buf/validate/validate.proto"


def has_rules(descriptor: Descriptor) -> bool:
    """Tell whether the contract states a rule for a message type, or for one that it may hold."""
    return any(_states_rules(message, message.fields) for message in _types_below(descriptor))


class RuledTypes:
    """Message types without the fields that hold messages and lead to no rule: their content stays unread.

    To hold a message against its rules takes a time for each field that may hold one, also when it is absent.
    """

    def __init__(self) -> None:
        self._pool = DescriptorPool()
        self._known: set[str] = set()

    def narrowed(self, descriptor: Descriptor) -> type[Message] | None:
        """Return a class that reads the same bytes and has the same rules; None when it would leave nothing out."""
        if not any(_left_out(message) for message in _types_below(descriptor)):
            return None
        self._add(descriptor.file)
        return GetMessageClass(self._pool.FindMessageTypeByName(descriptor.full_name))

    def _add(self, file: FileDescriptor) -> None:
        if file.name in self._known:
            return
        self._known.add(file.name)
        for needed in file.dependencies:
            self._add(needed)
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        proto.ClearField("service")
        for name, message in file.message_types_by_name.items():
            _narrow(next(each for each in proto.message_type if each.name == name), message)
        self._pool.Add(proto)


def _narrow(proto: DescriptorProto, descriptor: Descriptor) -> None:
    """Take out of a type, and of those that stand in it, what is left out."""
    names = {field.name for field in _left_out(descriptor)}
    kept = [field for field in proto.field if field.name not in names]
    del proto.field[:]
    proto.field.extend(kept)
    for nested in proto.nested_type:
        _narrow(nested, descriptor.nested_types_by_name[nested.name])


def _left_out(descriptor: Descriptor) -> list[FieldDescriptor]:
    """Return the fields of a type that hold messages and lead to no rule."""
    # Files without rules stay as they are. A rule of the whole message may speak of any of its fields, and one of a
    # oneof of its own.
    if not _may_state_rules(descriptor.file) or _states_rules(descriptor, ()):
        return []
    return [
        field
        for field in descriptor.fields
        if field.message_type is not None
        and field.containing_oneof is None
        and not _are_rules(field.GetOptions())
        and not has_rules(field.message_type)
    ]


def _may_state_rules(file: FileDescriptor) -> bool:
    return any(needed.name == _RULES for needed in file.dependencies)


def _types_below(descriptor: Descriptor) -> Iterator[Descriptor]:
    """Yield a type and each that it may hold, once."""
    found = {descriptor.full_name}
    waiting = [descriptor]
    while waiting:
        message = waiting.pop()
        yield message
        for field in message.fields:
            below = field.message_type
            if below is not None and below.full_name not in found:
                found.add(below.full_name)
                waiting.append(below)


def _states_rules(descriptor: Descriptor, fields: Iterable[FieldDescriptor]) -> bool:
    """Tell whether there is a rule for a type itself, for a oneof of it, or for one of these fields."""
    return any(_are_rules(part.GetOptions()) for part in (descriptor, *descriptor.oneofs, *fields))


def _are_rules(options: Any) -> bool:
    return any(field.full_name.startswith("buf.validate.") for field, _ in options.ListFields())
