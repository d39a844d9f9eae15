"""Etags: a version, none, or a refusal that names the field."""

from __future__ import annotations

import pytest

from kronos_db.runtime.errors import BadRequestError
from kronos_db.runtime.etags import version_of


def test_versions() -> None:
    assert version_of("", "etag") is None
    assert version_of("7", "etag") == 7
    assert version_of("9" * 18, "etag") == 10**18 - 1


@pytest.mark.parametrize("etag", ["x", "-1", "1.0", "²", " 1", "1" * 19])
def test_what_is_no_etag(etag: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        version_of(etag, "role.etag")
    assert [violation.field for violation in caught.value.violations] == ["role.etag"]
