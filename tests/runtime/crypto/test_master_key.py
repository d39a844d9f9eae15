"""Master keys from a file: private, well-formed, never shown."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kronos_db.runtime.crypto.master_key import (
    FileMasterKeys,
    MasterKeyFileError,
    MasterKeys,
    WrappedKey,
    create_master_key_file,
)
from kronos_db.runtime.errors import KeyUnavailableError

KEY_A, KEY_B = (base64.b64encode(bytes([value]) * 32).decode() for value in (0xA5, 0xB6))


def key_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode("latin-1"))
    path.chmod(mode)
    return path


@pytest.fixture
def one(tmp_path: Path) -> FileMasterKeys:
    return FileMasterKeys(key_file(tmp_path / "keys", f"a {KEY_A}\n"))


def test_wraps_and_unwraps(one: FileMasterKeys) -> None:
    provider: MasterKeys = one
    wrapped = provider.wrap(b"k" * 32, b"context")
    assert wrapped.master_key_id == provider.current_id == "a"
    assert provider.unwrap(wrapped, b"context") == b"k" * 32
    assert provider.wrap(b"k" * 32, b"context") != wrapped


def test_unwraps_nothing_else(one: FileMasterKeys) -> None:
    wrapped = one.wrap(b"k" * 32, b"context")
    altered = WrappedKey("a", wrapped.ciphertext[:-1] + bytes([wrapped.ciphertext[-1] ^ 1]))
    for other, context in ((wrapped, b"other"), (altered, b"context"), (WrappedKey("a", b""), b"context")):
        with pytest.raises(KeyUnavailableError, match="does not open under master key a"):
            one.unwrap(other, context)
    with pytest.raises(KeyUnavailableError, match="no key gone"):
        one.unwrap(WrappedKey("gone", wrapped.ciphertext), b"context")


def test_the_first_key_wraps_and_the_others_still_unwrap(tmp_path: Path, one: FileMasterKeys) -> None:
    old = one.wrap(b"k" * 32, b"context")
    both = FileMasterKeys(key_file(tmp_path / "both", f"# new\n\nb {KEY_B}\n  a   {KEY_A}  \n"))
    assert both.wrap(b"", b"").master_key_id == both.current_id == "b"
    assert both.unwrap(old, b"context") == b"k" * 32


def test_derives_by_purpose_and_key(tmp_path: Path, one: FileMasterKeys) -> None:
    both = FileMasterKeys(key_file(tmp_path / "both", f"b {KEY_B}\na {KEY_A}\n"))
    assert len(one.derive("tokens")) == 32
    assert one.derive("tokens") == one.derive("tokens") == both.derive("tokens", "a")
    assert len({one.derive("tokens"), one.derive("pages"), both.derive("tokens"), bytes([0xA5]) * 32}) == 4
    with pytest.raises(KeyUnavailableError, match="no key gone"):
        one.derive("tokens", "gone")


def test_shows_no_key(one: FileMasterKeys) -> None:
    assert repr(one) == str(one) == "FileMasterKeys(a)"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "holds no key"),
        ("# comment\n\n", "holds no key"),
        (KEY_A, "line 1, is not an id"),
        (f"# c\na {KEY_A} b", "line 2, is not an id"),
        (f"{KEY_A} a", "line 1, is not an id"),
        (f"{'a' * 65} {KEY_A}", "line 1, is not an id"),
        (f"a {KEY_A[:-4]}", "line 1, does not hold 32 bytes"),
        (f"a {KEY_A}AAAA", "line 1, does not hold 32 bytes"),
        (f"a {'!' + KEY_A[1:]}", "line 1, does not hold 32 bytes"),
        (f"a {KEY_A}\na {KEY_B}", "line 2, repeats the id"),
        (f"\xe4 {KEY_A}", "is not ASCII"),
    ],
)
def test_refuses_a_malformed_file_without_showing_it(tmp_path: Path, text: str, fault: str) -> None:
    path = key_file(tmp_path / "keys", text)
    with pytest.raises(MasterKeyFileError, match=fault) as caught:
        FileMasterKeys(path)
    assert str(path) in str(caught.value)
    assert KEY_A[8:24] not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_refuses_a_file_that_others_may_use(tmp_path: Path, mode: int) -> None:
    with pytest.raises(MasterKeyFileError, match=f"mode {mode:04o}.*0600"):
        FileMasterKeys(key_file(tmp_path / "keys", f"a {KEY_A}\n", mode))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of root's")
@pytest.mark.parametrize(("mode", "taken"), [(0o440, True), (0o640, True), (0o460, False), (0o444, False)])
def test_takes_roots_file_for_our_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, taken: bool
) -> None:
    """As Kubernetes mounts a secret with fsGroup, and systemd a credential."""
    path = key_file(tmp_path / "keys", f"a {KEY_A}\n", mode)
    monkeypatch.setattr(os, "geteuid", lambda: 65532)
    if taken:
        assert FileMasterKeys(path).current_id == "a"
    else:
        with pytest.raises(MasterKeyFileError, match=f"mode {mode:04o}"):
            FileMasterKeys(path)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.mkdir(mode=0o700), "cannot be read: Is a directory"),
        (lambda path: os.mkfifo(path, 0o600), "is no regular file"),
    ],
)
def test_refuses_what_is_no_file(tmp_path: Path, make: Callable[[Path], None], fault: str) -> None:
    make(tmp_path / "keys")
    with pytest.raises(MasterKeyFileError, match=fault):
        FileMasterKeys(tmp_path / "keys")


def test_creates_a_private_file_with_a_fresh_key(tmp_path: Path) -> None:
    for name in ("one", "two"):
        create_master_key_file(tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    one, two = FileMasterKeys(tmp_path / "one"), FileMasterKeys(tmp_path / "two")
    assert one.current_id != two.current_id
    assert one.derive("x") != two.derive("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_never_replaces_a_file(tmp_path: Path) -> None:
    path = key_file(tmp_path / "keys", "mine")
    with pytest.raises(FileExistsError):
        create_master_key_file(path)
    assert path.read_text() == "mine"
    assert [found.name for found in tmp_path.iterdir()] == ["keys"]
