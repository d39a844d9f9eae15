"""Writes the messages and enums of a method in the words of the contract, for people who have no `.proto` at hand."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor

_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_") and isinstance(number, int)
}


def describe(method: MethodDescriptor) -> Iterator[str]:
    """Yield one text for each message and enum that the method's request and response are made of.

    Types of the method's own package stand without it. What protobuf itself defines is known and left out.
    """
    package = f"{method.containing_service.file.package}."
    waiting: list[Descriptor | EnumDescriptor] = [method.output_type, method.input_type]
    seen: set[str] = set()
    while waiting:
        kind = waiting.pop()
        if kind.full_name in seen or kind.full_name.startswith("google.protobuf."):
            continue
        seen.add(kind.full_name)
        name = kind.full_name.removeprefix(package)
        if isinstance(kind, EnumDescriptor):
            yield _block("enum", name, [f"{value.name} = {value.number};" for value in kind.values])
        else:
            waiting += [inner for field in reversed(kind.fields) for inner in _inner(field)]
            yield _block("message", name, [_line(field, package) for field in kind.fields])


def _block(word: str, name: str, lines: list[str]) -> str:
    body = "".join(f"  {line}\n" for line in lines)
    return f"{word} {name} {{\n{body}}}"


def _inner(field: FieldDescriptor) -> list[Descriptor | EnumDescriptor]:
    """Return the type that a field brings with it, if it is not a scalar."""
    if field.enum_type is not None:
        return [field.enum_type]
    if field.message_type is None:
        return []
    return _inner(field.message_type.fields_by_name["value"]) if _is_map(field) else [field.message_type]


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _line(field: FieldDescriptor, package: str) -> str:
    end = f" {field.name} = {field.number};"
    if field.message_type is not None and _is_map(field):
        entry = field.message_type.fields_by_name
        return f"map<{_kind(entry['key'], package)}, {_kind(entry['value'], package)}>{end}"
    group = field.containing_oneof
    # An optional field is a oneof of its own, with a name that begins with an underscore.
    optional = group is not None and group.name.startswith("_")
    label = "repeated " if field.is_repeated else "optional " if optional else ""
    note = f"  // one of {group.name}" if group is not None and not optional else ""
    return f"{label}{_kind(field, package)}{end}{note}"


def _kind(field: FieldDescriptor, package: str) -> str:
    kind = field.message_type or field.enum_type
    return _SCALARS[field.type] if kind is None else kind.full_name.removeprefix(package)
