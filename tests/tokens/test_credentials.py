"""The text of tokens: its form, what is refused without a look-up, peppers, successors."""

from __future__ import annotations

import base64
import json
import re
import secrets
import string
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_db.runtime.crypto.master_key import FileMasterKeys
from kronos_db.runtime.errors import KeyUnavailableError
from kronos_db.runtime.identifiers import uuid7
from kronos_db.tokens.credentials import FORM, Credentials, Presented
from kronos_db.tokens.model import Kind, Reason

KEYS = {name: base64.b64encode(secrets.token_bytes(32)).decode() for name in ("one", "two", "three")}
KINDS = [kind for kind in Kind if kind is not Kind.JWT]


def credentials(folder: Path, names: Sequence[str] = ("one",), deployment: bytes = b"here") -> Credentials:
    path = folder / f"{secrets.token_hex(8)}.key"
    path.touch(0o600)
    path.write_text("".join(f"{name} {KEYS[name]}\n" for name in names))
    return Credentials(FileMasterKeys(path), deployment, b"a key for the ids of JWTs, 32 bytes")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return credentials(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def text(ours: Credentials) -> str:
    return ours.make(Kind.SESSION, uuid7()).text


def test_every_digit_of_a_secret_is_as_likely(ours: Credentials) -> None:
    made = "".join(found.text[44:-8] for found in (ours.make(Kind.SESSION, uuid7()) for _ in range(3000)))

    counts = Counter(made)
    assert len(made) == 3000 * 43
    assert set(counts) == set(string.ascii_letters + string.digits)
    # Chi squared with 61 degrees of freedom: beyond 150 once in 10^9 runs. Bytes modulo 62 would give 700.
    expected = len(made) / 62
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 150


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_made_is_read(ours: Credentials, kind: Kind) -> None:
    token_id = uuid7()

    made = ours.make(kind, token_id)

    assert ours.read(made.text) == Presented(token_id.hex, made.hash)
    assert len(made.text) == 95
    assert made.text[:4] == {1: "krs_", 2: "krr_", 3: "kra_", 4: "krk_"}[kind]
    assert made.text not in repr(made)
    assert made.text not in json.dumps(made, default=str)


def test_scanners_are_told_the_form_and_the_checksum(ours: Credentials, text: str) -> None:
    proto = Path("protos/kronos/tokens/v1/tokens.proto").read_text()
    told = re.search(r"`(kr\[.*?)`", proto)

    assert told is not None
    assert re.fullmatch(told[1], text)
    assert int(text[-8:], 16) == zlib.crc32(text[:-8].encode())


def test_no_two_are_alike(ours: Credentials) -> None:
    token_id = uuid7()
    bodies = {ours.make(Kind.SESSION, token_id).text[44:-8] for _ in range(1000)}

    assert len(bodies) == 1000
    # 256 bits: of a thousand the first digit takes most of the values that it can have.
    assert len({body[20] for body in bodies}) > 50


@given(st.text(max_size=120))
def test_junk_is_malformed(ours: Credentials, junk: str) -> None:
    assert ours.read(junk) is Reason.MALFORMED


@given(data=st.data())
def test_any_other_character_is_refused_without_a_look_up(ours: Credentials, text: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters().filter(lambda character: character != text[place]))

    assert ours.read(text[:place] + other + text[place + 1 :]) is Reason.MALFORMED


def test_what_is_cut_off_or_longer_is_malformed(ours: Credentials, text: str) -> None:
    for end in range(len(text)):
        assert ours.read(text[:end]) is Reason.MALFORMED
    assert ours.read(text + "0") is Reason.MALFORMED
    assert ours.read(f" {text}") is Reason.MALFORMED
    assert ours.read(f"{text}\n") is Reason.MALFORMED
    assert FORM.fullmatch(f"{text}\n") is None


def test_another_kind_is_another_text(ours: Credentials, text: str) -> None:
    # With a checksum that is right, since everybody can make one.
    body = f"krr_{text[4:-8]}"
    forged = f"{body}{zlib.crc32(body.encode()):08x}"
    read, genuine = ours.read(forged), ours.read(text)

    assert isinstance(read, Presented)
    assert isinstance(genuine, Presented)
    assert read.hash != genuine.hash


def test_another_deployments_are_foreign(tmp_path: Path, ours: Credentials, text: str) -> None:
    assert credentials(tmp_path, ["two"]).read(text) is Reason.FOREIGN
    # The same master key, another database.
    assert credentials(tmp_path, ["one"], b"there").read(text) is Reason.FOREIGN


class TestPeppers:
    """Rotation of the keys that tokens are hashed with, as docs/operations.md describes it."""

    def test_every_step_of_a_rotation_keeps_tokens_valid(self, tmp_path: Path) -> None:
        before = credentials(tmp_path, ["one"])
        added = credentials(tmp_path, ["one", "two"])
        moved = credentials(tmp_path, ["two", "one"])
        # Two neighbouring steps serve at the same time.
        for makes, reads in [(before, added), (added, before), (added, moved), (moved, added), (before, moved)]:
            made = makes.make(Kind.SESSION, uuid7())
            read = reads.read(made.text)
            assert isinstance(read, Presented)
            assert read.hash == made.hash
        assert added.mark == before.mark
        assert moved.mark != before.mark

    def test_without_its_key_a_token_is_foreign(self, tmp_path: Path) -> None:
        made = credentials(tmp_path, ["one"]).make(Kind.SESSION, uuid7())

        assert credentials(tmp_path, ["two", "three"]).read(made.text) is Reason.FOREIGN

    def test_hashes_of_two_peppers_differ(self, tmp_path: Path) -> None:
        token_id = uuid7()
        one, two = (credentials(tmp_path, [name]) for name in ("one", "two"))

        assert one.succeed(Kind.REFRESH, token_id, "x").hash != two.succeed(Kind.REFRESH, token_id, "x").hash


class TestSuccessors:
    """What a refresh token is exchanged for."""

    def test_it_is_given_again(self, ours: Credentials, text: str) -> None:
        token_id = uuid7()
        first = ours.succeed(Kind.REFRESH, token_id, text)

        assert ours.succeed(Kind.REFRESH, token_id, text, first.mark) == first
        assert ours.read(first.text) == Presented(token_id.hex, first.hash)

    def test_it_is_given_again_across_a_rotation_of_peppers(self, tmp_path: Path, text: str) -> None:
        token_id = uuid7()
        first = credentials(tmp_path, ["one", "two"]).succeed(Kind.ACCESS, token_id, text)

        assert credentials(tmp_path, ["two", "one"]).succeed(Kind.ACCESS, token_id, text, first.mark) == first
        with pytest.raises(KeyUnavailableError):
            credentials(tmp_path, ["two"]).succeed(Kind.ACCESS, token_id, text, first.mark)

    def test_it_takes_the_predecessor_the_id_and_the_key(self, tmp_path: Path, ours: Credentials, text: str) -> None:
        token_id = uuid7()
        bodies = {
            ours.succeed(Kind.REFRESH, token_id, text).text[44:-8],
            ours.succeed(Kind.REFRESH, token_id, text[:-1]).text[44:-8],
            ours.succeed(Kind.REFRESH, uuid7(), text).text[44:-8],
            credentials(tmp_path, ["two"]).succeed(Kind.REFRESH, token_id, text).text[44:-8],
        }

        assert len(bodies) == 4


def test_a_jwt_has_the_id_that_its_jti_gives(ours: Credentials) -> None:
    first = UUID(ours.jwt_record_id("one"))

    assert first == UUID(ours.jwt_record_id("one"))
    assert first != UUID(ours.jwt_record_id("two"))
    assert (first.version, first.variant) == (8, "specified in RFC 4122")
