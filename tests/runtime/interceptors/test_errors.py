"""Errors: what of an exception reaches the caller, and what never does."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2

from kronos_db.runtime.database.failures import ConstraintError
from kronos_db.runtime.errors import (
    ERROR_DOMAIN,
    RUNTIME_ERRORS,
    UNKNOWN,
    BadRequestError,
    Code,
    ErrorTable,
    FieldViolation,
    KronosError,
    OverloadedError,
    SealBrokenError,
)
from kronos_db.runtime.interceptors import errors
from kronos_db.runtime.interceptors.errors import status_of
from tests.parts.refusal import Refusal, refused
from tests.runtime.interceptors.probe import ALL_KINDS, Probe, ProbeServer, TeapotError, UnmappedError

_SECRET = "SELECT email FROM users.users -- s3cret-detail"


def _raised(probe: ProbeServer, error: BaseException, kind: str = "Unary", **kw: Any) -> Refusal:
    def fail(*_: Any) -> Any:
        raise error

    probe.on[kind] = fail
    return refused(lambda: probe.call(kind, **kw))


class _Log:
    """Stands in for the log."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def error(self, _event: str, **fields: Any) -> None:
        self.entries.append({"level": "error", **fields})

    def warning(self, _event: str, **fields: Any) -> None:
        self.entries.append({"level": "warning", **fields})


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> _Log:
    made = _Log()
    monkeypatch.setattr(errors, "_log", made)
    return made


def test_an_exception_with_an_answer(probe: ProbeServer) -> None:
    found = _raised(probe, TeapotError(_SECRET, metadata={"vessel": "kettle"}), metadata=[("x-request-id", "r-1")])

    assert found.code == "FAILED_PRECONDITION"
    assert (found.reason, found.domain, found.metadata) == ("TEAPOT", ERROR_DOMAIN, {"vessel": "kettle"})
    assert found.message == "The kettle is short and stout."
    assert found.request_id == "r-1"
    assert found.trailers["x-request-id"] == "r-1"
    assert (found.fields, found.retry) == ({}, None)
    assert b"s3cret" not in found.everything


def test_a_subclass_gets_the_answer_of_its_nearest_class(probe: ProbeServer) -> None:
    class ChippedTeapotError(TeapotError):
        """A teapot all the same."""

    assert _raised(probe, ChippedTeapotError(metadata={"vessel": "cup"})).reason == "TEAPOT"


def test_a_sentence_whose_word_is_missing_still_leaves(probe: ProbeServer) -> None:
    assert _raised(probe, TeapotError()).message == "The - is short and stout."


def test_metadata_is_no_template(probe: ProbeServer) -> None:
    found = _raised(probe, TeapotError(metadata={"vessel": "{reason} %s {0}"}))

    assert found.message == "The {reason} %s {0} is short and stout."


def test_bad_fields_are_named(probe: ProbeServer) -> None:
    violations = [FieldViolation("users[3].email", "is wrong"), FieldViolation("x", "is worse")]

    found = _raised(probe, BadRequestError(violations=violations))

    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert found.fields == {"users[3].email": "is wrong", "x": "is worse"}
    assert "violations" not in found.metadata


def test_more_violations_than_an_answer_holds_are_counted_and_the_answer_arrives(probe: ProbeServer) -> None:
    violations = [FieldViolation(f"users[{number}].email", "does not match the pattern") for number in range(1000)]

    found = _raised(probe, BadRequestError(violations=violations))

    assert found.reason == "BAD_REQUEST"
    assert found.metadata == {"violations": "1000"}
    assert 20 < len(found.fields) < 200
    assert next(iter(found.fields)) == "users[0].email"


def test_a_path_as_long_as_a_message_does_not_cost_the_answer(probe: ProbeServer) -> None:
    found = _raised(probe, BadRequestError.of('labels["' + "k" * 100_000 + '"]', "is wrong"))

    (path,) = found.fields
    assert path.startswith('labels["kkk')
    assert path.endswith("…")


def test_waiting_is_advised(probe: ProbeServer) -> None:
    found = _raised(probe, OverloadedError(retry_after=1.5))

    assert (found.code, found.reason, found.retry) == ("RESOURCE_EXHAUSTED", "OVERLOADED", 1.5)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    "error",
    [
        ValueError(_SECRET),
        psycopg.errors.SyntaxError(_SECRET),
        UnmappedError(_SECRET, metadata={"sql": _SECRET}, violations=[FieldViolation(_SECRET, _SECRET)]),
        ConstraintError(_SECRET),
        KeyError(_SECRET),
        SystemExit(_SECRET),
    ],
    ids=lambda error: type(error).__name__,
)
def test_of_an_unknown_exception_nothing_is_told(
    probe: ProbeServer, log: _Log, kind: str, error: BaseException
) -> None:
    found = _raised(probe, error, kind, metadata=[("x-request-id", "look-me-up")])

    assert (found.code, found.reason, found.domain) == ("INTERNAL", "INTERNAL", ERROR_DOMAIN)
    assert found.message == "The server failed; its log has the detail under this request id."
    assert (found.metadata, found.fields, found.retry) == ({}, {}, None)
    assert found.request_id == "look-me-up"
    for secret in (b"s3cret", b"SELECT", b"Traceback", b"File ", type(error).__name__.encode()):
        assert secret not in found.everything
    # The log has it all.
    (entry,) = log.entries
    assert (entry["level"], entry["request_id"], entry["exc_info"]) == ("error", "look-me-up", error)


@pytest.mark.parametrize("kind", ["ServerStream", "BidiStream"])
def test_of_an_unknown_exception_in_the_middle_of_a_stream_neither(probe: ProbeServer, log: _Log, kind: str) -> None:
    def one_and_fail(*_: Any) -> Any:
        yield Probe(name="one")
        raise ValueError(_SECRET)

    probe.on[kind] = one_and_fail
    found = refused(lambda: probe.call(kind))

    assert found.reason == "INTERNAL"
    assert b"s3cret" not in found.everything


def test_trouble_of_the_server_is_logged_and_mistakes_of_callers_are_not(probe: ProbeServer, log: _Log) -> None:
    _raised(probe, BadRequestError.of("x", "is wrong"))
    _raised(probe, SealBrokenError("column x of row y", metadata={"field": "x"}))

    assert [(entry["level"], entry["reason"], entry["detail"]) for entry in log.entries] == [
        ("warning", "SEALED_VALUE_INVALID", "column x of row y")
    ]


@pytest.mark.parametrize("kind", list(RUNTIME_ERRORS))
def test_every_answer_makes_a_status(kind: type[KronosError]) -> None:
    table = ErrorTable(RUNTIME_ERRORS)
    error = kind(retry_after=0.25)

    status = status_of(table.answer(error), error, "r-2")

    assert status.code == table.answer(error).code
    assert status.message
    retries = [detail for detail in status.details if detail.type_url.endswith("RetryInfo")]
    assert len(retries) == 1
    assert Duration.FromString(retries[0].value[2:]).ToMilliseconds() == 250


def test_the_table_refuses_two_answers_for_one_exception() -> None:
    with pytest.raises(ValueError, match="TeapotError has two answers"):
        ErrorTable({TeapotError: UNKNOWN}, {TeapotError: UNKNOWN})


def test_codes_are_those_of_google_rpc() -> None:
    assert {code.name: code.value for code in Code}.items() <= dict(code_pb2.Code.items()).items()
