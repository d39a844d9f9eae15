"""Argon2id: hashing, checking, and the upgrade of parameters."""

from __future__ import annotations

from kronos_db.users.passwords import Passwords, Verdict

_CHEAP = Passwords(memory_kib=64, iterations=1)


def test_a_hash_is_salted_and_names_its_parameters() -> None:
    first, second = _CHEAP.hash("password"), _CHEAP.hash("password")

    assert first != second
    assert first.startswith("$argon2id$v=19$m=64,t=1,p=1$")


def test_a_password_matches_its_hash_alone() -> None:
    stored = _CHEAP.hash("password")

    assert _CHEAP.check("password", stored) == Verdict(matches=True)
    assert _CHEAP.check("Password", stored) == Verdict(matches=False)
    assert _CHEAP.check("password", None) == Verdict(matches=False)
    assert _CHEAP.check("password", "$argon2id$broken") == Verdict(matches=False)
    # Not even the one that stands in for nobody's.
    assert _CHEAP.check("no password hashes to this", None) == Verdict(matches=False)


def test_other_parameters_are_brought_up_to_date_by_a_match_alone() -> None:
    stored = Passwords(memory_kib=32, iterations=2).hash("password")

    assert _CHEAP.check("wrong", stored) == Verdict(matches=False)
    verdict = _CHEAP.check("password", stored)

    assert verdict.matches
    assert verdict.upgraded is not None
    assert "$m=64,t=1,p=1$" in verdict.upgraded
    assert _CHEAP.check("password", verdict.upgraded) == Verdict(matches=True)


def test_composed_and_decomposed_are_one() -> None:
    assert _CHEAP.check("e\u0301", _CHEAP.hash("\u00e9")).matches
    # Case and compatibility forms are not folded: they are choices of whoever made the password.
    assert not _CHEAP.check("fi", _CHEAP.hash("\ufb01")).matches
