"""Generates what the contract in `protos/` gives, exports it for other languages, and checks it with buf.

`buf` and `protoc` find `buf/validate/validate.proto` in the descriptor that the protovalidate wheel carries, so
nothing is fetched and no third-party proto is kept in the tree.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import google.rpc
from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from proto_text import proto_text
from protovalidate._gen.buf.validate import validate_pb
from service_config import service_config

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATED = ROOT / "generated"
VALIDATE = "buf/validate/validate.proto"
# The well-known types that grpcio-tools ships.
WELL_KNOWN = Path(protoc.__file__).parent / "_proto"
# What the details of errors are made of.
RPC = Path(next(iter(google.rpc.__path__))).parent.parent
ERRORS = ("google/rpc/error_details.proto", "google/rpc/status.proto")
# Beside the stubs, where the wheel and `make protos` take it from.
SERVICE_CONFIG = "kronos/service_config.json"
BIN = Path(sys.executable).parent


def sources(protos: Path) -> list[str]:
    """Return the contract's files relative to `protos`, sorted."""
    return sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))


def third_party(target: Path) -> Path:
    """Write the descriptor set of `validate.proto` and its imports below `target` and return its path."""
    raw = target / "third_party.binpb"
    well_known = target / "well_known.binpb"
    names = [f"google/protobuf/{name}.proto" for name in ("descriptor", "duration", "field_mask", "timestamp")]
    compile_protos([f"-I{WELL_KNOWN}", f"--descriptor_set_out={well_known}", "--include_imports", *names])
    files = descriptor_pb2.FileDescriptorSet.FromString(well_known.read_bytes())
    # protovalidate does not export its descriptor: the lock pins the version that has it here.
    validate = validate_pb._DESC.proto.to_binary()  # noqa: SLF001
    files.file.append(descriptor_pb2.FileDescriptorProto.FromString(validate))
    raw.write_bytes(files.SerializeToString(deterministic=True))
    return raw


def compile_protos(arguments: list[str]) -> None:
    """Run protoc; exit with its message when it refuses."""
    if protoc.main(["protoc", *arguments]) != 0:
        raise SystemExit("protoc refused the contract")


def image(protos: Path, target: Path, name: str = "image.binpb") -> Path:
    """Write the contract in `protos` with its imports and comments as one descriptor set; return its path."""
    out = target / name
    inputs = [f"--descriptor_set_in={third_party(target)}", f"-I{protos}", f"-I{WELL_KNOWN}"]
    compile_protos(
        [*inputs, f"--descriptor_set_out={out}", "--include_imports", "--include_source_info", *sources(protos)]
    )
    return out


def export(target: Path) -> None:
    """Write the contract's `.proto` files and all that they import into `target`, with those of error details."""
    roots = [PROTOS, WELL_KNOWN, RPC]
    # Known extensions are parsed as what they are, else they would be missing in the text.
    importlib.import_module("buf.validate.validate_pb2")
    with tempfile.TemporaryDirectory() as scratch:
        inputs = [f"--descriptor_set_in={third_party(Path(scratch))}", *(f"-I{root}" for root in roots)]
        meant = compiled(Path(scratch) / "meant.binpb", [*inputs, *sources(PROTOS), *ERRORS])
        for file in meant:
            path = target / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            text = next((root / file.name for root in roots if (root / file.name).exists()), None)
            if text:
                shutil.copyfile(text, path)
            else:
                path.write_text(proto_text(file), encoding="utf-8")
        written = compiled(Path(scratch) / "written.binpb", [f"-I{target}", *sources(PROTOS), *ERRORS])
    if written != meant:
        raise SystemExit("the exported files do not say what the contract says")
    (target / SERVICE_CONFIG).write_text(service_config(meant), encoding="utf-8")
    print(f"{len(meant) + 1} files in {target}")


def compiled(out: Path, arguments: list[str]) -> list[descriptor_pb2.FileDescriptorProto]:
    """Compile with protoc; return the files with their imports, sorted by name, without comments."""
    compile_protos([*arguments, f"--descriptor_set_out={out}", "--include_imports"])
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    return sorted(files, key=lambda file: file.name)


