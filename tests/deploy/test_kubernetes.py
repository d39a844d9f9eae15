"""The manifests, as Kustomize builds them: valid by the schemas, restricted, and in step with the server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from kronos_db.config import Settings, environment_name
from tests.conftest import lacking
from tests.deploy.dockerfile import ROOT, stages
from tests.deploy.pools import processes_with_room

FOLDER = ROOT / "deploy" / "kubernetes"
overlays = pytest.mark.parametrize("overlay", ["base", "example"])
# What a ServiceMonitor may have; the schemas that are checked below know no kinds of others.
MONITOR = {"jobLabel", "selector", "endpoints"}
ENDPOINT = {"port", "path", "interval", "scrapeTimeout"}


@cache
def built(overlay: str) -> str:
    """Return what Kustomize builds, by kubectl or by itself."""
    path = os.pathsep.join([str(ROOT / ".cache" / "bin"), os.environ.get("PATH", "")])
    kustomize = shutil.which("kustomize", path=path)
    kubectl = shutil.which("kubectl", path=path)
    if kustomize:
        command = [kustomize, "build"]
    elif kubectl:
        command = [kubectl, "kustomize"]
    else:
        lacking("There is neither kubectl nor kustomize on PATH or in .cache/bin, where .ci/install puts the latter.")
    done = subprocess.run([*command, str(FOLDER / overlay)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def manifests(overlay: str) -> dict[str, dict[str, Any]]:
    """Return the manifests by kind."""
    found = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(built(overlay))}
    assert found.keys() >= {
        "ConfigMap",
        "Deployment",
        "HorizontalPodAutoscaler",
        "Job",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
    }
    return found


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


def settings(overlay: str) -> dict[str, str]:
    found: dict[str, str] = manifests(overlay)["ConfigMap"]["data"]
    return found


@overlays
def test_the_schemas_of_kubernetes_take_them(overlay: str, tmp_path: Path) -> None:
    file = tmp_path / "built.yaml"
    file.write_text(built(overlay), encoding="utf-8")
    program = Path(sys.executable).with_name("kubernetes-validate")
    done = subprocess.run([program, "--strict", file], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert len(re.findall("^INFO .* passed", said, re.MULTILINE)) == len(list(yaml.safe_load_all(built(overlay)))) - 1
    assert re.findall("^WARN .*kind (\\w+)", said, re.MULTILINE) == ["ServiceMonitor"]


@overlays
def test_pods_are_of_the_restricted_profile(overlay: str) -> None:
    user = int(stages()[-1].all("USER")[0].partition(":")[0])
    for kind in ("Deployment", "Job"):
        spec = pod(manifests(overlay)[kind])
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == user
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


@overlays
def test_secrets_are_referred_to_alone(overlay: str) -> None:
    assert "kind: Secret\n" not in built(overlay)
    assert not re.search(r"://[^/\s]*:[^/\s]*@", built(overlay))
    for kind in ("Deployment", "Job"):
        spec = pod(manifests(overlay)[kind])
        [secret] = [volume["secret"] for volume in spec["volumes"] if volume["name"] == "secret"]
        # As FileMasterKeys wants it: root's, readable by our group.
        assert secret == {"secretName": "kronos-db", "defaultMode": 0o440}


@overlays
def test_the_settings_are_ones(overlay: str) -> None:
    known = {environment_name(name) for name in Settings.model_fields} | {"KRONOS_DB_CONFIG_FILE"}
    assert settings(overlay).keys() <= known
    name = manifests(overlay)["ConfigMap"]["metadata"]["name"]
    mounted = {"/etc/kronos-db", "/etc/kronos-db-tls"} if overlay == "example" else {"/etc/kronos-db"}
    for kind in ("Deployment", "Job"):
        [container] = pod(manifests(overlay)[kind])["containers"]
        assert container["envFrom"][0] == {"configMapRef": {"name": name}}
    files = {value for name, value in settings(overlay).items() if name.endswith("_FILE")}
    assert {str(Path(file).parent) for file in files} == mounted
    [server] = pod(manifests(overlay)["Deployment"])["containers"]
    assert mounted <= {mount["mountPath"] for mount in server["volumeMounts"]}


@overlays
def test_ports_agree(overlay: str) -> None:
    found = manifests(overlay)
    [server] = pod(found["Deployment"])["containers"]
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert settings(overlay)["KRONOS_DB_GRPC_LISTEN"] == f"0.0.0.0:{ports['grpc']}"
    assert settings(overlay)["KRONOS_DB_OPS_LISTEN"] == f"0.0.0.0:{ports['ops']}"
    assert {port["name"]: port["port"] for port in found["Service"]["spec"]["ports"]} == ports
    assert found["Service"]["spec"]["clusterIP"] == "None"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert server[probe]["httpGet"]["port"] == "ops"
    opened = {port["port"] for rule in found["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]}
    assert opened == ports.keys()


@overlays
def test_the_grace_is_longer_than_the_drain_and_the_drain_than_a_look(overlay: str) -> None:
    spec = pod(manifests(overlay)["Deployment"])
    pause, drain = (float(settings(overlay)[f"KRONOS_DB_DRAIN_{name}"]) for name in ("PAUSE", "TIMEOUT"))
    assert spec["terminationGracePeriodSeconds"] > pause + drain + 5
    probe = spec["containers"][0]["readinessProbe"]
    assert pause > probe["periodSeconds"] * probe["failureThreshold"]
    # /readyz of a supervisor answers within four seconds.
    assert probe["timeoutSeconds"] > 4


@overlays
def test_everything_selects_the_same_pods(overlay: str) -> None:
    found = manifests(overlay)
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in pod(found["Deployment"])["topologySpreadConstraints"]),
    ):
        assert selector.items() <= labels.items()
    # The Job's pods are not ones that serve.
    job = found["Job"]["spec"]["template"]["metadata"]["labels"]
    assert not found["Service"]["spec"]["selector"].items() <= job.items()


@overlays
def test_the_monitor_finds_the_service(overlay: str) -> None:
    found = manifests(overlay)
    monitor = found["ServiceMonitor"]["spec"]
    assert monitor.keys() == MONITOR
    labels = found["Service"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    [endpoint] = monitor["endpoints"]
    assert endpoint.keys() == ENDPOINT
    assert endpoint["port"] in {port["name"] for port in found["Service"]["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    assert labels[monitor["jobLabel"]] == "kronos-db"


@overlays
def test_pgbouncer_has_room_for_as_many_as_there_may_be(overlay: str) -> None:
    found = manifests(overlay)
    scaler = found["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    surge = found["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    processes = (scaler["maxReplicas"] + surge) * int(settings(overlay)["KRONOS_DB_PROCESSES"])
    assert processes <= processes_with_room()
    [server] = pod(found["Deployment"])["containers"]
    assert server["resources"]["requests"]["cpu"] == settings(overlay)["KRONOS_DB_PROCESSES"]
