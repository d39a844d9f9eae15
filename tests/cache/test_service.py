"""CacheService, by real calls: namespaces, entries, versions, tags, times."""

from __future__ import annotations

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from kronos.cache.v1 import cache_pb2 as pb
from kronos.cache.v1.cache_pb2_grpc import CacheServiceStub

from tests.cache.population import delete, get, invalidate, new_namespace, put, seconds, stub, unique, value
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import Serving

STORAGES = [pb.NAMESPACE_STORAGE_MEMORY, pb.NAMESPACE_STORAGE_DURABLE]


@pytest.fixture
def cache(serving: Serving) -> CacheServiceStub:
    return stub(serving)


@pytest.fixture(params=STORAGES, ids=["memory", "durable"])
def namespace(request: pytest.FixtureRequest, cache: CacheServiceStub) -> str:
    return new_namespace(cache, storage=request.param)


class TestNamespaces:
    """The life of a namespace."""

    def test_it_is_as_it_was_declared(self, cache: CacheServiceStub) -> None:
        wanted = pb.Namespace(
            name=unique(),
            storage=pb.NAMESPACE_STORAGE_DURABLE,
            default_ttl=seconds(12.5),
            default_stale_time=seconds(3),
            max_entries=10,
            max_bytes=10_000,
            max_value_bytes=100,
            indexes=[pb.IndexDeclaration(name="owner", path="owner.id", type=pb.INDEX_TYPE_STRING)],
        )

        made = cache.CreateNamespace(pb.CreateNamespaceRequest(namespace=wanted)).namespace

        for field in wanted.DESCRIPTOR.fields:
            if field.name not in {"etag", "create_time", "update_time"}:
                assert getattr(made, field.name) == getattr(wanted, field.name), field.name
        assert made.etag
        assert made.create_time == made.update_time
        assert cache.GetNamespace(pb.GetNamespaceRequest(name=made.name)).namespace == made

    def test_what_is_not_declared(self, cache: CacheServiceStub) -> None:
        made = cache.CreateNamespace(pb.CreateNamespaceRequest(namespace=pb.Namespace(name=unique()))).namespace

        assert made.storage == pb.NAMESPACE_STORAGE_MEMORY
        assert made.max_value_bytes == 65536
        assert not made.HasField("default_ttl")

    def test_two_of_one_name(self, cache: CacheServiceStub) -> None:
        name = new_namespace(cache)

        refusal = refused(lambda: new_namespace(cache, name=name))

        assert (refusal.code, refusal.reason) == ("ALREADY_EXISTS", "NAMESPACE_EXISTS")
        assert list(refusal.fields) == ["namespace.name"]

    def test_an_update_changes_what_the_mask_names(self, cache: CacheServiceStub) -> None:
        name = new_namespace(cache, default_ttl=seconds(5), max_entries=7)
        before = cache.GetNamespace(pb.GetNamespaceRequest(name=name)).namespace
        change = pb.Namespace(name=name, max_entries=8, max_bytes=9, etag=before.etag)

        request = pb.UpdateNamespaceRequest(
            namespace=change, update_mask=FieldMask(paths=["max_entries", "default_ttl"])
        )
        after = cache.UpdateNamespace(request).namespace

        assert (after.max_entries, after.max_bytes) == (8, 0)
        assert not after.HasField("default_ttl")
        assert cache.GetNamespace(pb.GetNamespaceRequest(name=name)).namespace == after
        refusal = refused(lambda: cache.UpdateNamespace(request))
        assert (refusal.code, refusal.reason) == ("ABORTED", "NAMESPACE_ETAG_MISMATCH")

    def test_a_deleted_one_takes_its_entries_with_it(self, cache: CacheServiceStub, namespace: str) -> None:
        put(cache, namespace, "a")
        assert value(cache, namespace, "a") == b"value"

        cache.DeleteNamespace(pb.DeleteNamespaceRequest(name=namespace))

        for call in (lambda: get(cache, namespace, "a"), lambda: put(cache, namespace, "a")):
            refusal = refused(call)
            assert (refusal.code, refusal.reason) == ("NOT_FOUND", "NAMESPACE_NOT_FOUND")
        new_namespace(cache, name=namespace)
        assert value(cache, namespace, "a") is None

    def test_pages(self, cache: CacheServiceStub) -> None:
        names = {new_namespace(cache) for _ in range(5)}
        found, token = [], ""
        while True:
            page = cache.ListNamespaces(pb.ListNamespacesRequest(page_size=2, page_token=token))
            assert len(page.namespaces) <= 2
            found += [each.name for each in page.namespaces]
            token = page.next_page_token
            if not token:
                break

        assert found == sorted(found)
        assert names <= set(found)


