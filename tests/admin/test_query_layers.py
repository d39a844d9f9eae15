"""Hostile statements do no harm, whichever one of the layers is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kronos_db.admin.query_model import StatementRefusedError
from tests.admin.layers import CANARY, SECRET, WITHOUT, Stand, without
from tests.parts.eventually import eventually


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    made = Stand(tmp_path_factory.mktemp("hostile"))
    yield made
    made.stop()


def test_there_are_many_statements(stand: Stand) -> None:
    assert len(set(stand.statements())) >= 280


@pytest.mark.parametrize("layer", WITHOUT)
def test_hostile_statements_do_no_harm_without(layer: str, stand: Stand) -> None:
    before = stand.world()
    harmful = []
    with without(layer, stand) as layered:
        for text in stand.statements():
            rows, refusal = layered.run(text)
            if isinstance(refusal, StatementRefusedError) and refusal.rule != "read only" and layer != "guard":
                # By its text alone: nothing reached PostgreSQL.
                continue
            said = f"{rows} {refusal}"
            found = layered.left()
            found += ["read the file"] if CANARY in said else []
            found += ["read a secret"] if SECRET in said and layer != "role" else []
            found += ["changed something"] if stand.world() != before else []
            if found:
                harmful.append((text, found, refusal))
                before = stand.world()
    assert harmful == []
    assert stand.world() == before


def test_every_hostile_statement_is_refused_by_a_rule_with_all_layers(stand: Stand) -> None:
    with without("nothing", stand) as layered:
        accepted = [text for text in stand.statements() if "rule" not in getattr(layered.run(text)[1], "metadata", {})]
    assert accepted == []


HARM = (
    "SELECT set_config('work_mem', '77MB', false)",
    "SELECT pg_advisory_lock(1)",
    "CREATE TEMP TABLE made (a int)",
    "SELECT pg_notify('watched', 'x')",
    "SELECT txid_current()",
    "SELECT stand.write()",
    "SELECT mark::integer FROM stand.t",
    "SELECT nextval('stand.number')",
    "SELECT lo_create(4711)",
    "SELECT pg_read_file('DIR/canary')",
    "COPY (SELECT 1) TO 'DIR/written'",
    "SELECT 1; SELECT pg_advisory_lock(2)",
    "SELECT pg_cancel_backend(PID)",
)


def test_without_all_layers_each_harm_is_seen(stand: Stand) -> None:
    unseen = []
    with without("everything", stand) as layered:
        for text in map(stand.placed, HARM):
            before = stand.world()
            rows, _ = layered.run(text)
            if "cancel" in text:
                eventually(lambda: bool(stand.disturbed))
            if not (layered.left() or stand.world() != before or CANARY in f"{rows}"):
                unseen.append(text)
    assert unseen == []
