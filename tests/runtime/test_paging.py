"""Page sizes, and tokens that cannot be altered or lent to another listing."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kronos.users.v1 import users_pb2 as pb

from kronos_db.runtime.errors import PageTokenError
from kronos_db.runtime.paging import PageTokens, page_size

_TOKENS = PageTokens(b"k" * 32)


@pytest.mark.parametrize(("asked", "given_"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_sizes(asked: int, given_: int) -> None:
    assert page_size(asked) == given_


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3), st.text("ab\u00e9", max_size=5))
def test_a_token_brings_back_what_it_was_made_of(last: list[str], prefix: str) -> None:
    request = pb.ListUsersRequest(username_prefix=prefix, page_size=3)
    token = _TOKENS.make(request, last)

    assert token.isascii()
    assert _TOKENS.read(pb.ListUsersRequest(username_prefix=prefix, page_size=9, page_token=token)) == last


def test_the_first_page_has_none() -> None:
    assert _TOKENS.read(pb.ListUsersRequest()) is None


def test_it_holds_for_its_request_and_key_alone() -> None:
    token = _TOKENS.make(pb.ListUsersRequest(username_prefix="a"), ["x"])

    for tokens, request in (
        (_TOKENS, pb.ListUsersRequest(username_prefix="b", page_token=token)),
        (_TOKENS, pb.ListUsersRequest(page_token=token)),
        (PageTokens(b"l" * 32), pb.ListUsersRequest(username_prefix="a", page_token=token)),
    ):
        with pytest.raises(PageTokenError) as caught:
            tokens.read(request)
        assert [violation.field for violation in caught.value.violations] == ["page_token"]


@given(st.binary(max_size=60))
def test_forged_tokens_are_refused(raw: bytes) -> None:
    token = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    if token:
        with pytest.raises(PageTokenError):
            _TOKENS.read(pb.ListUsersRequest(page_token=token))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_text_is_refused_and_nothing_else_happens(token: str) -> None:
    with pytest.raises(PageTokenError):
        _TOKENS.read(pb.ListUsersRequest(page_token=token))
