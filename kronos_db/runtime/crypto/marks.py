"""Reads the marks of the contract (kronos/options/v1) and compiles them, once per message type, into what to do."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import Message
from kronos.options.v1 import options_pb2

from kronos_db.runtime.crypto.normalization import Normalization
from kronos_db.runtime.crypto.sealing import Index, Opener, Sealer
from kronos_db.runtime.errors import BadRequestError, KronosError
from kronos_db.runtime.identifiers import canonical_uuid, uuid7_text

REDACTION = "***"
SENSITIVE_WORDS = frozenset({"email", "phone", "token", "secret", "password", "credential"})

_ANY = "google.protobuf.Any"

_Context = TypeVar("_Context")
# Does one thing to a message in place.
_Step = Callable[[Any, _Context], None]


class MarkError(KronosError):
    """The contract's marks contradict themselves; the text names the field."""


class _Protection(enum.IntEnum):
    """Names and numbers are those of kronos.options.v1.Protection."""

    ENCRYPTED = 1
    HASHED = 2
    REDACTED = 3


class _Shape(enum.Enum):
    """How a field holds messages."""

    ONE = enum.auto()
    MANY = enum.auto()
    BY_KEY = enum.auto()


@dataclass(frozen=True, slots=True)
class _MarkedField:
    name: str
    full_name: str
    is_text: bool
    protection: _Protection
    index: Index | None


@dataclass(frozen=True, slots=True)
class _Child:
    name: str
    shape: _Shape
    type: Descriptor


@dataclass(frozen=True, slots=True)
class _MessageMarks:
    """What one message type holds: its own marked fields, and the fields that may hold some further down."""

    record_id: str | None
    fields: tuple[_MarkedField, ...]
    children: tuple[_Child, ...]

    def of(self, protection: _Protection) -> Iterator[_MarkedField]:
        """Yield the fields with this protection."""
        return (field for field in self.fields if field.protection is protection)


class Plan:
    """What to do with the marked fields of one message type, at any depth; usable from any thread."""

    def __init__(
        self, sealing: Sequence[_Step[Sealer]], opening: Sequence[_Step[Opener]], redacting: Sequence[_Step[None]]
    ) -> None:
        self._sealing = tuple(sealing)
        self._opening = tuple(opening)
        self._redacting = tuple(redacting)

    def seal(self, message: Message, sealer: Sealer) -> None:
        """Change a request in place: record ids made canonical or assigned, ENCRYPTED sealed, HASHED replaced.

        Empty values stay empty. Raises BadRequestError for a record id that is no UUID.
        """
        for step in self._sealing:
            step(message, sealer)

    def open(self, message: Message, opener: Opener) -> None:
        """Change an answer in place: ENCRYPTED opened, all else left.

        Raises SealBrokenError, and leaves `message` half opened, when a value does not open.
        """
        for step in self._opening:
            step(message, opener)

    def redacted(self, message: Message) -> str:
        """Return `message` as one line of ASCII with `***` for every marked value; `message` stays as it is."""
        if self._redacting:
            copy = type(message)()
            copy.CopyFrom(message)
            message = copy
        for step in self._redacting:
            step(message, None)
        return one_line(message)


def one_line(message: Message) -> str:
    """Return `message` in the protobuf text format, on one line and in ASCII. Shows every value."""
    return text_format.MessageToString(message, as_one_line=True, as_utf8=False)


class Marks:
    """The marks of all message types asked for so far. Compile at start: `plan` is not meant for several threads.

    The marks of a `google.protobuf.Any`'s content are out of reach, so a message type of ours may not hold one.
    """

    def __init__(self) -> None:
        self._read: dict[str, _MessageMarks] = {}
        self._indexes: dict[str, tuple[Normalization, str]] = {}
        self._sealing = _Compiler[Sealer](self._marks_of, _sealing_steps)
        self._opening = _Compiler[Opener](self._marks_of, _opening_steps)
        self._redacting = _Compiler[None](self._marks_of, _redacting_steps)

    def plan(self, descriptor: Descriptor) -> Plan | None:
        """Return what to do with messages of this type; None when nothing in them is marked.

        Raises MarkError when marks below it contradict themselves.
        """
        # All marks are read first, so that a contradiction is found before anything is built.
        for _ in _marks_below(descriptor, self._marks_of):
            pass
        sealing, opening = self._sealing.steps(descriptor), self._opening.steps(descriptor)
        redacting = self._redacting.steps(descriptor)
        return Plan(sealing, opening, redacting) if sealing or opening or redacting else None

    def _marks_of(self, descriptor: Descriptor) -> _MessageMarks:
        known = self._read.get(descriptor.full_name)
        if known is None:
            known = self._read[descriptor.full_name] = self._read_marks(descriptor)
        return known

    def _read_marks(self, descriptor: Descriptor) -> _MessageMarks:
        fields = tuple(marked for field in descriptor.fields if (marked := _marked(field)))
        record_ids = [field.name for field in descriptor.fields if _is_record_id(field)]
        if len(record_ids) > 1:
            raise MarkError(f"{descriptor.full_name} has more than one record_id: {', '.join(record_ids)}.")
        for field in fields:
            if field.protection is _Protection.ENCRYPTED and not record_ids:
                raise MarkError(f"{field.full_name} is ENCRYPTED, but its message has no record_id to bind it to.")
            self._register(field)
        children = tuple(child for field in descriptor.fields if (child := _child(field)))
        ours = not descriptor.file.package.startswith("google.")
        if ours and any(child.type.full_name == _ANY for child in children):
            raise MarkError(f"{descriptor.full_name} holds a {_ANY}, which marks do not reach into.")
        return _MessageMarks(record_ids[0] if record_ids else None, fields, children)

    def _register(self, field: _MarkedField) -> None:
        """Hold all fields of one index to one normalisation: else equal values would not be found."""
        if field.index is None:
            return
        normalization, first = self._indexes.setdefault(field.index.name, (field.index.normalization, field.full_name))
        if normalization is not field.index.normalization:
            raise MarkError(f"{field.full_name} normalises index {field.index.name} in another way than {first} does.")