def generate(target: Path) -> None:
    """Write stubs, typing files, the service config and `kronos.binpb`, the contract in one file, into `target`."""
    with tempfile.TemporaryDirectory() as scratch:
        third = third_party(Path(scratch))
        plugins = [f"--plugin=protoc-gen-{name}={BIN}/protoc-gen-{name}" for name in ("mypy", "mypy_grpc")]
        outputs = [f"--python_out={target}", f"--mypy_out=quiet:{target}"]
        services = [f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet,only_sync:{target}"]
        inputs = [f"-I{PROTOS}", f"-I{WELL_KNOWN}"]
        compile_protos([*plugins, f"--descriptor_set_in={third}", *outputs, VALIDATE])
        names = sources(PROTOS)
        compile_protos([*plugins, f"--descriptor_set_in={third}", *inputs, *outputs, *services, *names])
        shutil.copy(image(PROTOS, Path(scratch)), target / "kronos.binpb")
    contract = descriptor_pb2.FileDescriptorSet.FromString((target / "kronos.binpb").read_bytes())
    (target / SERVICE_CONFIG).write_text(service_config(contract.file), encoding="utf-8")
    for path in target.rglob("*_pb2_grpc.py*"):
        # A file of messages alone has an empty service module.
        if "Stub" not in path.read_text():
            path.unlink()
    for package in {path.parent for path in target.rglob("*_pb2.py")}:
        for folder in [package, *package.parents]:
            if folder == target:
                break
            (folder / "__init__.py").touch()
            (folder / "py.typed").touch() if folder.parent == target else None


def verify() -> None:
    """Exit with a list when `generated/` is not what the contract gives."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        differences = drift(filecmp.dircmp(scratch, GENERATED, ignore=["__pycache__"]))
    if differences:
        raise SystemExit("generated/ is not what protos/ gives; run `make generate`:\n  " + "\n  ".join(differences))


def drift(comparison: filecmp.dircmp[str], prefix: str = "") -> list[str]:
    """Return the paths that differ between two trees."""
    changed = comparison.left_only + comparison.right_only + comparison.funny_files
    _, mismatch, errors = filecmp.cmpfiles(comparison.left, comparison.right, comparison.common_files, shallow=False)
    found = [prefix + name for name in [*changed, *mismatch, *errors]]
    for name, inner in comparison.subdirs.items():
        found += drift(inner, f"{prefix}{name}/")
    return sorted(found)


def lint() -> None:
    """Run `buf lint` and `buf format` over the contract."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = [flag for folder in sorted(PROTOS.glob("kronos/*")) for flag in ("--path", f"kronos/{folder.name}")]
        run_buf("lint", str(image(PROTOS, Path(scratch))), "--config", str(PROTOS / "buf.yaml"), *paths)
    run_buf("format", str(PROTOS), "--diff", "--exit-code")


def breaking(base: str) -> None:
    """Compare the contract with that of the git revision `base`; skip, visibly, when it has none."""
    with tempfile.TemporaryDirectory() as scratch:
        before, now = Path(scratch) / "before", Path(scratch) / "now"
        before.mkdir()
        now.mkdir()
        archive = subprocess.run(["git", "archive", base, "protos"], cwd=ROOT, capture_output=True, check=False)
        if archive.returncode != 0:
            print(f"buf breaking: nothing to compare with, {base} has no protos/")
            return
        subprocess.run(["tar", "-x", "-C", str(before)], input=archive.stdout, check=True)
        against = image(before / "protos", before)
        paths = [flag for folder in sorted(PROTOS.glob("kronos/*")) for flag in ("--path", f"kronos/{folder.name}")]
        config = str(PROTOS / "buf.yaml")
        run_buf(
            "breaking",
            str(image(PROTOS, now)),
            "--against",
            str(against),
            "--config",
            config,
            "--against-config",
            config,
            *paths,
        )


def run_buf(*arguments: str) -> None:
    """Run buf; exit when it finds fault."""
    if subprocess.run([str(BIN / "buf"), *arguments], cwd=PROTOS, check=False).returncode != 0:
        raise SystemExit(f"buf {arguments[0]} found fault with the contract")


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["generate", "export", "verify", "lint", "breaking"])
    parser.add_argument("--base", default="main", help="git revision that `breaking` compares with")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "protos", help="directory that `export` fills")
    arguments = parser.parse_args()
    if arguments.action == "generate":
        shutil.rmtree(GENERATED, ignore_errors=True)
        GENERATED.mkdir()
        generate(GENERATED)
    elif arguments.action == "export":
        export(arguments.out)
    elif arguments.action == "breaking":
        breaking(arguments.base)
    else:
        {"verify": verify, "lint": lint}[arguments.action]()


if __name__ == "__main__":
    main()
