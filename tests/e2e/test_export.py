"""`make protos`: every compiler is content with what it gives, and it says what the contract says."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from tests.e2e.conftest import LIMIT, ROOT, ran

SOURCE = "kronos/users/v1/users.proto"


def test_every_import_is_there(protos: Path) -> None:
    for file in protos.rglob("*.proto"):
        for line in file.read_text().splitlines():
            if line.startswith("import "):
                assert (protos / line.split('"')[1]).is_file(), f"{file}: {line}"


def test_the_contract_itself_is_the_source_with_its_comments(protos: Path) -> None:
    for file in (ROOT / "protos").rglob("*.proto"):
        assert (protos / file.relative_to(ROOT / "protos")).read_bytes() == file.read_bytes()


def test_protoc_compiles_it_to_what_the_server_speaks(protos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set.binpb"
    # Isolated, from a directory of its own: the well-known types of grpcio-tools must not be needed.
    program = "import sys; from grpc_tools.protoc import main; sys.exit(main(sys.argv))"
    flags = [f"-I{protos}", f"--descriptor_set_out={out}", "--include_imports", f"--python_out={tmp_path}", SOURCE]
    subprocess.run([sys.executable, "-c", program, *flags], cwd=tmp_path, check=True, timeout=LIMIT)
    assert (tmp_path / "kronos" / "users" / "v1" / "users_pb2.py").is_file()
    ours, theirs = (descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()) for path in (kronos(), out))
    for file in ours.file:
        file.ClearField("source_code_info")
    served = {file.name: file for file in ours.file}
    assert {file.name: served[file.name] for file in theirs.file} == {file.name: file for file in theirs.file}
    assert "buf/validate/validate.proto" in {file.name for file in theirs.file}


def kronos() -> Path:
    return ROOT / "generated" / "kronos.binpb"


def test_buf_builds_it_and_generates_from_it(protos: Path, buf: str, tmp_path: Path) -> None:
    ran([buf, "build", str(protos), "--output", str(tmp_path / "image.binpb")], {})
    ran([buf, "build", str(kronos()), "--output", str(tmp_path / "from-set.binpb")], {})


@pytest.mark.parametrize(
    "file",
    [
        descriptor_pb2.FileDescriptorProto(service=[descriptor_pb2.ServiceDescriptorProto()]),
        descriptor_pb2.FileDescriptorProto(
            message_type=[descriptor_pb2.DescriptorProto(nested_type=[descriptor_pb2.DescriptorProto()])]
        ),
    ],
)
def test_what_cannot_be_written_as_text_is_refused(
    file: descriptor_pb2.FileDescriptorProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    with pytest.raises(ValueError, match="has "):
        importlib.import_module("proto_text").proto_text(file)
