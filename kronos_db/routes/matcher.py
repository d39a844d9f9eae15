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


class Place:
    """Which requests are a route's: where in a tree it stands, and what it takes of those that come there."""

    __slots__ = ("_said", "accompanied", "headers", "host", "methods", "number", "parameters", "rest_at", "template")

    def __init__(self, route: Route, number: int) -> None:
        spec = route.spec
        self._said = _said(spec)
        # That of the route among those of a matcher.
        self.number = number
        # Whether it ever stood with others of its template: then their order counts.
        self.accompanied = False
        self.host: str = spec.get("host", "")
        self.template: Template = parse(spec["path"], "path")
        self.methods: Sequence[str] = spec.get("methods", ())
        self.headers = tuple((name, value) for name, value in spec.get("headers", ()))
        # Where in a path the value of each parameter stands, and where the rest begins.
        self.parameters = tuple((each.name, at) for at, each in enumerate(self.template.segments) if each.name)
        self.rest_at = len(self.template.segments)

    def is_of(self, spec: Mapping[str, Any]) -> bool:
        """Tell whether a route that says this stands here."""
        return self._said == _said(spec)

    @property
    def all(self) -> Sequence[Place]:
        """What stands here when this is alone."""
        return (self,)

    def first(self, method: str, headers: Mapping[str, str]) -> Place | None:
        """Return this when it takes a request."""
        takes = (not self.methods or method in self.methods) and (not self.headers or self.takes(headers))
        return self if takes else None

    def takes(self, headers: Mapping[str, str]) -> bool:
        """Tell whether `headers`, their names in lower case, are those that the route asks for."""
        return all(name in headers and (not value or headers[name] == value) for name, value in self.headers)


