"""Templates of paths, and the one form in which paths are compared.

The rules are those of the contract (`RoutesService`): RFC 3986 sections 5.2.4 and 6.2.2, and besides that what two
parties could read differently, an encoded slash for one, is refused and not guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from kronos_db.runtime.errors import BadRequestError, FieldViolation

_MOST_SEGMENTS = 64
# As many paths as a table may have routes.
_REMEMBERED = 20_000
_LONGEST_PATH = 8192
# A path that is its own normal form: no dots at the beginning of a segment, nothing encoded, no slash at the end.
_PLAIN = re.compile(r"(?:/[A-Za-z0-9_~!$&'()*+,;=:@-][A-Za-z0-9._~!$&'()*+,;=:@-]*)+")
# What may stand in a path besides the percent sign, and what keeps its form in the normal one.
_ALLOWED = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/%\-\"<>^`{|}\[\]]*")
_UNENCODED = "!$&'()*+,;=:@~"
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")
_PARAMETER = re.compile(r"\{([^{}:]*)(?::([^{}]*))?\}")
_ALTERNATIVE = re.compile(r"[A-Za-z0-9._~-]+")
# What a segment of each type looks like, in the order in which they go before each other.
TYPES: Mapping[str, re.Pattern[str]] = {
    "uuid": re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"),
    "int": re.compile(r"[0-9]{1,18}"),
    "slug": re.compile(r"[A-Za-z0-9_-]+"),
}
LITERAL, ALTERNATIVES, TYPED, ANY = range(4)


class PathInvalidError(BadRequestError):
    """The path of a request cannot be read in one way alone, or climbs above its root."""


class TemplateInvalidError(BadRequestError):
    """The template of a route's path breaks a rule of the contract."""


class Segment(NamedTuple):
    """One segment of a template: what kind of one, its text (the literal, the alternatives, the type), its name or "".

    Of two kinds the lower one goes first; within a kind, `place`, then the text.
    """

    kind: int
    place: int
    text: str
    name: str = ""

    @property
    def pattern(self) -> tuple[int, int, str]:
        """What it matches, whatever it is called."""
        return self.kind, self.place, self.text

    def accepts(self, text: str) -> bool:
        """Tell whether a segment of a path is one of these."""
        if self.kind == LITERAL:
            return text == self.text
        if self.kind == ALTERNATIVES:
            return text in self.text.split("|")
        return self.kind == ANY or TYPES[self.text].fullmatch(text) is not None


class Template(NamedTuple):
    """A path of a route: its segments, whether any number of others may follow, and the name of those or "".

    `shape` is what it matches, as a text: two templates with one shape match the same paths.
    """

    segments: tuple[Segment, ...]
    rest: bool
    rest_name: str
    shape: str

    @property
    def is_exact(self) -> bool:
        """Whether it matches one path alone."""
        return not self.rest and all(segment.kind == LITERAL for segment in self.segments)

    @property
    def names(self) -> list[str]:
        """The names of its parameters, but for that of the rest."""
        return [segment.name for segment in self.segments if segment.name]

    @property
    def order(self) -> tuple[object, ...]:
        """Sorts templates that match one path: the one that goes first is the smaller."""
        patterns = tuple(segment.pattern for segment in self.segments)
        return not self.is_exact, -len(patterns), self.rest, patterns


@lru_cache(4096)
def _shape(kind: int, text: str) -> str:
    return f"{kind}{quote(text, safe='|')}"


def parse(path: str, field: str) -> Template:
    """Return the template that `path` says. Raises TemplateInvalidError, which names `field`."""
    try:
        return _parsed(path)
    except _FaultError as fault:
        raise _invalid(field, str(fault)) from None


