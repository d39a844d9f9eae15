"""Logs: one JSON object a line from both logging worlds, without what must not be in them."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

SETUP = """
import logging, sys, warnings
from google.protobuf.struct_pb2 import Struct
from pydantic import SecretStr
import structlog
from kronos_db.runtime.ops.logs import configure_logs
configure_logs({level!r}, {format!r})
log = structlog.get_logger()
"""


def run(program: str, *, level: str = "info", format: str = "json") -> str:  # noqa: A002 - as the function under test
    text = SETUP.format(level=level, format=format) + program
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=60, check=True)
    assert done.stderr == b""
    return done.stdout.decode()


def lines(program: str, **options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(program, **options).splitlines()]


def test_a_line_has_time_level_message_and_fields() -> None:
    (line,) = lines("structlog.contextvars.bind_contextvars(request_id='r1')\nlog.info('call', code='OK', seconds=0.5)")
    assert list(line)[:3] == ["time", "level", "msg"]
    assert datetime.fromisoformat(line.pop("time")).utcoffset() == timedelta(0)
    assert line == {"level": "info", "msg": "call", "request_id": "r1", "code": "OK", "seconds": 0.5}


def test_what_is_below_the_level_is_left_out() -> None:
    program = "log.info('a'); log.warning('b'); logging.info('c'); logging.getLogger('x').error('d')"
    assert [line["msg"] for line in lines(program, level="warning")] == ["b", "d"]


def test_the_standard_library_comes_out_alike() -> None:
    program = (
        "logging.getLogger('lib').log(25, 'a %s', 1)\nlogging.getLogger('lib').error('%d', 'x')\nwarnings.warn('w')"
    )
    first, second, third = lines(program)
    assert (first["level"], first["msg"], first["logger"]) == ("info", "a 1", "lib")
    assert (second["level"], second["msg"]) == ("error", "%d")
    assert (third["level"], third["logger"]) == ("warning", "py.warnings")


def test_a_line_is_one_line_whatever_it_holds() -> None:
    (line,) = lines(r"log.info('a\nb\u2028c\ud800', **{'k\n': 'v\r\n', 'x': [object(), 1, b'\xff']})")
    assert line["msg"] == "a\nb\u2028c\ud800"
    assert line["k\n"] == "v\r\n"


SECRETS = """
message = Struct(); message['password'] = 'sesame'
def fail():
    hidden = 'ses' + 'ame'
    raise ValueError('broken')
log.info('a', secret=SecretStr('sesame'), message=message, nested=[{'m': message}])
try:
    fail()
except ValueError:
    log.exception('b')
    logging.exception('c')
"""


def test_secrets_stay_out() -> None:
    first, second, third = lines(SECRETS)
    assert (first["secret"], first["message"], first["nested"]) == ("**********", "Struct", [{"m": "Struct"}])
    for line in (second, third):
        assert line["exception"].startswith("Traceback")
        assert line["exception"].endswith("ValueError: broken")
        assert "sesame" not in json.dumps(line)


def test_every_line_of_a_call_names_it() -> None:
    program = """
from types import SimpleNamespace
from kronos_db.runtime import tracing
tracing.current.set(SimpleNamespace(request_id="r1", trace=tracing.Trace("t1", "s1")))
log.warning("a"); logging.getLogger("lib").warning("b"); log.warning("c", request_id="r2")
tracing.current.set(None)
log.warning("d")
"""
    first, second, third, fourth = lines(program)
    for line in (first, second, third):
        assert (line["trace_id"], line["span_id"]) == ("t1", "s1")
    assert [first["request_id"], second["request_id"], third["request_id"]] == ["r1", "r1", "r2"]
    assert not {"request_id", "trace_id", "span_id"} & set(fourth)


CALLS = """
from kronos_db.runtime.ops.logs import info_line
line = info_line('call', ('code', 'ms', 'caller'), method='/a/B')
log.info('before', n=1)
line('OK', 1.5, 'caf\\xe9 "x"\\n')
log.error('behind')
log.info('call', method='/a/B', code='OK', ms=1.5, caller='caf\\xe9 "x"\\n')
"""


def test_a_line_that_is_made_later_is_the_same_and_in_its_place() -> None:
    before, text, after = datetime.now(UTC), run(CALLS), datetime.now(UTC)
    written = [line.partition(",")[2] for line in text.splitlines()]
    assert written[1] == written[3]
    told = [json.loads(line) for line in text.splitlines()]
    assert [line["msg"] for line in told] == ["before", "call", "behind", "call"]
    times = [datetime.fromisoformat(line["time"]) for line in told]
    assert [before, *times, after] == sorted([before, *times, after])


def test_for_people_it_is_the_same_too() -> None:
    written = [line.partition("[")[2] for line in run(CALLS, format="console").splitlines()]
    assert written[1] == written[3]
    assert "code=OK" in written[1]


def test_lines_for_people() -> None:
    text = run(SECRETS + "log.info('hello', n=1, who='ann')", format="console")
    assert "sesame" not in text
    assert text.count("ValueError: broken") == 2
    assert "[info" in text
    assert "n=1 who=ann" in text


def test_nobody_reading_does_not_stop_the_work() -> None:
    program = SETUP.format(level="info", format="json") + (
        "import os\nsys.stdin.read(1)\nfor _ in range(3): log.info('x')\nos.write(2, b'done'); os._exit(0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.close()
        child.stdout = None
        assert child.communicate(b"g", timeout=60)[1] == b"done"
