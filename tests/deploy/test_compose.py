"""compose.yaml: valid by its schema and by Compose itself, hardened, and in step with the server's settings."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from kronos_db.config import Settings, environment_name
from tests.deploy.compose import FILE, configuration
from tests.deploy.dockerfile import ROOT

OURS = ("migrate", "kronos-db")


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """The services as YAML gives them: anchors are merged, the forms stay short. Everywhere the same."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]
    return found


def seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)(s|m)", text)
    assert match is not None
    return float(match[1]) * (60 if match[2] == "m" else 1)


def test_the_schema_of_compose_takes_it() -> None:
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [program, "--builtin-schema", "vendor.compose-spec", FILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_takes_it_and_means_what_yaml_does(services: dict[str, dict[str, Any]]) -> None:
    found = configuration()
    assert found["services"].keys() == services.keys()
    for name, service in found["services"].items():
        assert service.get("cap_drop") == ["ALL"], name
        for secret in service.get("secrets", []):
            assert secret["source"] in found["secrets"]
        for volume in service.get("volumes", []):
            assert volume["type"] == "bind" or volume["source"] in found["volumes"]
    assert found["services"]["kronos-db"]["build"]["dockerfile"] == "deploy/Dockerfile"


def test_every_service_is_hardened_and_bounded(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service
        assert not service["user"].startswith("0"), name
        assert service["deploy"]["resources"]["limits"].keys() == {"memory", "cpus"}, name
        assert service["healthcheck"].get("test") or name == "migrate", name
        assert re.search(r":v?\d+\.\d+", service["image"]), f"{name}: {service['image']} is not pinned"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_the_server_starts_after_the_step_that_migrates(services: dict[str, dict[str, Any]]) -> None:
    assert services["kronos-db"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert services["migrate"]["command"] == ["migrate"]
    assert services["migrate"]["restart"] == "no"


def test_the_settings_are_ones(services: dict[str, dict[str, Any]]) -> None:
    known = {environment_name(name) for name in Settings.model_fields} | {"KRONOS_DB_CONFIG_FILE"}
    for name in OURS:
        environment = services[name]["environment"]
        assert environment.keys() <= known
        # What has a secret in it stands in a file.
        assert not re.search(r"://[^/]*:[^/]*@", str(environment))
    files = {value for value in services["kronos-db"]["environment"].values() if value.startswith("/run/secrets/")}
    assert files == {f"/run/secrets/{secret}" for secret in services["kronos-db"]["secrets"]}


def test_the_time_to_stop_is_longer_than_the_drain(services: dict[str, dict[str, Any]]) -> None:
    server = services["kronos-db"]
    pause = float(server["environment"]["KRONOS_DB_DRAIN_PAUSE"])
    drain = Settings.model_fields["drain_timeout"].default
    assert seconds(server["stop_grace_period"]) > pause + drain + 5
    assert pause >= 5


def test_processes_are_as_many_as_the_cores(services: dict[str, dict[str, Any]]) -> None:
    server = services["kronos-db"]
    assert server["environment"]["KRONOS_DB_PROCESSES"] == server["deploy"]["resources"]["limits"]["cpus"]


def test_the_data_cannot_be_reached_from_outside(services: dict[str, dict[str, Any]]) -> None:
    networks = yaml.safe_load(FILE.read_text(encoding="utf-8"))["networks"]
    assert networks["data"] == {"internal": True}
    for name in ("postgres", "pgbouncer", "valkey"):
        assert services[name]["networks"] == ["data"]
        assert "ports" not in services[name]


def test_what_is_mounted_is_there(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            # Prometheus and Grafana have folders of their own.
            if source.startswith("./") and not source.startswith(("./prometheus", "./grafana")):
                assert (FILE.parent / source).exists(), source


def test_names_and_ports_in_the_files_agree(services: dict[str, dict[str, Any]]) -> None:
    ini = (ROOT / "deploy" / "pgbouncer.ini").read_text(encoding="utf-8")
    assert "host=postgres port=5432 dbname=kronos" in ini
    port = re.search(r"^listen_port = (\d+)$", ini, re.MULTILINE)
    assert port is not None
    assert services["kronos-db"]["environment"]["KRONOS_DB_POSTGRES_DSN"] == f"postgresql://pgbouncer:{port[1]}/kronos"
    script = (ROOT / "deploy" / "secrets.sh").read_text(encoding="utf-8")
    found = re.search(r"<<TOML\n(.*?)TOML", script, re.DOTALL)
    assert found is not None
    settings = tomllib.loads(re.sub(r"\$\(.*?\)", "word", found[1]))
    assert settings["postgres_direct_dsn"] == "postgresql://kronos_owner:word@postgres:5432/kronos"
    assert settings["redis_url"] == "redis://:word@valkey:6379/0"
    assert services["postgres"]["environment"]["POSTGRES_USER"] == "kronos_owner"