def _marked(field: FieldDescriptor) -> _MarkedField | None:
    options = field.GetOptions()
    if not options.HasExtension(options_pb2.sensitive):
        return None
    mark = options.Extensions[options_pb2.sensitive]
    name = field.full_name
    if field.is_repeated or field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        raise MarkError(f"{name} is marked sensitive, but only singular string and bytes fields can be.")
    try:
        protection, normalization = _Protection(mark.protection), Normalization(mark.normalization)
    except ValueError:
        raise MarkError(f"{name} is marked sensitive without a protection or normalization that is known.") from None
    if protection is _Protection.HASHED and not mark.index:
        raise MarkError(f"{name} is HASHED, which needs an index.")
    if protection is _Protection.REDACTED and mark.index:
        raise MarkError(f"{name} is REDACTED, which has no index.")
    is_text = field.type == FieldDescriptor.TYPE_STRING
    if not is_text and normalization is not Normalization.UNSPECIFIED:
        raise MarkError(f"{name} holds bytes, which are compared byte for byte, without normalization.")
    return _MarkedField(field.name, name, is_text, protection, Index(mark.index, normalization) if mark.index else None)


def _is_record_id(field: FieldDescriptor) -> bool:
    if not field.GetOptions().Extensions[options_pb2.record_id]:
        return False
    if field.is_repeated or field.type != FieldDescriptor.TYPE_STRING or field.containing_oneof is not None:
        raise MarkError(
            f"{field.full_name} is a record_id, but only a plain string field can be: not repeated or optional."
        )
    return True


def _child(field: FieldDescriptor) -> _Child | None:
    inner = field.message_type
    shape = _Shape.MANY if field.is_repeated else _Shape.ONE
    if inner is not None and inner.GetOptions().map_entry:
        shape, inner = _Shape.BY_KEY, inner.fields_by_name["value"].message_type
    if inner is None:
        return None
    return _Child(field.name, shape, inner)


class _Compiler(Generic[_Context]):
    """Builds the steps of one kind of work for message types, leaving out all that leads to no work."""

    def __init__(
        self,
        marks_of: Callable[[Descriptor], _MessageMarks],
        own_steps: Callable[[_MessageMarks], list[_Step[_Context]]],
    ) -> None:
        self._marks_of = marks_of
        self._own_steps = own_steps
        self._built: dict[str, list[_Step[_Context]]] = {}

    def steps(self, descriptor: Descriptor) -> list[_Step[_Context]]:
        """Return the steps for messages of this type."""
        built = self._built.get(descriptor.full_name)
        if built is not None:
            return built
        marks = self._marks_of(descriptor)
        # Known before it is filled, because a recursive type finds itself here.
        steps = self._built[descriptor.full_name] = []
        inner = [_descend(child, self.steps(child.type)) for child in marks.children if self._leads_to_work(child.type)]
        steps += self._own_steps(marks) + inner
        return steps

    def _leads_to_work(self, descriptor: Descriptor) -> bool:
        return any(self._own_steps(marks) for marks in _marks_below(descriptor, self._marks_of))


def _marks_below(start: Descriptor, marks_of: Callable[[Descriptor], _MessageMarks]) -> Iterator[_MessageMarks]:
    """Yield the marks of `start` and of each message type below it, once."""
    seen, ahead = {start.full_name}, [start]
    while ahead:
        marks = marks_of(ahead.pop())
        yield marks
        for child in marks.children:
            if child.type.full_name not in seen:
                seen.add(child.type.full_name)
                ahead.append(child.type)