# Most of a table that is declared anew has the paths that it had.
@lru_cache(_REMEMBERED)
def _parsed(path: str) -> Template:
    if not path.startswith("/"):
        raise _FaultError("must begin with /")
    parts = path[1:].split("/") if path != "/" else []
    if parts and not parts[-1]:
        parts.pop()
    if len(parts) > _MOST_SEGMENTS:
        raise _FaultError(f"must not have more than {_MOST_SEGMENTS} segments")
    rest, rest_name = False, ""
    if parts and (found := _rest(parts[-1])) is not None:
        rest, rest_name = True, found
        parts.pop()
    segments = tuple(map(_segment, parts))
    shapes = [_shape(segment.kind, segment.text) for segment in segments]
    template = Template(segments, rest, rest_name, "/" + "/".join([*shapes, "**"] if rest else shapes))
    names = [*template.names, rest_name] if rest_name else template.names
    for name in names:
        if not _NAME.fullmatch(name):
            raise _FaultError(f"the parameter name {name!r} must be letters, digits and _, beginning with a letter")
        if names.count(name) > 1:
            raise _FaultError(f"the parameter {name} is there twice")
    return template


def segments_of(path: str) -> list[str]:
    """Return the segments of a request's path in the form in which they are compared. Raises PathInvalidError."""
    if _PLAIN.fullmatch(path) and len(path) <= _LONGEST_PATH:
        return path[1:].split("/")
    return _segments_of_any(path)


def normalized(segments: Sequence[str]) -> str:
    """Return the path of `segments`, percent-encoded."""
    return "/" + "/".join([quote(segment, safe=_UNENCODED) for segment in segments])


def _segments_of_any(path: str) -> list[str]:
    if len(path) > _LONGEST_PATH:
        raise _refused(f"must not be longer than {_LONGEST_PATH} characters")
    if not path.startswith("/"):
        raise _refused("must begin with /")
    if not _ALLOWED.fullmatch(path):
        raise _refused("has a character that must be percent-encoded, or a query")
    if _BROKEN_ESCAPE.search(path):
        raise _refused("has a % that two hexadecimal digits must follow")
    segments: list[str] = []
    for part in path.split("/"):
        segment = _decoded(part)
        if segment == "..":
            if not segments:
                raise _refused("climbs above its root")
            segments.pop()
        elif segment not in {"", "."}:
            segments.append(segment)
    return segments


def _decoded(part: str) -> str:
    if "%" not in part:
        return part
    try:
        segment = unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise _refused("is not UTF-8 when decoded") from None
    if "/" in segment or "\\" in segment or _CONTROLS.search(segment):
        raise _refused("has an encoded slash, backslash or control character")
    return segment


def _rest(part: str) -> str | None:
    """Return the name of a last segment that stands for any number of them; None when it is another one."""
    if part == "**":
        return ""
    found = _PARAMETER.fullmatch(part)
    return found[1] if found and found[2] == "**" and found[1] else None


class _FaultError(ValueError):
    """What is wrong with a segment of a template."""


# Templates of one platform are made of the same few parts.
@lru_cache(4096)
def _segment(part: str) -> Segment:
    if part == "*":
        return Segment(ANY, 0, "")
    if "{" in part or "}" in part:
        return _parameter(part)
    if "*" in part:
        raise _FaultError("* stands alone, and ** alone and last; a literal * is written %2A")
    try:
        segments = _segments_of_any(f"/{part}")
    except PathInvalidError as error:
        raise _FaultError(error.violations[0].description) from None
    if not segments:
        raise _FaultError("must have no empty segments and no dot segments")
    return Segment(LITERAL, 0, segments[0])


def _parameter(part: str) -> Segment:
    found = _PARAMETER.fullmatch(part)
    if found is None or not found[1]:
        raise _FaultError(f"{part!r} must be {{name}} or {{name:constraint}}, and a whole segment")
    name, constraint = found[1], found[2]
    if constraint is None:
        return Segment(ANY, 0, "", name)
    if constraint in TYPES:
        return Segment(TYPED, list(TYPES).index(constraint), constraint, name)
    alternatives = constraint.split("|")
    if len(alternatives) == 1 or not all(_ALTERNATIVE.fullmatch(each) for each in alternatives):
        known = ", ".join(TYPES)
        raise _FaultError(f"the constraint {constraint!r} must be one of {known}, or alternatives a|b")
    return Segment(ALTERNATIVES, len(set(alternatives)), "|".join(sorted(set(alternatives))), name)


def _invalid(field: str, description: str) -> TemplateInvalidError:
    return TemplateInvalidError(f"{field}: {description}", violations=[FieldViolation(field, description)])


def _refused(description: str) -> PathInvalidError:
    return PathInvalidError(f"path: {description}", violations=[FieldViolation("path", description)])
