"""How a process logs: one JSON object a line on standard output, or lines for people.

A line has `time` (ISO 8601, UTC), `level`, `msg`, and what the event and the context of the call add. Logs hold no
secrets: whoever logs passes no body of a request or answer, no credential, DSN or key. As a second net, secret settings
come out masked, protobuf messages as the name of their type, and tracebacks without the values of variables.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from json.encoder import encode_basestring_ascii as encode_text
from typing import Any, Literal, TypeAlias

import structlog
from structlog.typing import EventDict, Processor

from kronos_db.runtime import tracing
from kronos_db.runtime.ops.output import Output

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "console"]
# Takes a message, the names of fields, and fixed fields, and gives what logs it with values for the names.
LineMaker: TypeAlias = Callable[..., Callable[..., None]]

_output = Output()
_as_json = False


def configure_logs(level: Level, format: Format) -> None:  # noqa: A002 - the setting's own word
    """Send everything logged through structlog or the standard library, from `level` up, to standard output.

    To be called once, before the first line is logged: loggers keep the configuration of their first use.
    """
    severity = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _name_subject,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            *(_json_lines() if format == "json" else _console_lines()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(severity),
        logger_factory=lambda *_: _Lines(_output),
        cache_logger_on_first_use=True,
    )
    global _as_json  # noqa: PLW0603  # set once, before the first line
    _as_json = format == "json" and severity <= logging.INFO
    root = logging.getLogger()
    root.handlers[:] = [_ToStructlog()]
    root.setLevel(severity)
    logging.captureWarnings(capture=True)


def _name_subject(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Add the names of the call that is worked for."""
    for name, value in tracing.names().items():
        event.setdefault(name, value)
    return event


def _json_lines() -> list[Processor]:
    def render(_logger: Any, _method: str, event: EventDict) -> bytes:
        line = {"time": event.pop("time"), "level": event.pop("level"), "msg": event.pop("event", "")}
        return _encode({**line, **event}).encode()

    return [structlog.processors.format_exc_info, render]


def _console_lines() -> list[Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        timestamp_key="time",
        # The default shows the values of variables when rich is there.
        exception_formatter=structlog.dev.plain_traceback,
        colors=sys.stdout.isatty(),
    )

    def render(logger: Any, method: str, event: EventDict) -> bytes:
        for name, value in event.items():
            if name != "exc_info" and not isinstance(value, str | int | float | None):
                event[name] = _encode(value)
        return renderer(logger, method, event).encode(errors="backslashreplace")

    return [render]


def _shown(value: object) -> str:
    """Return what JSON has no form for as text; a protobuf message may hold anything and is only named."""
    return type(value).__name__ if hasattr(value, "DESCRIPTOR") else str(value)


# Escapes all that is not ASCII: a line is one line for every reader, and no lone surrogate can fail it.
_encode = json.JSONEncoder(default=_shown, separators=(",", ":"), skipkeys=True).encode


class _Lines:
    """The logger at the end of structlog's chain: hands the finished line on."""

    def __init__(self, output: Output) -> None:
        self._add = output.add

    def msg(self, line: bytes) -> None:
        self._add(line)

    def error(self, line: bytes) -> None:
        self._add(line, urgent=True)

    log = debug = info = msg
    warn = warning = fatal = failure = err = critical = exception = error


# What the encoder does of these types, without asking for the type again and again.
_ENCODERS: Mapping[type, Callable[[Any], str]] = {str: encode_text, float: float.__repr__, int: int.__repr__}


def info_line(message: str, names: Sequence[str], **fixed: str) -> Callable[..., None]:
    """Return a function that logs `message` at level info with the fixed fields and the values of `names`, in order.

    The same line as structlog makes, at a tenth of what that costs a call: for what is logged with every one.
    """
    if not _as_json:
        bound = structlog.get_logger().bind(**fixed)
        return lambda *values: bound.info(message, **dict(zip(names, values, strict=True)))
    head = _encode({"level": "info", "msg": message, **fixed})[1:-1]
    keys = [f"{encode_text(name)}:" for name in names]
    clock = _Clock()

    def make(moment: int, *values: object) -> bytes:
        pairs = zip(keys, values, strict=True)
        body = ",".join([key + _ENCODERS.get(type(value), _encode)(value) for key, value in pairs])
        return f'{{"time":"{clock.text(moment)}",{head},{body}}}'.encode()

    return partial(_output.add_later, make)


class _Clock:
    """Writes times as RFC 3339 does, with microseconds; what is the same all second is made once."""

    def __init__(self) -> None:
        self._second = (-1, "")

    def text(self, moment: int) -> str:
        """Return a moment, in nanoseconds of the Unix epoch, in UTC."""
        second, micros = divmod(moment // 1000, 1_000_000)
        known, text = self._second
        if known != second:
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            # One assignment: another thread sees the second with its text.
            self._second = (second, text)
        return f"{text}.{micros:06}Z"


class _ToStructlog(logging.Handler):
    """Hands what libraries log through the standard library to structlog."""

    def __init__(self) -> None:
        super().__init__()
        self._log = structlog.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        fields: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        # structlog knows the five levels alone.
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        self._log.log(level, message, **fields)
