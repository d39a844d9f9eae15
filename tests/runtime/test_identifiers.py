"""Ids are well-formed, rise, and are brought to one spelling."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_db.runtime.identifiers import canonical_uuid, uuid7, uuid7_text


def milliseconds_of(value: UUID) -> int:
    return value.int >> 80


def test_uuid7_is_well_formed_and_carries_the_time() -> None:
    before = time.time_ns() // 1_000_000
    value = uuid7()
    after = time.time_ns() // 1_000_000
    assert type(value) is UUID
    assert value.version == 7
    assert value.variant == RFC_4122
    assert before <= milliseconds_of(value) <= after


def test_uuid7_as_text_is_the_next_one() -> None:
    before, text, after = uuid7(), uuid7_text(), uuid7()
    assert str(UUID(text)) == text
    assert before < UUID(text) < after
    assert UUID(text).version == 7


def test_uuid7_of_a_forked_process_are_its_own() -> None:
    """Run on its own: a fork of a process with the threads of other tests might hang."""
    script = """
import os
from kronos_db.runtime.identifiers import uuid7
uuid7()
reading, writing = os.pipe()
child = os.fork()
made = "\\n".join(uuid7().hex[-8:] for _ in range(1000))
if not child:
    os.write(writing, made.encode())
    os._exit(0)
os.waitpid(child, 0)
theirs = os.read(reading, 65536).decode().split()
assert len(theirs) == 1000
assert not set(theirs) & set(made.split())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_uuid7_is_unique_and_rises_within_each_of_several_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: [uuid7() for _ in range(500)], range(8), timeout=30))
    for batch in made:
        assert batch == sorted(batch)
    assert len({value for batch in made for value in batch}) == 8 * 500


@given(st.uuids())
def test_canonical_is_what_python_prints(value: UUID) -> None:
    assert canonical_uuid(str(value).upper()) == str(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "01890a5d-ac96-774b-bcce-b302099a8057\n",
        "{01890a5d-ac96-774b-bcce-b302099a8057}",
        "urn:uuid:01890a5d-ac96-774b-bcce-b302099a8057",
        "01890a5dac96774bbcceb302099a8057",
        "０1890a5d-ac96-774b-bcce-b302099a8057",  # noqa: RUF001 - a full-width digit
    ],
)
def test_canonical_refuses_what_is_no_hyphenated_uuid(text: str) -> None:
    assert canonical_uuid(text) is None
