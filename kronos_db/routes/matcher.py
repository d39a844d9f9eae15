"""Finds the route of a request: an immutable tree of segments for each host, from which another one is made by changes.

A tree finds candidates in the order of precedence, so the first one that takes method and headers is the answer: first
a look at the exact paths, then the templates with as many segments as the path, left to right and the more specific
segment first, then those that end in `**`, the longer one first.

A changed table shares with the one before all that did not change. A node is copied once for all changes that are made
together, so one change costs the copies along its path, and many cost no more than building anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from kronos_db.routes.model import Route
from kronos_db.routes.template import ANY, LITERAL, Segment, Template, parse, segments_of

_NOTHING: Mapping[str, str] = {}


class Entry:
    """A route, ready to be matched. `answer` is for whoever makes answers of it."""

    __slots__ = ("answer", "headers", "host", "methods", "order", "parameters", "rest_at", "route", "template")

    def __init__(self, route: Route) -> None:
        spec = route.spec
        self.route = route
        self.host: str = spec.get("host", "")
        self.template: Template = parse(spec["path"], "path")
        self.methods: Sequence[str] = spec.get("methods", ())
        self.headers = tuple((name, value) for name, value in spec.get("headers", ()))
        # Where in a path the value of each parameter stands, and where the rest begins.
        self.parameters = tuple((each.name, at) for at, each in enumerate(self.template.segments) if each.name)
        self.rest_at = len(self.template.segments)
        # Sorts the routes of one template; the first of those that take a request is its route.
        self.order = (
            not self.methods,
            -len(self.headers),
            -spec.get("priority", 0),
            route.create_time,
            route.name,
        )
        self.answer: Any = None

    def takes(self, headers: Mapping[str, str]) -> bool:
        """Tell whether `headers`, their names in lower case, are those that the route asks for."""
        return all(name in headers and (not value or headers[name] == value) for name, value in self.headers)

    def values(self, segments: Sequence[str]) -> dict[str, str]:
        """Return the values of the parameters in a path that matches."""
        found = {name: segments[at] for name, at in self.parameters}
        if self.template.rest_name:
            found[self.template.rest_name] = "/".join(segments[self.rest_at :])
        return found


# The route of a request, and the segments of its path. A bare tuple: one is made for each request.
Found: TypeAlias = tuple[Entry, list[str]]


class _Routes:
    """The routes of one template, by method, in order. "" has those for all methods."""

    __slots__ = ("all", "by_method")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.all = tuple(sorted(entries, key=lambda entry: entry.order) if len(entries) > 1 else entries)
        methods = {method for entry in self.all for method in entry.methods}
        self.by_method = {
            method: tuple(entry for entry in self.all if not entry.methods or method in entry.methods)
            for method in (*methods, "")
        }

    def first(self, method: str, headers: Mapping[str, str]) -> Entry | None:
        """Return the first route that takes a request."""
        by_method = self.by_method
        for entry in by_method[method] if method in by_method else by_method[""]:
            if not entry.headers or entry.takes(headers):
                return entry
        return None


class _Node:
    """A place in the tree: what may follow, what ends here, and what goes on from here whatever follows."""

    __slots__ = ("any", "here", "literals", "rest", "typed")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.typed: tuple[tuple[Segment, _Node], ...] = ()
        self.any: _Node | None = None
        self.here: _Routes | None = None
        self.rest: _Routes | None = None

    def copy(self) -> _Node:
        made = _Node()
        made.literals = dict(self.literals)
        made.typed, made.any, made.here, made.rest = self.typed, self.any, self.here, self.rest
        return made

    @property
    def is_empty(self) -> bool:
        return not (self.literals or self.typed or self.any or self.here or self.rest)

    def child(self, segment: Segment) -> _Node | None:
        if segment.kind == LITERAL:
            return self.literals.get(segment.text)
        if segment.kind == ANY:
            return self.any
        return next((node for each, node in self.typed if each.pattern == segment.pattern), None)

    def put(self, segment: Segment, node: _Node | None) -> None:
        """Have `node` follow for `segment`; None for nothing."""
        if segment.kind == ANY:
            self.any = node
        elif segment.kind != LITERAL:
            others = [(each, of) for each, of in self.typed if each.pattern != segment.pattern]
            self.typed = tuple(sorted([*others, (segment, node)] if node else others, key=lambda item: item[0].pattern))
        elif node is None:
            self.literals.pop(segment.text, None)
        else:
            self.literals[segment.text] = node


class Matcher:
    """All routes of one version of the table. `entries` has them by id."""

    __slots__ = ("_hosts", "_trees", "_wildcards", "entries", "has_headers")

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.has_headers = 0
        self._trees: dict[str, _Node] = {}
        self._hosts: dict[str, _Node] = {}
        self._wildcards: dict[str, _Node] = {}

    def find(self, method: str, host: str, path: str, headers: Mapping[str, str] = _NOTHING) -> Found | None:
        """Return the route of a request; `headers` by names in lower case. Raises PathInvalidError."""
        segments = segments_of(path)
        for tree in self._trees_of(host):
            entry = _find(tree, segments, method, headers)
            if entry is not None:
                return entry, segments
        return None

    def changed(self, routes: Iterable[Route], removed: Iterable[str] = ()) -> Matcher:
        """Return a matcher with `routes` put in, or in the place of what they were, and those of `removed` ids gone."""
        edit = Edit(self)
        for route_id in removed:
            edit.remove(route_id)
        for route in routes:
            edit.put(route)
        return edit.done()

    def _trees_of(self, host: str) -> Iterable[_Node]:
        """Return the trees for a host, the one that goes first first."""
        if not self._hosts and not self._wildcards:
            return (self._trees[""],) if "" in self._trees else ()
        return self._trees_of_any(normalized_host(host))

    def _trees_of_any(self, host: str) -> Iterable[_Node]:
        found = [self._hosts[host]] if host in self._hosts else []
        at = host.find(".") if self._wildcards else -1
        while at >= 0:
            if (tree := self._wildcards.get(host[at:])) is not None:
                found.append(tree)
            at = host.find(".", at + 1)
        if (tree := self._trees.get("")) is not None:
            found.append(tree)
        return found


class Edit:
    """Makes another matcher of one, change by change: nodes that it made are its own, others are copied first."""

    def __init__(self, before: Matcher) -> None:
        made = Matcher()
        made.entries = dict(before.entries)
        made.has_headers = before.has_headers
        made._trees = dict(before._trees)  # noqa: SLF001  # of the same module
        self._made = made
        self._own: set[int] = set()
        # Ids of objects are reused when these are gone.
        self._kept: list[_Node] = []

    def put(self, route: Route) -> None:
        """Put a route in, or in the place of what it was."""
        before = self._made.entries.get(route.id)
        entry = Entry(route)
        if before is not None and (before.host != entry.host or before.template != entry.template):
            self.remove(route.id)
            before = None
        self._made.entries[route.id] = entry
        self._made.has_headers += bool(entry.headers) - bool(before and before.headers)
        node = self._owned_root(entry.host)
        for segment in entry.template.segments:
            child = node.child(segment)
            owned = self._owned(child)
            if owned is not child:
                node.put(segment, owned)
            node = owned
        routes = node.rest if entry.template.rest else node.here
        others = [each for each in routes.all if each is not before] if routes else []
        _set(node, entry.template, _Routes([*others, entry]))

    def remove(self, route_id: str) -> None:
        """Take a route out, if it is there."""
        entry = self._made.entries.pop(route_id, None)
        if entry is None:
            return
        self._made.has_headers -= bool(entry.headers)
        way = [self._owned_root(entry.host)]
        for segment in entry.template.segments:
            child = self._owned(way[-1].child(segment))
            way[-1].put(segment, child)
            way.append(child)
        routes = way[-1].rest if entry.template.rest else way[-1].here
        left = [each for each in (routes.all if routes else ()) if each is not entry]
        _set(way[-1], entry.template, _Routes(left) if left else None)
        for node, segment in zip(reversed(way[:-1]), reversed(entry.template.segments), strict=True):
            child_of = node.child(segment)
            if child_of is not None and child_of.is_empty:
                node.put(segment, None)
        if way[0].is_empty:
            del self._made._trees[entry.host]  # noqa: SLF001  # of the same module

    def done(self) -> Matcher:
        """Return the matcher; nothing is changed any more."""
        made = self._made
        trees = made._trees  # noqa: SLF001  # of the same module
        made._hosts = {host: tree for host, tree in trees.items() if host and host[0] != "*"}  # noqa: SLF001
        made._wildcards = {host[1:]: tree for host, tree in trees.items() if host[:1] == "*"}  # noqa: SLF001
        return made

    def _owned_root(self, host: str) -> _Node:
        trees = self._made._trees  # noqa: SLF001  # of the same module
        trees[host] = self._owned(trees.get(host))
        return trees[host]

    def _owned(self, node: _Node | None) -> _Node:
        if node is not None and id(node) in self._own:
            return node
        made = _Node() if node is None else node.copy()
        self._own.add(id(made))
        self._kept.append(made)
        return made


def normalized_host(host: str) -> str:
    """Return a host in lower case, without port and without a dot at its end."""
    host = host.lower()
    if host[:1] == "[":
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".")


def _set(node: _Node, template: Template, routes: _Routes | None) -> None:
    if template.rest:
        node.rest = routes
    else:
        node.here = routes


def _find(root: _Node, segments: Sequence[str], method: str, headers: Mapping[str, str]) -> Entry | None:
    # Most paths have one way through the tree: it is walked without a list of what else may follow.
    node, depth = root, 0
    count = len(segments)
    while depth < count and not node.typed and not node.rest:
        child = node.literals.get(segments[depth])
        if child is None:
            child = node.any
        elif node.any is not None:
            break
        if child is None:
            return None
        node = child
        depth += 1
    if depth == count:
        routes = node.here or node.rest
        if routes is None:
            return None
        entry = routes.first(method, headers)
        if entry is not None or node.here is None or node.rest is None:
            return entry
        return node.rest.first(method, headers)
    return _find_among(node, depth, segments, method, headers)


def _find_among(
    start: _Node, depth: int, segments: Sequence[str], method: str, headers: Mapping[str, str]
) -> Entry | None:
    """Look at every way from `start` on, the one that goes first first."""
    count = len(segments)
    level = [start]
    # Of each level that was left behind, what takes any rest: the deepest goes first.
    rests: list[_Routes] = []
    exact: list[_Node] = []
    while True:
        found = [node.rest for node in level if node.rest is not None]
        rests[:0] = found
        if depth == count:
            exact = level
            break
        segment = segments[depth]
        following: list[_Node] = []
        for node in level:
            if (child := node.literals.get(segment)) is not None:
                following.append(child)
            following += [child for each, child in node.typed if each.accepts(segment)]
            if node.any is not None:
                following.append(node.any)
        if not following:
            break
        level = following
        depth += 1
    for routes in (*(node.here for node in exact), *rests):
        if routes is not None and (entry := routes.first(method, headers)) is not None:
            return entry
    return None
