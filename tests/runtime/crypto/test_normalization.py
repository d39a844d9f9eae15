"""Values that people take for the same have one form, and it is stable."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kronos.options.v1 import options_pb2

from kronos_db.runtime.crypto.normalization import Normalization, caseless, normalize, phone


def test_the_numbers_are_those_of_the_contract() -> None:
    contract = {name.removeprefix("NORMALIZATION_"): number for name, number in options_pb2.Normalization.items()}
    assert contract == {member.name: member.value for member in Normalization}


@given(st.text(), st.sampled_from(Normalization))
def test_twice_is_once(value: str, normalization: Normalization) -> None:
    once = normalize(value, normalization)
    assert normalize(once, normalization) == once


@given(st.text())
def test_unspecified_changes_nothing(value: str) -> None:
    assert normalize(value, Normalization.UNSPECIFIED) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Ann@Example.org ", "ann@example.org"),
        ("\tANN\n", "ann"),
        ("Straße", "strasse"),
        ("STRAẞE", "strasse"),
        ("ΣΊΣΥΦΟΣ", "σίσυφοσ"),
        ("Å", "å"),  # ANGSTROM SIGN
        ("ﬁn", "fin"),  # a ligature
        ("Ａｎｎ", "ann"),  # noqa: RUF001 - full-width letters
        ("ann\u200b@example.org", "ann@example.org"),  # ZERO WIDTH SPACE
        ("a\u00adnn\ufe0f", "ann"),  # SOFT HYPHEN, a variation selector
        ("\u00a0Änn\u3000", "änn"),  # white space beyond ASCII
        ("A\u0308nn", "änn"),
        ("\u1e9b\u0323", "\u1e69"),  # Unicode Annex 15: the case where one pass of NFKC is not enough
        ("\u2103", "\u00b0c"),  # a compatibility form that hides a capital
        ("", ""),
        (" \u200b ", ""),
    ],
)
def test_caseless(value: str, expected: str) -> None:
    assert caseless(value) == expected


@given(st.text())
def test_caseless_ignores_case_and_form(value: str) -> None:
    once = caseless(value)
    assert caseless(unicodedata.normalize("NFD", value)) == once
    assert caseless(unicodedata.normalize("NFC", value)) == once
    # Folded without taking it apart first, marks below (U+0345) would land in another order.
    assert caseless(unicodedata.normalize("NFD", value).casefold()) == once
    assert caseless(f" {value}\u2003") == once


@given(st.text(st.characters(max_codepoint=127)))
def test_the_short_cut_for_ascii_is_no_other_way(value: str) -> None:
    # A letter beyond ASCII takes the long way; it stands at the end and is cut off again.
    assert caseless("ö" + value + "ö")[1:-1].strip() == caseless(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("+1 (555) 010-0000", "+15550100000"),
        ("+15550100000", "+15550100000"),
        ("15550100000", "15550100000"),
        ("(+49) 30/123", "+4930123"),
        ("030 + 5", "0305"),
        ("＋４９ ３０", "+4930"),  # noqa: RUF001 - full-width characters
        ("+٤٩", "+49"),  # Arabic-Indic digits
        ("no number", ""),
    ],
)
def test_phone(value: str, expected: str) -> None:
    assert phone(value) == expected
