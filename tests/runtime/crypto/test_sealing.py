"""Sealed values open in their own field and record, and nowhere else."""

from __future__ import annotations

import base64
import string
from collections.abc import Callable
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_db.runtime.crypto.normalization import Normalization, normalize
from kronos_db.runtime.crypto.sealing import Index, Sealer
from kronos_db.runtime.errors import RUNTIME_ERRORS, ErrorTable, SealBrokenError
from kronos_db.runtime.identifiers import uuid7, uuid7_text

FIELD = "kronos.users.v1.User.email"
RECORD = "01890a5d-ac96-774b-bcce-b302099a8057"
EMAIL = Index("users.email", Normalization.CASELESS)

BASE64URL = string.ascii_letters + string.digits + "-_"
indexes = st.sampled_from([None, EMAIL, Index("x")])
fields = st.text(min_size=1, max_size=20)


def box_of(sealed: str) -> bytes:
    return base64.urlsafe_b64decode(sealed.split(".")[1] + "==")


@given(st.text(), fields, st.uuids().map(str), indexes)
def test_any_text_comes_back(sealer: Sealer, value: str, field: str, record_id: str, index: Index | None) -> None:
    sealed = sealer.seal_text(value, field, record_id, index)
    assert sealer.open_text(sealed, field, record_id) == value
    assert sealed.isascii()
    assert set(sealed) <= set(BASE64URL + ".")


@given(st.binary(), fields, st.uuids().map(str), indexes)
def test_any_bytes_come_back(sealer: Sealer, value: bytes, field: str, record_id: str, index: Index | None) -> None:
    assert sealer.open_bytes(sealer.seal_bytes(value, field, record_id, index), field, record_id) == value


def test_the_text_form(sealer: Sealer) -> None:
    plain, indexed = sealer.seal_text("ann", FIELD, RECORD), sealer.seal_text("ann", FIELD, RECORD, EMAIL)
    assert plain.split(".")[0] == indexed.split(".")[0] == "k1"
    assert plain.count(".") == 1
    assert indexed.split(".")[2] == sealer.blind_index("ann", EMAIL)
    box = box_of(indexed)
    assert box[0] == 1
    assert UUID(bytes=box[1:17]) == sealer._ring.seal_key().id
    assert len(box) == 1 + 16 + 24 + 32 + 16


def test_the_binary_form(sealer: Sealer) -> None:
    plain, indexed = sealer.seal_bytes(b"ann", FIELD, RECORD), sealer.seal_bytes(b"ann", FIELD, RECORD, Index("x"))
    assert (plain[0], plain[1]) == (0, 1)
    assert (indexed[0], indexed[33]) == (32, 1)
    assert indexed[1:33] == sealer.blind_index_bytes(b"ann", Index("x"))
    assert len(indexed) == len(plain) + 32 == 33 + 89


