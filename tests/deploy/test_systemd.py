"""The units: systemd takes them, what they name is there, and their times are in step with the drain."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kronos_db.config import Settings, environment_name
from tests.deploy.dockerfile import ROOT

FOLDER = ROOT / "deploy" / "systemd"
UNITS = ("kronos-db.service", "kronos-db-migrate.service")
units = pytest.mark.parametrize("name", UNITS)


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    """Read a unit: the values of each name in each section."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(section, {}).setdefault(key, []).append(value)
    return found


def service(name: str) -> dict[str, list[str]]:
    return unit(name)["Service"]


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units as they would be installed, but for the program, which is not on this machine."""
    for name in UNITS:
        text = (FOLDER / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("/opt/kronos-db/bin/kronos-db", "/bin/true"), encoding="utf-8")
    return [tmp_path / name for name in UNITS]


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        # They are parsed below all the same; a container has no systemd.
        pytest.skip("There is no systemd-analyze.")
    return subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=60)


def test_systemd_takes_them(installed: list[Path]) -> None:
    done = analyze("verify", *installed)
    said = [line for line in done.stderr.splitlines() if "kronos-db" in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_little_is_left_open(installed: list[Path]) -> None:
    for path in installed:
        done = analyze("security", "--offline=true", "--threshold=25", path)
        assert done.returncode == 0, done.stdout[-400:]


@units
def test_it_is_hardened(name: str) -> None:
    found = service(name)
    for key in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "ProtectKernelTunables"):
        assert found[key] == ["yes"], key
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["DynamicUser"] == ["yes"]


@units
def test_settings_and_credentials_agree(name: str) -> None:
    known = {environment_name(field) for field in Settings.model_fields} | {"KRONOS_DB_CONFIG_FILE"}
    found = service(name)
    credentials = dict(entry.split(":") for entry in found["LoadCredential"])
    assert all(path == f"/etc/kronos-db/{credential}" for credential, path in credentials.items())
    environment = dict(entry.split("=", 1) for entry in found["Environment"])
    assert environment.keys() <= known
    used = {value.removeprefix("%d/") for value in environment.values() if value.startswith("%d/")}
    assert used == credentials.keys()
    # Credentials are copied at the start: SIGHUP would read the old access file.
    assert "access.toml" not in credentials


def test_the_example_of_an_environment_is_one() -> None:
    text = (FOLDER / "kronos-db.env.example").read_text(encoding="utf-8")
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[method-assign, assignment] # names keep their capitals
    parser.read_string("[all]\n" + text)
    known = {environment_name(field) for field in Settings.model_fields}
    assert dict(parser["all"]).keys() <= known
    Settings.model_validate({name.removeprefix("KRONOS_DB_").lower(): value for name, value in parser["all"].items()})


def test_the_time_to_stop_is_longer_than_the_drain() -> None:
    text = (FOLDER / "kronos-db.env.example").read_text(encoding="utf-8")
    pause = re.search(r"^KRONOS_DB_DRAIN_PAUSE=(\d+)$", text, re.MULTILINE)
    assert pause is not None
    drain = Settings.model_fields["drain_timeout"].default
    found = service("kronos-db.service")
    assert float(found["TimeoutStopSec"][0]) > float(pause[1]) + drain + 5
    assert found["KillSignal"] == ["SIGTERM"]
    assert found["KillMode"] == ["mixed"]
    assert found["RestartPreventExitStatus"] == ["2"]


def test_the_server_comes_after_its_migrations() -> None:
    found = unit("kronos-db.service")["Unit"]
    assert "kronos-db-migrate.service" in found["After"][0]
    assert "kronos-db-migrate.service" in found["Wants"][0]
    assert service("kronos-db-migrate.service")["Type"] == ["oneshot"]