class TestEntries:
    """Put, get, delete."""

    def test_what_was_put_is_there(self, cache: CacheServiceStub, namespace: str) -> None:
        result = put(cache, namespace, "a", b"\0\1\xff", tags=["two", "one", "one"], ttl=seconds(60))

        entry = get(cache, namespace, "a").entries[0]

        assert result.outcome == pb.PUT_OUTCOME_STORED
        assert (entry.key, entry.value, entry.version) == ("a", b"\0\1\xff", result.version)
        assert list(entry.tags) == ["one", "two"]
        assert 0 < entry.expire_time.seconds - entry.update_time.seconds <= 61
        assert get(cache, namespace, "a").entries[0] == entry

    def test_many_in_the_order_of_the_request(self, cache: CacheServiceStub, namespace: str) -> None:
        entries = [pb.EntryWrite(key=f"k{n}", value=b"%d" % n * n, tags=["t"] * (n % 3)) for n in range(50)]
        cache.PutEntries(pb.PutEntriesRequest(namespace=namespace, entries=entries))

        answer = get(cache, namespace, "k7", "nothing", "k3", "k0", "k7", "k49")

        assert [entry.key for entry in answer.entries] == ["k7", "k3", "k0", "k7", "k49"]
        assert [entry.value for entry in answer.entries][:3] == [b"7" * 7, b"333", b""]
        assert list(answer.missing_keys) == ["nothing"]

    def test_a_put_replaces_and_has_a_new_version(self, cache: CacheServiceStub, namespace: str) -> None:
        first = put(cache, namespace, "a", b"1", tags=["t"])
        assert value(cache, namespace, "a") == b"1"

        second = put(cache, namespace, "a", b"2")

        entry = get(cache, namespace, "a").entries[0]
        assert (entry.value, entry.version, list(entry.tags)) == (b"2", second.version, [])
        assert int(second.version) > int(first.version)

    def test_a_delete(self, cache: CacheServiceStub, namespace: str) -> None:
        put(cache, namespace, "a")
        assert value(cache, namespace, "a") == b"value"

        assert delete(cache, namespace, "b", "a") == [pb.DELETE_OUTCOME_ABSENT, pb.DELETE_OUTCOME_DELETED]

        assert value(cache, namespace, "a") is None

    def test_versions_are_compared(self, cache: CacheServiceStub, namespace: str) -> None:
        conflict = pb.PUT_OUTCOME_VERSION_CONFLICT
        assert put(cache, namespace, "a", expected_version="5") == pb.PutResult(outcome=conflict)
        first = put(cache, namespace, "a", b"1", expected_version="0")
        assert first.outcome == pb.PUT_OUTCOME_STORED
        assert put(cache, namespace, "a", expected_version="0") == pb.PutResult(outcome=conflict, version=first.version)
        assert value(cache, namespace, "a") == b"1"

        entries = [
            pb.EntryWrite(key="b", value=b"b"),
            pb.EntryWrite(key="a", value=b"2", expected_version=first.version),
            pb.EntryWrite(key="c", value=b"c", expected_version="77"),
        ]
        results = cache.PutEntries(pb.PutEntriesRequest(namespace=namespace, entries=entries)).results

        assert [each.outcome for each in results] == [pb.PUT_OUTCOME_STORED, pb.PUT_OUTCOME_STORED, conflict]
        assert [entry.value for entry in get(cache, namespace, "a", "b", "c").entries] == [b"2", b"b"]

    def test_a_delete_compares_too(self, cache: CacheServiceStub, namespace: str) -> None:
        result = put(cache, namespace, "a")

        def attempt(version: str) -> int:
            entry = pb.EntryDelete(key="a", expected_version=version)
            return cache.DeleteEntries(pb.DeleteEntriesRequest(namespace=namespace, entries=[entry])).outcomes[0]

        assert attempt("1") == pb.DELETE_OUTCOME_VERSION_CONFLICT
        assert value(cache, namespace, "a") == b"value"
        assert attempt(result.version) == pb.DELETE_OUTCOME_DELETED
        assert attempt(result.version) == pb.DELETE_OUTCOME_VERSION_CONFLICT
        assert attempt("0") == pb.DELETE_OUTCOME_ABSENT

    def test_validate_only_writes_nothing(self, cache: CacheServiceStub, namespace: str) -> None:
        put(cache, namespace, "a", b"1")
        entries = [pb.EntryWrite(key="a", value=b"2")]
        answer = cache.PutEntries(pb.PutEntriesRequest(namespace=namespace, entries=entries, validate_only=True))
        gone = cache.DeleteEntries(
            pb.DeleteEntriesRequest(namespace=namespace, entries=[pb.EntryDelete(key="a")], validate_only=True)
        )

        assert answer.results[0].outcome == pb.PUT_OUTCOME_STORED
        assert list(gone.outcomes) == [pb.DELETE_OUTCOME_DELETED]
        assert value(cache, namespace, "a") == b"1"


