"""The access policy: what a file may say, and each thing for which it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kronos_db.runtime.interceptors.policy import Policy, PolicyError, load_policy

_METHODS = ["kronos.a.v1.A/One", "kronos.a.v1.A/Two", "kronos.b.v1.B/Three"]
_HASH = "hmac-sha256:mk-1:" + "a" * 43
_OTHER_HASH = "hmac-sha256:mk-1:" + "b" * 43


def _load(folder: Path, text: str) -> Policy:
    (folder / "access.toml").write_text(text)
    return load_policy(folder / "access.toml", _METHODS, capabilities=["a.whisper", "b.shout"])


def test_what_a_file_says(tmp_path: Path) -> None:
    policy = _load(
        tmp_path,
        f"""
        closed = ["kronos.b.v1.B/*"]
        [callers.ann]
        tokens = ["{_HASH}", "{_OTHER_HASH}"]
        allow = ["kronos.a.v1.A/*"]
        [callers.bob]
        spiffe_ids = ["spiffe://kronos/bob"]
        allow = ["kronos.a.v1.A/One"]
        may = ["a.whisper"]
        [callers.nobody]
        """,
    )

    assert policy.token_hashes == {_HASH: "ann", _OTHER_HASH: "ann"}
    assert policy.spiffe_ids == {"spiffe://kronos/bob": "bob"}
    assert policy.allowed == {"ann": set(_METHODS[:2]), "bob": {_METHODS[0]}, "nobody": frozenset()}
    assert policy.may == {"ann": frozenset(), "bob": {"a.whisper"}, "nobody": frozenset()}


def test_a_star_allows_everything(tmp_path: Path) -> None:
    assert _load(tmp_path, '[callers.ann]\nallow = ["*"]').allowed["ann"] == frozenset(_METHODS)


def test_a_star_grants_everything(tmp_path: Path) -> None:
    assert _load(tmp_path, '[callers.ann]\nallow = ["*"]\nmay = ["*"]').may["ann"] == {"a.whisper", "b.shout"}


_REFUSALS = {
    "unknown key": ('open = ["*"]\n[callers.ann]\nallow = ["*"]', "the file has an unknown key open"),
    "unknown key of a caller": ('[callers.ann]\nallow = ["*"]\ntoken = []', "callers.ann has an unknown key token"),
    "callers no tables": ("callers = 1", "callers must be tables"),
    "caller no table": ("[callers]\nann = 1", "callers.ann must be a table"),
    "allow no list": ('[callers.ann]\nallow = "*"', "allow of ann must be a list of texts"),
    "allow no texts": ("[callers.ann]\nallow = [1]", "allow of ann must be a list of texts"),
    "closed no list": ("closed = 1", "closed of the file must be a list of texts"),
    "names nothing": ('[callers.ann]\nallow = ["*", "kronos.a.v1.A/Four"]', "kronos.a.v1.A/Four names no method"),
    "service names nothing": ('[callers.ann]\nallow = ["*", "kronos.c.v1.C/*"]', r"kronos.c.v1.C/\* names no method"),
    "a star within": ('[callers.ann]\nallow = ["*", "kronos.a.v1.A/O*"]', r"kronos.a.v1.A/O\* names no method"),
    "a star for packages": ('[callers.ann]\nallow = ["kronos.*"]', r"kronos.\* names no method"),
    "empty pattern": ('[callers.ann]\nallow = ["*", ""]', "names no method"),
    "unknown capability": (
        '[callers.ann]\nallow = ["*"]\nmay = ["a.whisper", "a.sing"]',
        "a.sing names no capability of this server; known: a.whisper, b.shout",
    ),
    "may no list": ('[callers.ann]\nallow = ["*"]\nmay = "a.whisper"', "may of ann must be a list of texts"),
    "closed names nothing": ('closed = ["x/y"]\n[callers.ann]\nallow = ["*"]', "x/y names no method"),
    "forgotten": ('[callers.ann]\nallow = ["kronos.a.v1.A/*"]', "no caller may call kronos.b.v1.B/Three"),
    "empty file": ("", "no caller may call kronos.a.v1.A/One, kronos.a.v1.A/Two, kronos.b.v1.B/Three"),
    "token twice": (
        f'[callers.ann]\nallow = ["*"]\ntokens = ["{_HASH}"]\n[callers.bob]\ntokens = ["{_HASH}"]',
        "callers.bob and callers.ann claim the same token hash",
    ),
    "SPIFFE id twice": (
        '[callers.ann]\nallow = ["*"]\nspiffe_ids = ["spiffe://k/a"]\n[callers.bob]\nspiffe_ids = ["spiffe://k/a"]',
        "callers.bob and callers.ann claim the same SPIFFE id",
    ),
    "token in the clear": ('[callers.ann]\nallow = ["*"]\ntokens = ["kdb_secret"]', "ann has a malformed token hash"),
    "hash too short": ('[callers.ann]\ntokens = ["hmac-sha256:mk:abc"]', "ann has a malformed token hash"),
    "SPIFFE id without path": ('[callers.ann]\nspiffe_ids = ["spiffe://k"]', "ann has a malformed SPIFFE id"),
    "SPIFFE id with query": ('[callers.ann]\nspiffe_ids = ["spiffe://k/a?b"]', "ann has a malformed SPIFFE id"),
    "not TOML": ("callers = [", "cannot be read"),
}


@pytest.mark.parametrize(("text", "reason"), _REFUSALS.values(), ids=_REFUSALS.keys())
def test_a_file_is_refused_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(PolicyError, match=reason) as caught:
        _load(tmp_path, text)

    assert str(tmp_path / "access.toml") in str(caught.value)
    # A credential that was put in the wrong place is not printed.
    assert "kdb_secret" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path / "missing.toml", _METHODS)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path / "binary.toml", _METHODS)
