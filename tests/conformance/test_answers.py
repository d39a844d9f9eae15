"""Every exception that can leave a handler has an answer, and the answers keep to AIP-193."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import string
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import kronos_db
from kronos_db import server
from kronos_db.runtime.errors import UNKNOWN, Answer, KronosError

# What stops a start, serves the ops port or a client program, or is translated before it leaves a store.
_NEVER_ANSWERED = {
    "DataDirectoryInUseError",
    "DegradedError",
    "EmbeddedError",
    "MarkError",
    "MigrationChangedError",
    "FleetStartError",
    "LeaseGoneError",
    "ListenError",
    "MigrationFailedError",
    "NotReadyError",
    "SchemaTooNewError",
    "PolicyError",
    "OpsAddressError",
    "PortTakenError",
    "ProblemError",
    "ProcessRefusedError",
    "StartCancelledError",
    "StartError",
    "ConstraintError",
    # The base of those with an answer.
    "TakenError",
}
_ANSWERS = sorted(server.ERRORS.rows.items(), key=lambda row: row[0].__name__)


def _modules() -> Iterator[str]:
    for module in pkgutil.walk_packages(kronos_db.__path__, "kronos_db."):
        if not module.name.endswith("__main__"):
            yield module.name


def _errors() -> list[type[KronosError]]:
    for name in _modules():
        importlib.import_module(name)
    found, ahead = set(), [KronosError]
    while ahead:
        for kind in ahead.pop().__subclasses__():
            if kind.__module__.startswith("kronos_db.") and kind not in found:
                found.add(kind)
                ahead.append(kind)
    return sorted(found, key=lambda kind: kind.__name__)


def test_every_exception_has_an_answer_or_a_reason_to_have_none() -> None:
    forgotten = {kind.__name__ for kind in _errors() if server.ERRORS.answer(kind.__new__(kind)) is UNKNOWN}

    assert forgotten == _NEVER_ANSWERED


def test_every_exception_says_what_it_means() -> None:
    assert [kind.__name__ for kind in _errors() if not (kind.__doc__ or "").strip()] == []


def test_reasons_are_unique() -> None:
    reasons = [answer.reason for _, answer in _ANSWERS] + [UNKNOWN.reason]

    assert sorted(set(reasons)) == sorted(reasons)


@pytest.mark.parametrize("answer", [answer for _, answer in _ANSWERS] + [UNKNOWN], ids=lambda answer: answer.reason)
def test_an_answer_keeps_to_the_form(answer: Answer) -> None:
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*[A-Z0-9]", answer.reason)
    assert len(answer.reason) <= 63
    assert answer.sentence[0].isupper()
    assert answer.sentence.endswith(".")
    assert len(answer.sentence) < 200


@cache
def _keys_by_name() -> Mapping[str, set[str]]:
    """Return the keys of metadata that the code gives, by the class that they are given to or in which they are."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in Path(kronos_db.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                calls = (call for call in ast.walk(node) if isinstance(call, ast.Call))
                found[node.name] |= {key for call in calls for key in _keys(call)}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found[node.func.id] |= set(_keys(node))
    return found


def _keys_given(kind: type[KronosError]) -> set[str]:
    """Return the keys of metadata with which the code makes this exception, read from its source."""
    names = {each.__name__ for each in (kind, *_errors_below(kind))} | {
        base.__name__ for base in kind.__mro__ if issubclass(base, KronosError) and base is not KronosError
    }
    by_name = _keys_by_name()
    return {key for name in names for key in by_name.get(name, ())}


def _keys(call: ast.Call) -> Iterator[str]:
    for keyword in call.keywords:
        if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
            yield from (str(key.value) for key in keyword.value.keys if isinstance(key, ast.Constant))


def _errors_below(kind: type[KronosError]) -> list[type[KronosError]]:
    return [each for each in _errors() if issubclass(each, kind)]


@pytest.mark.parametrize(("kind", "answer"), _ANSWERS, ids=lambda value: getattr(value, "reason", ""))
def test_a_sentence_names_only_what_the_exception_brings(kind: type[KronosError], answer: Answer) -> None:
    named = {name for _, name, _, _ in string.Formatter().parse(answer.sentence) if name}

    assert named <= _keys_given(kind)


def test_the_contract_tells_the_reasons_of_each_domain() -> None:
    protos = Path(kronos_db.__file__).parent.parent / "protos" / "kronos"
    for domain in server.SERVICES:
        module = importlib.import_module(f"kronos_db.{domain}.model")
        text = (protos / domain / "v1" / f"{domain}.proto").read_text(encoding="utf-8")
        untold = [answer.reason for answer in module.ERRORS.values() if answer.reason not in text]
        assert untold == []
