"""Request ids: with one, a write that is repeated gets the first answer and changes nothing (AIP-155)."""

from __future__ import annotations

import uuid
from typing import TypeVar

from google.protobuf.message import Message

Request = TypeVar("Request", bound=Message)
_FIELD = "request_id"


def new_request_id() -> str:
    """Return an id for one write."""
    return str(uuid.uuid4())


def repeatable(request: Request) -> Request:
    """Return `request`, or, when it is of a write that has no `request_id`, a copy with a new one.

    Keep what is returned to repeat the write yourself, for example after the process was started again. A copy, since
    the same message sent as another write must not be taken for a repeat.
    """
    if _FIELD not in request.DESCRIPTOR.fields_by_name or getattr(request, _FIELD):
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    setattr(copy, _FIELD, new_request_id())
    return copy
