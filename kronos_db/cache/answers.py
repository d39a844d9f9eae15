"""Makes the answers of writes and the messages of streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

from kronos.cache.v1 import cache_pb2 as pb

from kronos_db.cache.model import ENTRY_KIND, LOGGED_SEPARATOR, TAG_KIND
from kronos_db.cache.store import Versions
from kronos_db.runtime.database.changes import Noted
from kronos_db.runtime.timestamps import set_timestamp


def put_response(keys: Sequence[str], versions: Versions) -> pb.PutEntriesResponse:
    """Return what became of `keys`: a version, or for a conflict the current one, negative, or None."""
    if len(set(versions.values())) == 1 and (versions[keys[0]] or 0) > 0:
        # All alike: the bytes of one, so many times over.
        one = pb.PutEntriesResponse(
            results=[pb.PutResult(outcome=pb.PUT_OUTCOME_STORED, version=str(versions[keys[0]]))]
        )
        return pb.PutEntriesResponse.FromString(one.SerializeToString() * len(keys))
    return pb.PutEntriesResponse(results=[_put_result(versions.get(key)) for key in keys])


def fill_response(keys: Sequence[str], versions: Mapping[str, int | None]) -> pb.FillLeaseResponse:
    """Return what became of the fills of `keys`."""
    return pb.FillLeaseResponse(
        results=[
            pb.FillResult(outcome=pb.FILL_OUTCOME_STORED, version=str(versions[key]))
            if key in versions
            else pb.FillResult(outcome=pb.FILL_OUTCOME_LEASE_LOST)
            for key in keys
        ]
    )


def delete_outcome(expected: int | None, version: int, is_gone: bool) -> pb.DeleteOutcome.ValueType:
    """Return what became of a delete of an entry that was at `version`, 0 for none."""
    if expected is not None and expected != version:
        return pb.DELETE_OUTCOME_VERSION_CONFLICT
    if version == 0:
        return pb.DELETE_OUTCOME_ABSENT
    return pb.DELETE_OUTCOME_DELETED if is_gone else pb.DELETE_OUTCOME_VERSION_CONFLICT


class Told:
    """The messages of one stream, numbered from 1; `namespaces` are those watched, none for all."""

    def __init__(self, namespaces: Sequence[str]) -> None:
        self._namespaces = namespaces
        self._numbers = count(1)

    def change(self, noted: Noted | None, resume_token: str) -> pb.WatchInvalidationsResponse:
        """Return what is told of a change; of none, how far the stream is."""
        response = pb.WatchInvalidationsResponse(resume_token=resume_token, sequence=next(self._numbers))
        if noted is None:
            return response
        namespace, body = noted.change.record_id, noted.change.body
        if noted.change.kind == ENTRY_KIND:
            response.entries.namespace = namespace
            response.entries.keys.extend(body["keys"].split(LOGGED_SEPARATOR))
        elif noted.change.kind == TAG_KIND:
            response.tags.namespace = namespace
            response.tags.tags.extend(body["tags"])
        else:
            response.namespace.namespace = namespace
        set_timestamp(response.change_time, noted.time)
        return response

    def gap(self, resume_token: str) -> pb.WatchInvalidationsResponse:
        """Return that changes were missed."""
        return pb.WatchInvalidationsResponse(
            gap=pb.Gap(namespaces=self._namespaces), resume_token=resume_token, sequence=next(self._numbers)
        )


def _put_result(version: int | None) -> pb.PutResult:
    if version is not None and version > 0:
        return pb.PutResult(outcome=pb.PUT_OUTCOME_STORED, version=str(version))
    return pb.PutResult(outcome=pb.PUT_OUTCOME_VERSION_CONFLICT, version=str(-version) if version else "")
