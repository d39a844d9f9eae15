"""Writes a file descriptor as `.proto` text, for third-party files that come as descriptors alone.

It knows what `buf/validate/validate.proto` is made of: messages, enums, oneofs, extensions and options, in proto2 and
proto3. Maps, groups, nested types and services it refuses, so that no text means something else than its descriptor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf import text_encoding, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.message import Message

_LABELS = {
    FieldDescriptorProto.LABEL_OPTIONAL: "optional ",
    FieldDescriptorProto.LABEL_REQUIRED: "required ",
    FieldDescriptorProto.LABEL_REPEATED: "repeated ",
}
_END_OF_NUMBERS = 1 << 29


def proto_text(file: FileDescriptorProto) -> str:
    """Return the text of `file`. Its options must have been parsed with their extensions known."""
    if file.service:
        raise ValueError(f"{file.name} has services")
    syntax = file.syntax or "proto2"
    lines = [f'syntax = "{syntax}";', "", f"package {file.package};", ""]
    lines += [f'import "{name}";' for name in file.dependency]
    lines += ["", *(f"option {option};" for option in _options(file)), ""]
    for extension in file.extension:
        lines += [f"extend {extension.extendee} {{", f"  {_field(extension, syntax)}", "}", ""]
    for message in file.message_type:
        lines += [*_message(message, syntax), ""]
    for enum in file.enum_type:
        lines += [*_enum(enum), ""]
    return "\n".join(lines)


def _message(message: DescriptorProto, syntax: str) -> Iterator[str]:
    if message.nested_type or message.enum_type or message.extension:
        raise ValueError(f"{message.name} has nested types, maps, groups or extensions")
    yield f"message {message.name} {{"
    yield from (f"  option {option};" for option in _options(message))
    ranges = [_range(part.start, part.end - 1, _END_OF_NUMBERS - 1) for part in message.reserved_range]
    yield from _reserved(ranges, message.reserved_name)
    yield from (f"  extensions {_range(e.start, e.end - 1, _END_OF_NUMBERS - 1)};" for e in message.extension_range)
    begun: set[int] = set()
    for field in message.field:
        # proto3's `optional` is a oneof of its own in the descriptor alone.
        if not field.HasField("oneof_index") or field.proto3_optional:
            yield f"  {_field(field, syntax)}"
        elif field.oneof_index not in begun:
            begun.add(field.oneof_index)
            oneof = message.oneof_decl[field.oneof_index]
            yield f"  oneof {oneof.name} {{"
            yield from (f"    option {option};" for option in _options(oneof))
            for member in message.field:
                if member.HasField("oneof_index") and member.oneof_index == field.oneof_index:
                    yield f"    {_field(member, syntax, in_oneof=True)}"
            yield "  }"
    yield "}"


def _enum(enum: EnumDescriptorProto) -> Iterator[str]:
    yield f"enum {enum.name} {{"
    yield from (f"  option {option};" for option in _options(enum))
    ranges = [_range(part.start, part.end, (1 << 31) - 1) for part in enum.reserved_range]
    yield from _reserved(ranges, enum.reserved_name)
    for value in enum.value:
        yield f"  {value.name} = {value.number}{_bracketed(_options(value))};"
    yield "}"


def _field(field: FieldDescriptorProto, syntax: str, *, in_oneof: bool = False) -> str:
    if field.HasField("default_value"):
        raise ValueError(f"{field.name} has a default value")
    plain = in_oneof or (syntax == "proto3" and field.label == field.LABEL_OPTIONAL and not field.proto3_optional)
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return f"{'' if plain else _LABELS[field.label]}{kind} {field.name} = {field.number}{_bracketed(_options(field))};"


def _options(described: Message) -> Iterator[str]:
    """Yield each option as NAME = VALUE, a repeated one once for each value."""
    if not described.HasField("options"):
        return
    options: Message = getattr(described, "options")  # noqa: B009 - mypy knows no message with options
    for field, value in options.ListFields():
        name = f"({field.full_name})" if field.is_extension else field.name
        for single in value if field.is_repeated else [value]:
            yield f"{name} = {_value(field, single)}"


def _value(field: FieldDescriptor, value: object) -> str:
    if isinstance(value, Message):
        return f"{{ {text_format.MessageToString(value, as_one_line=True, as_utf8=True)} }}"
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{text_encoding.CEscape(value, as_utf8=True)}"' if isinstance(value, str) else str(value)


def _bracketed(options: Iterable[str]) -> str:
    inner = ", ".join(options)
    return f" [{inner}]" if inner else ""


def _reserved(ranges: list[str], names: Iterable[str]) -> Iterator[str]:
    yield from (f"  reserved {part};" for part in ranges)
    yield from (f'  reserved "{name}";' for name in names)


def _range(first: int, last: int, end: int) -> str:
    return f"{first}" if first == last else f"{first} to {'max' if last >= end else last}"
