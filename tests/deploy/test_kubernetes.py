"""The manifests: valid for Kubernetes, of one mind with each other, and with what the server does."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from router import __version__
from router.cli.replica import check_reach
from router.cli.settings import ENV_PREFIX, NO_SETTINGS
from router.config import Settings
from router.errors import ConfigError

KUBERNETES = Path(__file__).parents[2] / "deploy/kubernetes"
VERSIONS = ("1.31", "1.34")
FOLDERS = sorted(path.parent for path in KUBERNETES.rglob("kustomization.yaml"))
LEFT = 2.0  # seconds between the server's own end and Kubernetes' SIGKILL


def documents(folder: Path) -> dict[str, Any]:
    """By file; kustomize's own left out."""
    return {
        p.name: yaml.safe_load(p.read_text()) for p in folder.glob("*.yaml") if p.name != "kustomization.yaml"
    }


BASE = documents(KUBERNETES / "base")
DEPLOYMENT = BASE["deployment.yaml"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENVIRONMENT = {one["name"]: one["value"] for one in CONTAINER["env"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", BASE)
def test_each_is_valid_and_has_no_unknown_field(name: str, version: str) -> None:
    kubernetes_validate.validate(BASE[name], version, strict=True)


def test_the_check_sees_what_is_wrong() -> None:
    spec = {**DEPLOYMENT["spec"], "replica": 2}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**DEPLOYMENT, "spec": spec}, VERSIONS[0], strict=True)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_kustomize_is_given_files_that_are_there_and_all_of_them(folder: Path) -> None:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    named = [*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", ()))]
    assert [name for name in named if not (folder / name).exists()] == []
    assert {name for name in named if name.endswith(".yaml")} == set(documents(folder))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return Settings()


def test_every_variable_is_a_setting() -> None:
    of_plugins = ("experiments__enabled",)
    known = {ENV_PREFIX + name.upper() for name in (*Settings.model_fields, *NO_SETTINGS, *of_plugins)}
    assert set(ENVIRONMENT) <= known


def test_the_grace_period_is_longer_than_the_servers_own_end(settings: Settings) -> None:
    assert POD["terminationGracePeriodSeconds"] >= settings.shutdown_seconds + LEFT


def test_clients_have_gone_elsewhere_before_the_first_refusal(settings: Settings) -> None:
    probe = CONTAINER["readinessProbe"]
    assert settings.lame_duck_seconds > probe["periodSeconds"] * probe["failureThreshold"]


def test_a_hang_is_mended_within_a_minute(settings: Settings) -> None:
    probe = CONTAINER["livenessProbe"]
    assert settings.stall_seconds + probe["periodSeconds"] * probe["failureThreshold"] <= 60
    assert probe["timeoutSeconds"] < probe["periodSeconds"]


@pytest.mark.parametrize(
    ("probe", "path"),
    [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")],
)
def test_probes_ask_where_the_server_answers(probe: str, path: str, settings: Settings) -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert CONTAINER[probe]["httpGet"] == {"path": path, "port": "http"}
    assert settings.metrics_listen == f"0.0.0.0:{ports['http']}"
    assert settings.listen == f"0.0.0.0:{ports['grpc']}"


def test_the_pod_has_no_more_rights_than_it_needs() -> None:
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["securityContext"]["runAsNonRoot"]
    assert POD["automountServiceAccountToken"] is False
    assert POD["enableServiceLinks"] is False
    mounted = {mount["mountPath"] for mount in CONTAINER["volumeMounts"] if not mount.get("readOnly")}
    assert mounted == {"/var/lib/lora-router", "/tmp"}


def test_all_speak_of_the_same_pods_and_ports() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    selected = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        BASE["service.yaml"]["spec"]["selector"],
        BASE["networkpolicy.yaml"]["spec"]["podSelector"]["matchLabels"],
        BASE["poddisruptionbudget.yaml"]["spec"]["selector"]["matchLabels"],
    ]
    assert selected == [labels] * 4
    allowed = [
        port["port"] for rule in BASE["networkpolicy.yaml"]["spec"]["ingress"] for port in rule["ports"]
    ]
    assert allowed == [port["containerPort"] for port in CONTAINER["ports"]]
    assert all(rule["from"] for rule in BASE["networkpolicy.yaml"]["spec"]["ingress"]), (
        "an empty one allows all"
    )
    assert BASE["poddisruptionbudget.yaml"]["spec"]["minAvailable"] < DEPLOYMENT["spec"]["replicas"]


def test_the_image_is_this_version() -> None:
    assert CONTAINER["image"] == f"lora-router:{__version__}"


OVERLAY = documents(KUBERNETES / "overlays/cert-manager")
PATCH = OVERLAY["deployment.yaml"]["spec"]["template"]["spec"]


def test_the_overlay_is_about_the_same_deployment_and_keeps_its_own_variables() -> None:
    assert OVERLAY["deployment.yaml"]["metadata"]["name"] == DEPLOYMENT["metadata"]["name"]
    assert PATCH["containers"][0]["name"] == CONTAINER["name"]
    known = {ENV_PREFIX + name.upper() for name in (*Settings.model_fields, *NO_SETTINGS)}
    assert {one["name"] for one in PATCH["containers"][0]["env"]} <= known


def test_the_overlays_authority_is_in_the_secret_that_its_certificate_makes() -> None:
    (container,) = PATCH["containers"]
    volumes = {one["name"]: one["secret"]["secretName"] for one in POD["volumes"] if "secret" in one}
    mounted = {one["mountPath"]: volumes.get(one["name"]) for one in CONTAINER["volumeMounts"]}
    (authority,) = [one["value"] for one in container["env"]]
    assert mounted[authority.rpartition("/")[0]] == OVERLAY["certificate.yaml"]["spec"]["secretName"]
    assert OVERLAY["certificate.yaml"]["spec"]["dnsNames"][0] == BASE["service.yaml"]["metadata"]["name"]


REPLICAS = documents(KUBERNETES / "overlays/replicas")
REPLICA = REPLICAS["deployment.yaml"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", sorted(set(REPLICAS) - {"edges.yaml", "edges-networkpolicy.yaml"}))
def test_what_replicas_have_is_valid(name: str) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(REPLICAS[name], version, strict=True)


def test_replicas_and_edges_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    (container,) = REPLICA["containers"]
    own = {one["name"]: one["value"] for one in container["env"]}
    (edge,) = REPLICAS["edges.yaml"]["spec"]["template"]["spec"]["containers"]
    edges = {one["name"]: one["value"] for one in edge["env"]}
    known = {ENV_PREFIX + name.upper() for name in (*Settings.model_fields, *NO_SETTINGS)}
    assert (set(own) | set(edges)) - known == set()
    service = REPLICAS["service.yaml"]
    port = service["spec"]["ports"][0]["port"]
    assert edges["LORA_ROUTER_REPLICA_ADDRESSES"] == f"dns:///{service['metadata']['name']}:{port}"
    assert own["LORA_ROUTER_LISTEN"].endswith(f":{port}")
    assert service["spec"]["clusterIP"] == "None"
    for absent in ("", "LORA_ROUTER_TLS_CLIENT_CA", "LORA_ROUTER_TLS_CERT"):
        with monkeypatch.context() as patched:
            for name, value in own.items():
                if name != absent:
                    patched.setenv(name, value)
            with pytest.raises((ConfigError, ValueError)) if absent else nullcontext():
                check_reach(Settings(), False, True)
    drain, rest = float(own["LORA_ROUTER_DRAIN_SECONDS"]), 10.0  # of the engine's end
    assert REPLICA["terminationGracePeriodSeconds"] >= drain + rest + LEFT
    assert container["image"] == CONTAINER["image"]
