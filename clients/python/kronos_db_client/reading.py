"""Reads what comes in parts: lists page by page, streams of changes beyond the end of the process that tells them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from kronos_db_client.errors import Refusal

Response = TypeVar("Response")

# What a stream is begun again after: its process ends, or its reader was away for too long.
_AGAIN = "UNAVAILABLE", "WATCH_TOO_SLOW"
# Seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


def pages(method: Callable[..., Response], request: Message, **call: Any) -> Iterator[Response]:
    """Call a listing method until it has no further page; give each answer. `call` goes with every call."""
    current: Any = type(request)()
    current.CopyFrom(request)
    while True:
        answer: Any = method(current, **call)
        yield answer
        if not answer.next_page_token:
            return
        current.page_token = answer.next_page_token


def follow(method: Callable[..., Iterable[Response]], request: Message, **call: Any) -> Iterator[Response]:
    """Watch, and watch again with the last resume token when the stream ends before its reader does.

    So nothing is missed and nothing told twice. Give `request` the token of an earlier run to go on there. Raises what
    does not pass by itself, for example the loss of a place that is too old.
    """
    current: Any = type(request)()
    current.CopyFrom(request)
    pause = _FIRST_PAUSE
    while True:
        stream: Any = method(current, **call)
        try:
            for message in stream:
                pause = _FIRST_PAUSE
                if message.resume_token:
                    current.resume_token = message.resume_token
                yield message
        except grpc.RpcError as error:
            refusal = Refusal.of(error)
            if refusal.code.name not in _AGAIN and refusal.reason not in _AGAIN:
                raise
            time.sleep(max(refusal.retry_after or 0.0, pause * random.uniform(0.5, 1.5)))
            pause = min(pause * 2, _LONGEST_PAUSE)
        else:
            return
        finally:
            stream.cancel()
