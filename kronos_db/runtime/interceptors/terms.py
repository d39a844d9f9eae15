"""What a handler asks of the chain for its method: said with a decorator, read once when the server is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Handler = TypeVar("Handler", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Terms:
    """What is not as for every other method.

    `domain` of ours serves a method of a contract that is not ours. `most_bytes` is the largest request, None for that
    of the settings. With `checks_text` the handler looks for U+0000 itself, to refuse parts of a request. `detail` says
    what of a request stands in the record of calls beside it, for example a fingerprint.
    """

    domain: str = ""
    most_bytes: int | None = None
    checks_text: bool = False
    detail: Callable[[Any], str] | None = None


_NONE = Terms()


def on_terms(
    *,
    domain: str = "",
    most_bytes: int | None = None,
    checks_text: bool = False,
    detail: Callable[[Any], str] | None = None,
) -> Callable[[Handler], Handler]:
    """Mark a handler; see Terms."""

    def mark(handler: Handler) -> Handler:
        handler.terms = Terms(domain, most_bytes, checks_text, detail)  # type: ignore[attr-defined]  # read by `terms_of`
        return handler

    return mark


def terms_of(behavior: object) -> Terms:
    """Return the terms of a handler."""
    found = getattr(behavior, "terms", _NONE)
    return found if isinstance(found, Terms) else _NONE
