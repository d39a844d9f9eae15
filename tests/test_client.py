"""`kronos-db call` against a real server with reflection: every kind of call, every kind of fault."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import ReflectionServicer

from kronos_db import call_command, cli, config
from tests.parts.echo import TOKEN, Echo, contract_in

DESCRIPTION = """\
rpc Talk(stream Item) returns (stream Item);

message Item {
  string text = 1;
  int64 number = 2;
  google.protobuf.Timestamp create_time = 3;
  google.protobuf.Struct extra = 4;
  Mood mood = 5;
  repeated Item parts = 6;
  map<string, int32> by_name = 7;
  string a = 8;  // one of kind
  bytes b = 9;  // one of kind
  optional string note = 10;
}

enum Mood {
  MOOD_UNSPECIFIED = 0;
  MOOD_GOOD = 1;
}
"""
REFUSAL = """\
INVALID_ARGUMENT (BAD_REQUEST): The request breaks a rule of the contract.
  item.text: must not be refuse
  limit = 3
  try again after 0.5 s
  request id r-1
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> DescriptorPool:
    return contract_in(tmp_path_factory.mktemp("contract"))


@pytest.fixture(scope="module")
def echo(pool: DescriptorPool) -> Iterator[Echo]:
    echo = Echo(pool)
    yield echo
    echo.server.stop(None).wait(10)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Call = Callable[..., Result]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(config.PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KRONOS_TOKEN", TOKEN)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], echo: Echo) -> Call:
    def call(*arguments: str, stdin: bytes = b"", address: str = echo.address) -> Result:
        monkeypatch.setattr(sys, "argv", ["kronos-db", "call", "--address", address, *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="ascii"))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return Result(int(stopped.value.code or 0), said.out, said.err)

    return call


def test_list_names_services_and_methods(call: Call) -> None:
    assert call("--list").out == (
        "kronos.echo.v1.EchoService\n"
        "  Once(Item) returns (Item)\n"
        "  Count(Item) returns (stream Item)\n"
        "  Sum(stream Item) returns (Item)\n"
        "  Talk(stream Item) returns (stream Item)\n"
        "kronos.echo.v1.OtherService\n"
        "  Once(Item) returns (Item)\n"
    )


def test_describe_shows_the_messages_as_the_contract_does(call: Call) -> None:
    assert call("EchoService/Talk", "--describe").out == DESCRIPTION


FULL: dict[str, Any] = {
    "text": "Grüße\u2028",
    "number": "9007199254740993",
    "createTime": "2026-11-23T00:00:00Z",
    "extra": {"a": [1, None, {"b": True}]},
    "mood": "MOOD_GOOD",
    "parts": [{"text": "inner"}],
    "byName": {"x": 1},
    "b": base64.b64encode(b"\x00\xff").decode(),
    "note": "",
}


@pytest.mark.parametrize(
    "service",
    ["kronos.echo.v1.EchoService", "/kronos.echo.v1.EchoService", "EchoService", "echo.EchoService", "v1.EchoService"],
)
def test_a_unary_call_prints_its_response(call: Call, service: str) -> None:
    result = call(f"{service}/Once", json.dumps(FULL))
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == FULL
    assert result.out.startswith('{\n  "text": "Grüße')


def test_names_of_the_contract_are_taken_too(call: Call) -> None:
    result = call("EchoService/Once", '{"create_time": "2026-11-23T01:00:00+01:00", "by_name": {"x": 1}}')
    assert json.loads(result.out) == {"createTime": "2026-11-23T00:00:00Z", "byName": {"x": 1}}


def test_a_request_may_be_left_out_or_come_from_a_file_or_standard_input(call: Call, tmp_path: Path) -> None:
    assert json.loads(call("EchoService/Once").out) == {}
    (tmp_path / "request.json").write_text('{\n  "text": "ü"\n}\n')
    assert json.loads(call("EchoService/Once", f"@{tmp_path}/request.json").out) == {"text": "ü"}
    assert json.loads(call("EchoService/Once", "-", stdin='{"text":\n"ü"}'.encode()).out) == {"text": "ü"}


def test_a_server_stream_prints_a_line_for_each_response(call: Call) -> None:
    result = call("EchoService/Count", '{"number": 3}')
    assert [json.loads(line) for line in result.out.splitlines()] == [{}, {"number": "1"}, {"number": "2"}]


def test_a_stream_that_fails_has_printed_what_came_before(call: Call) -> None:
    result = call("EchoService/Count", '{"number": 2, "text": "refuse"}')
    assert (result.code, len(result.out.splitlines())) == (1, 2)
    assert result.err == "DATA_LOSS: The rest is lost.\n"


@pytest.mark.parametrize(
    "body", ['[{"number": 1}, {"number": 2}]', '{"number": 1} {"number": 2}', '{"number": 1}\n\n{\n"number": 2}\n']
)
def test_a_client_stream_takes_an_array_or_one_after_another(call: Call, tmp_path: Path, body: str) -> None:
    assert json.loads(call("EchoService/Sum", body).out) == {"number": "3"}
    (tmp_path / "requests").write_text(body)
    assert json.loads(call("EchoService/Sum", f"@{tmp_path}/requests").out) == {"number": "3"}


def test_a_client_stream_takes_lines_and_may_be_empty(call: Call) -> None:
    assert json.loads(call("EchoService/Sum", "-", stdin=b'{"number": 1}\n\n{"number": 2}\n').out) == {"number": "3"}
    assert json.loads(call("EchoService/Sum", "[]").out) == {}


def test_a_conversation(call: Call) -> None:
    assert (
        call("EchoService/Talk", "-", stdin=b'{"text": "a"}\n{"text": "b"}\n').out == '{"text": "A"}\n{"text": "B"}\n'
    )


def test_a_wrong_line_of_a_stream_cancels_it(call: Call, echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo, "patience", 10.0)
    result = call("EchoService/Sum", "-", stdin=b'{"number": 1}\n{"numbre": 2}\n')
    assert (result.code, result.out) == (1, "")
    assert 'has no field named "numbre"' in result.err
    assert result.err.count("\n") == 1
    assert echo.cancelled.wait(10)


def test_the_details_of_an_error_are_shown(call: Call) -> None:
    result = call("EchoService/Once", '{"text": "refuse"}')
    assert (result.code, result.out, result.err) == (1, "", REFUSAL)


def test_without_a_token_the_error_says_how_to_give_one(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KRONOS_TOKEN")
    assert call("EchoService/Once").err == (
        "UNAUTHENTICATED: Who are you?\n  --token or KRONOS_TOKEN gives a bearer token\n"
    )
    assert call("EchoService/Once", "--token", "wrong").err == "UNAUTHENTICATED: Who are you?\n"
    assert call("EchoService/Once", "--token", TOKEN).code == 0


def test_metadata_and_deadline_reach_the_server(call: Call, echo: Echo) -> None:
    result = call("EchoService/Once", "-H", "X-Trace: a:b", "--header", "x-raw-bin:AP8=", "--deadline", "7")
    assert result.code == 0
    assert (echo.metadata["x-trace"], echo.metadata["x-raw-bin"]) == ("a:b", b"\x00\xff")
    assert echo.deadline is not None
    assert 0 < echo.deadline < 8


def test_a_deadline_ends_the_call(call: Call) -> None:
    result = call("EchoService/Once", '{"text": "hang"}', "--deadline", "0.2")
    assert result.code == 1
    assert result.err.startswith("DEADLINE_EXCEEDED: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["EchoService"], "EchoService is not of the form SERVICE/METHOD."),
        (["EchoService/Twice"], "EchoService has no method Twice; `kronos-db call --list` shows all."),
        (["EchoService/Onze"], "EchoService has no method Onze; did you mean Once?"),
        (["EkoService/Once"], "The server has no service EkoService; did you mean EchoService?"),
        (["users.Echo/Once"], "The server has no service users.Echo; "),
        (["other.EchoService/Once"], "The server has no service other.EchoService; did you mean EchoService?"),
        (["EchoService/Once", "{"], "The request is not JSON: Expecting property name"),
        (["EchoService/Once", "[]"], "The request is not a kronos.echo.v1.Item: it is no JSON object."),
        (["EchoService/Once", "3"], "The request is not a kronos.echo.v1.Item: "),
        (["EchoService/Once", '{"txt": ""}'], 'The request is not a kronos.echo.v1.Item: Message type "kronos.echo.v1'),
        (["EchoService/Once", '{"number": "x"}'], "The request is not a kronos.echo.v1.Item: "),
        (["EchoService/Once", '{"text": "\ud800"}'], "The request is not a kronos.echo.v1.Item: "),
        (["EchoService/Once", "@/nowhere"], "/nowhere cannot be read: No such file or directory."),
        (["EchoService/Sum", "[{}, 3]"], "The request is not a kronos.echo.v1.Item: "),
        (["EchoService/Sum", "{} {"], "Request 2 is not JSON: "),
        (["EchoService/Once", "-H", "nonsense"], "nonsense is not metadata of the form NAME: VALUE in ASCII."),
        (["EchoService/Once", "-H", "x: ü"], "x is not metadata of the form NAME: VALUE in ASCII."),
        (["EchoService/Once", "-H", "x-bin: !"], "The value of x-bin is not base64."),
        (["EchoService/Once", "--token", "a b"], "The token has characters that no token has."),
        (["EchoService/Once", "--cert", "c.pem"], "A client certificate and its key go together."),
        (["EchoService/Once", "--tls-ca", "/nowhere"], "/nowhere cannot be read: No such file or directory."),
        (["EchoService/Once", "--address", "localhost"], "localhost is not the HOST:PORT of a server."),
        (["EchoService/Once", "--address", "localhost:0"], "localhost:0 is not the HOST:PORT of a server."),
        (["EchoService/Sum", "--repeat-from", "-"], "Sum streams; only a unary method can be repeated."),
        (["EchoService/Once", "--repeat-from", "/nowhere"], "/nowhere cannot be read: No such file or directory."),
    ],
)
def test_what_cannot_be_called_is_one_sentence(call: Call, arguments: list[str], sentence: str) -> None:
    result = call(*arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(sentence)
    assert result.err.endswith((".\n", "?\n"))
    assert result.err.count("\n") == 1


def test_a_short_name_must_mean_one_service(call: Call, pool: DescriptorPool) -> None:
    echo = Echo(pool)
    both = ["kronos.echo.v1.EchoService", "kronos.echo.v2.EchoService"]
    server = grpc.server(ThreadPoolExecutor(2))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionServicer(both, pool), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    result = call("EchoService/Once", address=address)
    assert result.err == "EchoService may be kronos.echo.v1.EchoService or kronos.echo.v2.EchoService.\n"
    result = call("kronos.echo.v2.EchoService/Once", address=address)
    assert result.err == "The server lists kronos.echo.v2.EchoService but does not describe it.\n"
    server.stop(None).wait(10)
    echo.server.stop(None).wait(10)


def test_nobody_there_is_one_sentence(call: Call) -> None:
    assert call("EchoService/Once", address="127.0.0.1:1") == Result(1, "", "No server answers at 127.0.0.1:1.\n")


def test_a_server_without_reflection_says_so(call: Call) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    assert call("--list", address=address).err == "The server does not offer reflection.\n"
    server.stop(None).wait(10)


def test_the_standard_health_service_watched_until_the_deadline(call: Call) -> None:
    server = grpc.server(ThreadPoolExecutor(4))
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionServicer([HEALTH]), server)
    address = f"[::1]:{server.add_insecure_port('[::1]:0')}"
    server.start()
    assert json.loads(call("Health/Check", address=address).out) == {"status": "SERVING"}
    watched = call("Health/Watch", "--deadline", "0.3", address=address)
    assert (watched.code, watched.out) == (1, '{"status": "SERVING"}\n')
    assert watched.err.startswith("DEADLINE_EXCEEDED: ")
    server.stop(None).wait(10)


def test_repeating_calls_once_for_each_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text('{"text": "a"}\n\n{"text": "refuse"}\nnonsense\n' + '{"text": "a"}\n' * 50)
    result = call("EchoService/Once", "--repeat-from", f"{tmp_path}/lines", "--in-flight", "4")
    assert result.code == 1
    assert result.out.startswith("51 OK, 2 failed in ")
    assert f"line 3: {REFUSAL}" in result.err
    assert "line 4: The request is not JSON: " in result.err


def test_repeating_keeps_as_many_calls_in_flight_as_wanted(call: Call, echo: Echo) -> None:
    lines = b'{"text": "together"}\n' * 40
    result = call("EchoService/Once", "--repeat-from", "-", "--in-flight", "4", stdin=lines)
    assert (result.code, result.out[:8], echo.most_in_work) == (0, "40 OK, 0", 4)


def test_ctrl_c_ends_a_repetition_and_tells_how_far_it_came(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(_source: str) -> Iterator[str]:
        yield from ['{"text": "a"}'] * 5
        raise KeyboardInterrupt

    monkeypatch.setattr(call_command, "_lines", lines)
    result = call("EchoService/Once", "--repeat-from", "-", "--in-flight", "1")
    assert (result.code, result.err) == (130, "")
    assert re.fullmatch(r"4 OK, 0 failed in .* s \(\d+ calls/s\), then interrupted\n", result.out)


def test_repeating_shows_a_bar_and_reads_standard_input(call: Call) -> None:
    result = call("EchoService/Once", "--repeat-from", "-", "--progress", stdin=b'{"text": "a"}\n' * 20)
    assert (result.code, result.out[:20]) == (0, "20 OK, 0 failed in 0")
    assert "Once" in result.err
    assert "20/" in result.err


def test_of_many_failures_some_are_shown(call: Call) -> None:
    result = call("EchoService/Once", "--repeat-from", "-", stdin=b"\xff\n" * 30)
    assert (result.code, result.out[:17]) == (1, "0 OK, 30 failed i")
    assert result.err.count("The request is not JSON") == 10
    assert result.err.endswith("and 20 more\n")


def certificate_and_key(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(*pem))
    return folder / "cert.pem", folder / "key.pem"


def test_calls_over_mutual_tls(call: Call, tmp_path: Path) -> None:
    cert, key = certificate_and_key(tmp_path)
    server = grpc.server(ThreadPoolExecutor(4))
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionServicer([HEALTH]), server)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())], cert.read_bytes(), True)
    address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    server.start()
    mutual = ["--tls-ca", str(cert), "--cert", str(cert), "--key", str(key)]
    assert json.loads(call("Health/Check", *mutual, address=address).out) == {"status": "SERVING"}
    for less in ([], mutual[:2]):
        refused = call("Health/Check", *less, address=address)
        assert refused.code == 1
        assert refused.err.startswith(("UNAVAILABLE: ", "No server answers at "))
    server.stop(None).wait(10)
