"""Answers from copies: namespaces, and entries as prepared bytes, none of them from before an acknowledged write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress

from kronos.cache.v1 import cache_pb2 as pb

from kronos_db.cache.messages import entry_of, is_sealed, pack_namespace, prepared, unpack_namespace
from kronos_db.cache.model import NAMESPACE_KIND, Found, Namespace, NamespaceNotFoundError
from kronos_db.cache.namespaces import NamespacesStore
from kronos_db.cache.store import EntriesStore, entry_tag, tag_tag
from kronos_db.cache.writes import FIELD, record
from kronos_db.runtime.cache.engine import Cache, Loaded, Rules
from kronos_db.runtime.crypto.sealing import Sealer
from kronos_db.runtime.database.changes import tag
from kronos_db.runtime.errors import KronosError

# Seconds that an entry is answered from its copy at most: about so old may be what is known of its use.
_LIFETIME = 60.0


class Lookup:
    """Namespaces and entries by name and key. The copies of sensitive entries are sealed."""

    def __init__(self, namespaces: NamespacesStore, entries: EntriesStore, cache: Cache, sealer: Sealer) -> None:
        self.sealer = sealer
        self._stores = namespaces, entries
        self._namespaces = cache.kind(Rules("namespaces"), self._load_namespaces)
        self._entries = cache.kind(Rules("entries", lifetime=_LIFETIME, remote=True), self._load_entries)
        # Namespaces as they were last made of their copies.
        self._made: dict[str, tuple[bytes, Namespace]] = {}

    def namespace(self, name: str) -> Namespace:
        """Return a namespace. Raises NamespaceNotFoundError."""
        found = self._find(name)
        if found is None:
            raise NamespaceNotFoundError.of(name)
        return found

    def one(self, name: str, key: str) -> bytes | None:
        """Return the response that holds one entry alone, None when there is none."""
        copy = self._entries.get(_place(name, key))
        return self._opened_copy(name, copy) if copy is not None and is_sealed(copy) else copy

    def many(self, name: str, keys: Sequence[str]) -> Mapping[str, bytes]:
        """Return the responses that hold one entry each, by key."""
        places = [_place(name, key) for key in keys]
        found = self._entries.get_many(places)
        copies = {key: found[place] for key, place in zip(keys, places, strict=True) if place in found}
        if copies and is_sealed(next(iter(copies.values()))):
            return {key: self._opened_copy(name, copy) for key, copy in copies.items()}
        return copies

    def opened(self, namespace: Namespace, entry: pb.Entry) -> pb.Entry:
        """Return an entry whose value, if the namespace is sensitive, is sealed, with it opened."""
        if namespace.sensitive:
            entry.value = self.sealer.open_bytes(entry.value, FIELD, record(namespace, entry.key))
        return entry

    def _opened_copy(self, name: str, copy: bytes) -> bytes:
        opened = self.opened(self.namespace(name), entry_of(copy))
        return pb.GetEntriesResponse(entries=[opened]).SerializeToString()

    def _find(self, name: str) -> Namespace | None:
        copy = self._namespaces.get(name)
        if copy is None:
            self._made.pop(name, None)
            return None
        made = self._made.get(name)
        if made is None or made[0] is not copy:
            made = self._made[name] = copy, unpack_namespace(json.loads(copy))
        return made[1]

    def _load_namespaces(self, names: Sequence[str]) -> Mapping[str, Loaded]:
        found = self._stores[0].get_many(names)
        return {
            name: Loaded(json.dumps(pack_namespace(namespace)).encode(), (tag(NAMESPACE_KIND, name),))
            for name, namespace in found.items()
        }

    def _load_entries(self, places: Sequence[str]) -> Mapping[str, Loaded]:
        parts = [place.partition("/") for place in places]
        namespaces = {name: self._find(name) for name in {name for name, _, _ in parts}}
        asked = [(namespace, key) for name, _, key in parts if (namespace := namespaces[name]) is not None]
        found = self._stores[1].get_many(asked)
        self._note_use([asked[place] for place, each in found.items() if each.unused and not asked[place][0].durable])
        return {
            _place(asked[place][0].name, asked[place][1]): _loaded(asked[place][0], each)
            for place, each in found.items()
        }

    def _note_use(self, used: Sequence[tuple[Namespace, str]]) -> None:
        if used:
            # It decides what gives way some day, and is no reason to fail.
            with suppress(KronosError):
                self._stores[1].use(used)


def _place(name: str, key: str) -> str:
    # No name has a slash, but callers may send one: it must not reach into another namespace.
    return f"{name}/{key}" if "/" not in name else f"/{name}"


def _loaded(namespace: Namespace, found: Found) -> Loaded:
    name, entry = namespace.name, found.entry
    tags = [entry_tag(name, entry.key), tag(NAMESPACE_KIND, name), *(tag_tag(name, each) for each in entry.tags)]
    return Loaded(prepared(entry, sensitive=namespace.sensitive), tags, found.left)