@given(st.integers(0, 200))
def test_a_length_shows_in_steps_of_32(sealer: Sealer, length: int) -> None:
    box = box_of(sealer.seal_text("x" * length, FIELD, RECORD))
    assert len(box) - 57 == (length // 32 + 1) * 32


def test_sealing_twice_gives_two_forms_with_one_index(sealer: Sealer) -> None:
    one, two = (sealer.seal_text("ann", FIELD, RECORD, EMAIL).split(".") for _ in range(2))
    assert one[1] != two[1]
    assert one[2] == two[2]


@given(st.text(max_size=40), indexes, st.data())
def test_no_altered_text_opens(sealer: Sealer, value: str, index: Index | None, data: st.DataObject) -> None:
    sealed = sealer.seal_text(value, FIELD, RECORD, index)
    place = data.draw(st.integers(0, len(sealed) - 1))
    other = data.draw(st.sampled_from(BASE64URL + ".=\n é").filter(lambda char: char != sealed[place]))
    for altered in (
        sealed[:place] + other + sealed[place + 1 :],
        sealed[:place] + other + sealed[place:],
        sealed[:place] + sealed[place + 1 :],
        sealed[:place],
        sealed + other,
    ):
        with pytest.raises(SealBrokenError):
            sealer.open_text(altered, FIELD, RECORD)


@given(st.binary(max_size=40), indexes, st.data())
def test_no_altered_bytes_open(sealer: Sealer, value: bytes, index: Index | None, data: st.DataObject) -> None:
    sealed = sealer.seal_bytes(value, FIELD, RECORD, index)
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    flipped = (int.from_bytes(sealed, "big") ^ 1 << bit).to_bytes(len(sealed), "big")
    for altered in (flipped, sealed[: bit // 8], sealed + b"\0"):
        with pytest.raises(SealBrokenError):
            sealer.open_bytes(altered, FIELD, RECORD)


@given(st.text(), fields, st.uuids().map(str))
def test_does_not_open_elsewhere(sealer: Sealer, value: str, field: str, record_id: str) -> None:
    sealed = sealer.seal_text(value, FIELD, RECORD, EMAIL)
    for other_field, other_record in ((field, RECORD), (FIELD, record_id), (FIELD, ""), (FIELD + RECORD, "")):
        with pytest.raises(SealBrokenError):
            sealer.open_text(sealed, other_field, other_record)


def test_does_not_open_with_the_keys_of_another_domain(sealer: Sealer, new_sealer: Callable[[str], Sealer]) -> None:
    sealed = sealer.seal_text("ann", FIELD, RECORD)
    with pytest.raises(SealBrokenError):
        new_sealer("tokens").open_text(sealed, FIELD, RECORD)


def test_the_index_belongs_to_the_value(sealer: Sealer) -> None:
    ann, bob = (sealer.seal_text(name, FIELD, RECORD, EMAIL).split(".") for name in ("ann", "bob"))
    for forged in (f"k1.{ann[1]}.{bob[2]}", f"k1.{ann[1]}", f"k1.{ann[1]}."):
        with pytest.raises(SealBrokenError):
            sealer.open_text(forged, FIELD, RECORD)


def test_text_and_bytes_are_two_forms(sealer: Sealer) -> None:
    with pytest.raises(SealBrokenError):
        sealer.open_bytes(sealer.seal_text("ann", FIELD, RECORD).encode(), FIELD, RECORD)


def test_bytes_that_are_no_text_do_not_open_as_text(sealer: Sealer) -> None:
    box = sealer.seal_bytes(b"\xff\xfe", FIELD, RECORD)[1:]
    sealed = "k1." + base64.urlsafe_b64encode(box).rstrip(b"=").decode()
    with pytest.raises(SealBrokenError, match="it is not text") as caught:
        sealer.open_text(sealed, FIELD, RECORD)
    assert "ff" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "not a sealed value"),
        ("ann@example.org", "not a sealed value"),
        ("k2.AAAA", "not a sealed value"),
        ("k1.AAAA.short", "not a sealed value"),
        ("k1.AAAA.AAAA.AAAA", "not a sealed value"),
        ("k1.", "too short or of an unknown version"),
        ("k1.AQ", "too short or of an unknown version"),
        ("k1.Ag" + "A" * 100, "too short or of an unknown version"),
        ("k1.AR", "not base64url"),
        ("k1.AQ==", "not base64url"),
        ("k1.é", "not base64url"),
        ("k1.\ud800", "not base64url"),
    ],
)
def test_says_in_the_log_why_a_value_does_not_open(sealer: Sealer, value: str, why: str) -> None:
    with pytest.raises(SealBrokenError, match=why) as caught:
        sealer.open_text(value, FIELD, RECORD)
    assert caught.value.metadata == {"field": FIELD}
    assert FIELD in str(caught.value)
    assert RECORD in str(caught.value)


@pytest.mark.parametrize("text", ["A", "AA", "AAA", "AAAA", "AAAAA", "AAAAAA", "AAAAAAA"])
def test_one_value_has_one_text(sealer: Sealer, text: str) -> None:
    """Also where the last character has bits to spare."""
    for last in BASE64URL:
        written = text[:-1] + last
        canonical = (
            len(written) % 4 != 1
            and base64.urlsafe_b64encode(base64.urlsafe_b64decode(written + "==")).decode().rstrip("=") == written
        )
        with pytest.raises(SealBrokenError, match="unknown version" if canonical else "not base64url"):
            sealer.open_text(f"k1.{written}", FIELD, RECORD)


def test_the_answer_names_the_field_alone(sealer: Sealer) -> None:
    sealed = sealer.seal_text("ann@example.org", FIELD, RECORD)
    with pytest.raises(SealBrokenError) as caught:
        sealer.open_text(sealed, FIELD, uuid7_text())
    answer = ErrorTable(RUNTIME_ERRORS).answer(caught.value)
    assert answer.reason == "SEALED_VALUE_INVALID"
    assert FIELD in answer.sentence.format(**caught.value.metadata)
    assert "ann" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_unknown_key_does_not_open(sealer: Sealer) -> None:
    box = bytearray(box_of(sealer.seal_text("ann", FIELD, RECORD)))
    for key_id in (uuid7().bytes, sealer._ring.index_key.id_bytes):
        box[1:17] = key_id
        sealed = "k1." + base64.urlsafe_b64encode(bytes(box)).rstrip(b"=").decode()
        with pytest.raises(SealBrokenError, match=f"no data key {key_id.hex()}"):
            sealer.open_text(sealed, FIELD, RECORD)


@given(st.text(), st.text(), st.sampled_from(Normalization))
def test_indexes_are_equal_when_normalised_values_are(
    sealer: Sealer, one: str, two: str, normalization: Normalization
) -> None:
    index = Index("x", normalization)
    for left, right in ((one, two), (one, f" {one.upper()} ")):
        same = normalize(left, normalization) == normalize(right, normalization)
        assert (sealer.blind_index(left, index) == sealer.blind_index(right, index)) is same


def test_indexes_differ_by_name_and_domain(sealer: Sealer, new_sealer: Callable[[str], Sealer]) -> None:
    found = {
        sealer.blind_index("ann", EMAIL),
        sealer.blind_index("ann", Index("users.phone", Normalization.CASELESS)),
        new_sealer("users").blind_index("ann", EMAIL),
    }
    assert len(found) == 3
    assert all(len(text) == 43 and set(text) <= set(BASE64URL) for text in found)