def _descend(child: _Child, steps: list[_Step[_Context]]) -> _Step[_Context]:
    """Return the step that takes `steps`, which may be filled later, on what a field holds."""
    name = child.name

    def one(message: Any, context: _Context) -> None:
        if message.HasField(name):
            inner = getattr(message, name)
            for step in steps:
                step(inner, context)

    def many(message: Any, context: _Context) -> None:
        for inner in getattr(message, name):
            for step in steps:
                step(inner, context)

    def by_key(message: Any, context: _Context) -> None:
        for inner in getattr(message, name).values():
            for step in steps:
                step(inner, context)

    return {_Shape.ONE: one, _Shape.MANY: many, _Shape.BY_KEY: by_key}[child.shape]


def _sealing_steps(marks: _MessageMarks) -> list[_Step[Sealer]]:
    # The record id first: values are bound to it.
    steps = [_record_id_step(marks.record_id)] if marks.record_id else []
    steps += [_seal_step(field, marks.record_id) for field in marks.of(_Protection.ENCRYPTED) if marks.record_id]
    return steps + [_hash_step(field, field.index) for field in marks.of(_Protection.HASHED) if field.index]


def _opening_steps(marks: _MessageMarks) -> list[_Step[Opener]]:
    return [_open_step(field, marks.record_id) for field in marks.of(_Protection.ENCRYPTED) if marks.record_id]


def _redacting_steps(marks: _MessageMarks) -> list[_Step[None]]:
    return [_redact_step(field) for field in marks.fields]


def _record_id_step(name: str) -> _Step[Sealer]:
    def assign(message: Any, _: Sealer) -> None:
        value = getattr(message, name)
        if not value:
            setattr(message, name, uuid7_text())
            return
        record_id = canonical_uuid(value)
        if record_id is None:
            raise BadRequestError.of(name, "must be a UUID")
        if record_id != value:
            setattr(message, name, record_id)

    return assign


def _seal_step(field: _MarkedField, record_id: str) -> _Step[Sealer]:
    name, full_name, index = field.name, field.full_name, field.index

    def seal_text(message: Any, sealer: Sealer) -> None:
        value = getattr(message, name)
        if value:
            setattr(message, name, sealer.seal_text(value, full_name, getattr(message, record_id), index))

    def seal_bytes(message: Any, sealer: Sealer) -> None:
        value = getattr(message, name)
        if value:
            setattr(message, name, sealer.seal_bytes(value, full_name, getattr(message, record_id), index))

    return seal_text if field.is_text else seal_bytes


def _open_step(field: _MarkedField, record_id: str) -> _Step[Opener]:
    name, full_name = field.name, field.full_name

    def open_text(message: Any, opener: Opener) -> None:
        value = getattr(message, name)
        if value:
            setattr(message, name, opener.open_text(value, full_name, getattr(message, record_id)))

    def open_bytes(message: Any, opener: Opener) -> None:
        value = getattr(message, name)
        if value:
            setattr(message, name, opener.open_bytes(value, full_name, getattr(message, record_id)))

    return open_text if field.is_text else open_bytes


def _hash_step(field: _MarkedField, index: Index) -> _Step[Sealer]:
    name = field.name
    method = "blind_index" if field.is_text else "blind_index_bytes"

    def hash_(message: Any, sealer: Sealer) -> None:
        value = getattr(message, name)
        if value:
            setattr(message, name, getattr(sealer, method)(value, index))

    return hash_


def _redact_step(field: _MarkedField) -> _Step[None]:
    name = field.name
    replacement = REDACTION if field.is_text else REDACTION.encode()

    def redact(message: Any, _: None) -> None:
        if getattr(message, name):
            setattr(message, name, replacement)

    return redact


def unmarked_fields(files: Iterable[FileDescriptor], allowed: Collection[str] = ()) -> list[str]:
    """Return the full names of fields in packages below `kronos.` that are named like a secret but bear no mark.

    Looks at `string` and `bytes` fields, also repeated ones and values of maps, for SENSITIVE_WORDS and their plurals
    as whole words of a name. `allowed` holds names of fields, simple or full, that are none.
    """
    return [
        field.full_name
        for file in files
        if file.package.startswith("kronos.")
        for descriptor in file.message_types_by_name.values()
        for field in _fields_below(descriptor)
        if _sounds_sensitive(field) and not {field.name, field.full_name} & set(allowed)
    ]


def _fields_below(descriptor: Descriptor) -> Iterator[FieldDescriptor]:
    yield from descriptor.fields
    for nested in descriptor.nested_types:
        if not nested.GetOptions().map_entry:
            yield from _fields_below(nested)


def _sounds_sensitive(field: FieldDescriptor) -> bool:
    value = field
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
    holds_text = value.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    words = {word.removesuffix("s") for word in field.name.lower().split("_")}
    return holds_text and bool(words & SENSITIVE_WORDS) and not field.GetOptions().HasExtension(options_pb2.sensitive)