class Entry:
    """A route, ready to be matched. `answer` is for whoever makes answers of it."""

    __slots__ = ("answer", "place", "route")

    def __init__(self, route: Route, place: Place) -> None:
        self.route = route
        self.place = place
        self.answer: Any = None

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sorts the routes of one place in the tree that ask for the same; the smaller goes first."""
        route = self.route
        return -route.spec.get("priority", 0), route.create_time, route.name

    def values(self, segments: Sequence[str]) -> dict[str, str]:
        """Return the values of the parameters in a path that matches."""
        place = self.place
        found = {name: segments[at] for name, at in place.parameters}
        if place.template.rest_name:
            found[place.template.rest_name] = "/".join(segments[place.rest_at :])
        return found


# The route of a request, and the segments of its path. A bare tuple: one is made for each request.
Found: TypeAlias = tuple[Entry, list[str]]


class _Places:
    """Several places of one template, by method, in order. "" has those for all methods."""

    __slots__ = ("all", "by_method")

    def __init__(self, places: Sequence[Place]) -> None:
        self.all = tuple(places)
        methods = {method for place in self.all for method in place.methods}
        self.by_method = {
            method: tuple(place for place in self.all if not place.methods or method in place.methods)
            for method in (*methods, "")
        }

    def first(self, method: str, headers: Mapping[str, str]) -> Place | None:
        """Return the first place that takes a request."""
        by_method = self.by_method
        for place in by_method[method] if method in by_method else by_method[""]:
            if not place.headers or place.takes(headers):
                return place
        return None


# What stands at a node. Most templates have one route: fewer looks around in memory than a list of it would cost.
_Standing: TypeAlias = Place | _Places


class _Node:
    """A node of a tree: what may follow, what ends here, and what goes on from here whatever follows."""

    __slots__ = ("any", "here", "literals", "rest", "typed")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.typed: tuple[tuple[Segment, _Node], ...] = ()
        self.any: _Node | None = None
        self.here: _Standing | None = None
        self.rest: _Standing | None = None

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

    __slots__ = ("_free", "_hosts", "_numbered", "_trees", "_wildcards", "entries", "has_headers")

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        # By the number of their places, which is found faster than an id among many; and the numbers that are free.
        self._numbered: list[Entry] = []
        self._free: list[int] = []
        self.has_headers = 0
        self._trees: dict[str, _Node] = {}
        self._hosts: dict[str, _Node] = {}
        self._wildcards: dict[str, _Node] = {}

    def find(self, method: str, host: str, path: str, headers: Mapping[str, str] = _NOTHING) -> Found | None:
        """Return the route of a request; `headers` by names in lower case. Raises PathInvalidError."""
        segments = segments_of(path)
        for tree in self._trees_of(host):
            place = _find(tree, segments, method, headers)
            if place is not None:
                return self._numbered[place.number], segments
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
        # Of the same module, here and below.
        made._numbered = list(before._numbered)  # noqa: SLF001
        made._free = list(before._free)  # noqa: SLF001
        made._trees = dict(before._trees)  # noqa: SLF001
        self._made = made
        self._own: set[int] = set()
        # Ids of objects are reused when these are gone.
        self._kept: list[_Node] = []

    def put(self, route: Route) -> None:
        """Put a route in, or in the place of what it was."""
        before = self._made.entries.get(route.id)
        # Most changes leave a route where it stands; then the trees stay as they are.
        if before is not None and before.place.is_of(route.spec):
            entry = self._entered(Entry(route, before.place))
            if entry.place.accompanied and entry.rank != before.rank:
                self._stand(entry.place)
            return
        if before is not None:
            self.remove(route.id)
        entry = self._entered(Entry(route, Place(route, self._number())))
        self._made.has_headers += bool(entry.place.headers)
        self._stand(entry.place)

    def remove(self, route_id: str) -> None:
        """Take a route out, if it is there."""
        entry = self._made.entries.pop(route_id, None)
        if entry is None:
            return
        place = entry.place
        self._made._free.append(place.number)  # noqa: SLF001
        self._made.has_headers -= bool(place.headers)
        way = self._owned_way(place)
        self._set(way[-1], place.template, [each for each in _places_of(way[-1], place.template) if each is not place])
        for node, segment in zip(reversed(way[:-1]), reversed(place.template.segments), strict=True):
            child = node.child(segment)
            if child is not None and child.is_empty:
                node.put(segment, None)
        if way[0].is_empty:
            del self._made._trees[place.host]  # noqa: SLF001

    def done(self) -> Matcher:
        """Return the matcher; nothing is changed any more."""
        made = self._made
        trees = made._trees  # noqa: SLF001
        made._hosts = {host: tree for host, tree in trees.items() if host and host[0] != "*"}  # noqa: SLF001
        made._wildcards = {host[1:]: tree for host, tree in trees.items() if host[:1] == "*"}  # noqa: SLF001
        return made

    def _number(self) -> int:
        free, numbered = self._made._free, self._made._numbered  # noqa: SLF001
        return free.pop() if free else len(numbered)

    def _entered(self, entry: Entry) -> Entry:
        numbered, number = self._made._numbered, entry.place.number  # noqa: SLF001
        if number == len(numbered):
            numbered.append(entry)
        else:
            numbered[number] = entry
        self._made.entries[entry.route.id] = entry
        return entry

    def _stand(self, place: Place) -> None:
        """Have a place stand in its tree, in order with the others there."""
        node = self._owned_way(place)[-1]
        others = [each for each in _places_of(node, place.template) if each is not place]
        self._set(node, place.template, [*others, place])

    def _set(self, node: _Node, template: Template, places: Sequence[Place]) -> None:
        several = len(places) > 1
        for place in places if several else ():
            place.accompanied = True
        standing = _Places(sorted(places, key=self._order)) if several else places[0] if places else None
        if template.rest:
            node.rest = standing
        else:
            node.here = standing

    def _order(self, place: Place) -> tuple[Any, ...]:
        """Sort the routes of one template; the first of those that take a request is its route."""
        return not place.methods, -len(place.headers), *self._made._numbered[place.number].rank  # noqa: SLF001

    def _owned_way(self, place: Place) -> list[_Node]:
        """Return the nodes from the root of its tree to `place`, all to be changed; made where there are none."""
        trees = self._made._trees  # noqa: SLF001
        node = trees[place.host] = self._owned(trees.get(place.host))
        way = [node]
        for segment in place.template.segments:
            child = node.child(segment)
            owned = self._owned(child)
            if owned is not child:
                node.put(segment, owned)
            node = owned
            way.append(node)
        return way

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


def _said(spec: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what of a route decides where it stands."""
    return spec.get("host"), spec["path"], spec.get("methods"), spec.get("headers")


def _places_of(node: _Node, template: Template) -> Sequence[Place]:
    standing = node.rest if template.rest else node.here
    return standing.all if standing else ()


def _find(root: _Node, segments: Sequence[str], method: str, headers: Mapping[str, str]) -> Place | None:
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
        place = routes.first(method, headers)
        if place is not None or node.here is None or node.rest is None:
            return place
        return node.rest.first(method, headers)
    return _find_among(node, depth, segments, method, headers)


def _find_among(
    start: _Node, depth: int, segments: Sequence[str], method: str, headers: Mapping[str, str]
) -> Place | None:
    """Look at every way from `start` on, the one that goes first first."""
    count = len(segments)
    level = [start]
    # Of each level that was left behind, what takes any rest: the deepest goes first.
    rests: list[_Standing] = []
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
        if routes is not None and (place := routes.first(method, headers)) is not None:
            return place
    return None
