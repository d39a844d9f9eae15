"""grpcurl and buf curl, which operators use: by reflection, and from the descriptor set without it."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Sequence

from google.rpc.error_details_pb2 import ErrorInfo

from tests.e2e.conftest import ROOT, ran, run
from tests.parts.serving import Serving

SERVICE = "kronos.users.v1.UsersService"
DESCRIPTORS = str(ROOT / "generated" / "kronos.binpb")


def grpcurl_command(program: str, serving: Serving, *words: str, token: str | None = None) -> Sequence[str]:
    bearer = f"authorization: Bearer {token or serving.tokens['operator']}"
    flags, rest = [word for word in words if word.startswith("-")], [word for word in words if word[0] != "-"]
    protoset = [DESCRIPTORS] if "-protoset" in flags else []
    data = ["-d", rest.pop(0)] if rest and rest[0].startswith("{") else []
    return [program, "-plaintext", "-H", bearer, *flags, *protoset, *data, serving.server.grpc_address, *rest]


def buf_command(program: str, serving: Serving, method: str, body: str, *flags: str) -> Sequence[str]:
    bearer = f"authorization: Bearer {serving.tokens['operator']}"
    wire = ["--protocol", "grpc", "--http2-prior-knowledge", "--header", bearer]
    source = flags or ("--reflect-header", "*")
    return [program, "curl", *wire, *source, "--data", body, f"http://{serving.server.grpc_address}/{method}"]


def user_json() -> str:
    name = f"curl-{uuid.uuid4().hex}"
    return json.dumps({"user": {"username": name, "email": f"{name}@example.org", "attributes": {"team": ["a", 1]}}})


def test_grpcurl_lists_and_describes(serving: Serving, grpcurl: str) -> None:
    services = ran(grpcurl_command(grpcurl, serving, "list"), {}).stdout.split()
    assert {SERVICE, "grpc.health.v1.Health"} <= set(services)
    described = ran(grpcurl_command(grpcurl, serving, "describe", "kronos.users.v1.User"), {}).stdout
    assert ".google.protobuf.Struct attributes = 7;" in described


def test_grpcurl_by_reflection_and_from_the_descriptor_set(serving: Serving, grpcurl: str) -> None:
    for flags in ([], ["-protoset"]):
        body = user_json()
        said = ran(grpcurl_command(grpcurl, serving, *flags, body, f"{SERVICE}/CreateUser"), {}).stdout
        created = json.loads(said)["user"]
        assert created.items() >= json.loads(body)["user"].items()
        key = json.dumps({"email": created["email"].upper()})
        found = json.loads(ran(grpcurl_command(grpcurl, serving, *flags, key, f"{SERVICE}/GetUser"), {}).stdout)
        assert found == {"user": created}


def test_grpcurl_shows_the_details_of_errors(serving: Serving, grpcurl: str) -> None:
    command = grpcurl_command(grpcurl, serving, "-format-error", '{"user": {"email": "x"}}', f"{SERVICE}/CreateUser")
    refused = run(command, {})
    assert refused.returncode != 0
    said = json.loads(refused.stderr)
    details = {detail["@type"].rpartition(".")[2]: detail for detail in said["details"]}
    assert details["ErrorInfo"]["reason"] == "BAD_REQUEST"
    fields = [fault["field"] for fault in details["BadRequest"]["field_violations"]]
    assert "user.email" in fields


def test_a_wrong_token_gets_nothing_even_of_reflection(serving: Serving, grpcurl: str) -> None:
    refused = run(grpcurl_command(grpcurl, serving, "list", token="kdb_wrong"), {})
    assert refused.returncode != 0
    assert "Unauthenticated" in refused.stderr
    assert "UsersService" not in refused.stdout + refused.stderr


def test_buf_by_reflection_and_from_the_descriptor_set(serving: Serving, buf: str) -> None:
    for flags in ([], ["--schema", DESCRIPTORS]):
        body = user_json()
        created = json.loads(ran(buf_command(buf, serving, f"{SERVICE}/CreateUser", body, *flags), {}).stdout)["user"]
        assert created.items() >= json.loads(body)["user"].items()
        key = json.dumps({"id": created["id"]})
        found = json.loads(ran(buf_command(buf, serving, f"{SERVICE}/GetUser", key, *flags), {}).stdout)
        assert found == {"user": created}


def test_buf_shows_code_and_details(serving: Serving, buf: str) -> None:
    refused = run(buf_command(buf, serving, f"{SERVICE}/GetUser", json.dumps({"id": str(uuid.uuid4())})), {})
    said = json.loads(refused.stderr)
    assert (refused.returncode != 0, said["code"], said["message"]) == (True, "not_found", "There is no such user.")
    # buf shows details as they are on the wire.
    (info,) = [detail["value"] for detail in said["details"] if detail["type"] == "google.rpc.ErrorInfo"]
    assert ErrorInfo.FromString(base64.b64decode(f"{info}==")).reason == "USER_NOT_FOUND"