class TestTags:
    """InvalidateTags."""

    def test_all_entries_with_the_tag_are_missing(self, cache: CacheServiceStub, namespace: str) -> None:
        for key, tags in {"a": ["x"], "b": ["x", "y"], "c": ["y"], "d": []}.items():
            put(cache, namespace, key, tags=tags)
        assert len(get(cache, namespace, "a", "b", "c", "d").entries) == 4

        invalidate(cache, namespace, "x")

        assert [entry.key for entry in get(cache, namespace, "a", "b", "c", "d").entries] == ["c", "d"]
        put(cache, namespace, "a", tags=["x"])
        assert value(cache, namespace, "a") == b"value"
        assert put(cache, namespace, "b", expected_version="0").outcome == pb.PUT_OUTCOME_STORED

    def test_other_namespaces_are_left_alone(self, cache: CacheServiceStub, namespace: str) -> None:
        other = new_namespace(cache)
        put(cache, other, "a", tags=["x"])

        invalidate(cache, namespace, "x")

        assert value(cache, other, "a") == b"value"


class TestTimes:
    """Times to live."""

    def test_an_entry_ends(self, cache: CacheServiceStub, namespace: str) -> None:
        put(cache, namespace, "a", ttl=seconds(0.3))
        assert value(cache, namespace, "a") == b"value"

        eventually(lambda: value(cache, namespace, "a") is None)

    def test_the_namespace_says_how_long(self, cache: CacheServiceStub) -> None:
        name = new_namespace(cache, default_ttl=seconds(100))
        put(cache, name, "a")
        put(cache, name, "b", ttl=seconds(1000))

        lives = [entry.expire_time.seconds - entry.update_time.seconds for entry in get(cache, name, "a", "b").entries]

        assert [round(life, -1) for life in lives] == [100, 1000]

    def test_a_touch(self, cache: CacheServiceStub, namespace: str) -> None:
        put(cache, namespace, "a", ttl=seconds(1000))
        before = get(cache, namespace, "a").entries[0]

        answer = cache.TouchEntries(pb.TouchEntriesRequest(namespace=namespace, keys=["b", "a"], ttl=seconds(5000)))

        after = get(cache, namespace, "a").entries[0]
        assert list(answer.missing_keys) == ["b"]
        assert after.version == before.version
        assert 3900 < after.expire_time.seconds - before.expire_time.seconds < 4100
        cache.TouchEntries(pb.TouchEntriesRequest(namespace=namespace, keys=["a"], ttl=seconds(0.001)))
        eventually(lambda: value(cache, namespace, "a") is None)
        answer = cache.TouchEntries(pb.TouchEntriesRequest(namespace=namespace, keys=["a"]))
        assert list(answer.missing_keys) == ["a"]
