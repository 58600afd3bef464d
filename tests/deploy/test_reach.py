"""No server of a manifest listens beyond its pod without TLS and clients, even if a part is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from router.cli.serve import check_reach
from router.client.channel import is_loopback
from router.config import Settings
from router.errors import ConfigError

DEPLOY = Path(__file__).parents[2] / "deploy"
PROTECTION = ("LORA_ROUTER_TLS_CERT", "LORA_ROUTER_TLS_KEY", "LORA_ROUTER_CLIENTS")
INSECURE = "LORA_ROUTER_INSECURE_LISTEN"


def documents(folder: Path) -> list[dict[str, Any]]:
    """All manifests of a folder, without kustomize's own."""
    paths = [path for path in sorted(folder.glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [one for path in paths for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def patched(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """A strategic merge of the parts that patches here have: mappings, and lists by `name` or `mountPath`."""
    made = dict(base)
    for key, value in patch.items():
        if isinstance(value, dict):
            made[key] = patched(made.get(key, {}), value)
        elif isinstance(value, list):
            by = "mountPath" if key == "volumeMounts" else "name"
            merged = {one[by]: one for one in made.get(key, [])}
            for one in value:
                merged[one[by]] = patched(merged.get(one[by], {}), one)
            made[key] = list(merged.values())
        else:
            made[key] = value
    return made


def serves(document: dict[str, Any]) -> bool:
    """Whether its pods are servers, not replicas of some."""
    (one,) = document["spec"]["template"]["spec"]["containers"]
    return one.get("args") != ["replica"]


def deployment(folder: Path) -> dict[str, Any]:
    """The one Deployment of servers in a folder, an overlay's with its base's."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    found, *_ = [one for one in documents(folder) if one["kind"] == "Deployment" and serves(one)]
    for resource in kustomization["resources"]:
        if (folder / resource).is_dir():
            return patched(deployment(folder / resource), found)
    return found


FOLDERS = sorted(path.parent for path in DEPLOY.rglob("kustomization.yaml"))
PODS = {str(folder.relative_to(DEPLOY)): deployment(folder)["spec"]["template"] for folder in FOLDERS}
every = pytest.mark.parametrize("name", PODS)


def container(name: str) -> dict[str, Any]:
    (one,) = PODS[name]["spec"]["containers"]
    return one


def environment(name: str) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container(name)["env"] if "value" in one}


def reach(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As `serve` checks it, of a server with these variables."""
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    check_reach(settings, INSECURE in variables, variables.get("LORA_ROUTER_INSECURE_METRICS") == "1")
    return settings


def test_all_manifests_are_looked_at() -> None:
    assert set(PODS) >= {"kubernetes/base", "kubernetes/overlays/cert-manager"}
    serving = [path for path in DEPLOY.rglob("*.yaml") if "LORA_ROUTER_LISTEN" in path.read_text()]
    assert {path.parent for path in serving} <= set(FOLDERS)


@every
def test_only_the_port_of_probes_and_metrics_is_open_without_tls_and_clients(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = reach(environment(name), monkeypatch)
    addresses = {
        field: getattr(settings, field) for field in Settings.model_fields if field.endswith("listen")
    }
    beyond = {field for field, listen in addresses.items() if listen and not is_loopback(listen)}
    assert beyond == {"listen", "metrics_listen"}
    assert settings.tls_cert
    assert settings.clients


@every
@pytest.mark.parametrize("absent", PROTECTION)
def test_without_one_of_them_the_server_does_not_start(
    name: str, absent: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    variables = {key: value for key, value in environment(name).items() if key != absent}
    with pytest.raises((ConfigError, ValueError), match=r"TLS|clients|tls_key|tls_cert"):
        reach(variables, monkeypatch)


@every
def test_certificate_and_clients_are_from_secrets_that_have_to_be_there(name: str) -> None:
    """A secret that is not there keeps the pod from starting; an optional one would not."""
    secrets = {one["name"]: one["secret"] for one in PODS[name]["spec"]["volumes"] if "secret" in one}
    assert not any(secret.get("optional") for secret in secrets.values())
    mounted = {
        mount["mountPath"]: secrets[mount["name"]]["secretName"]
        for mount in container(name)["volumeMounts"]
        if mount["name"] in secrets
    }
    assert all(mount["readOnly"] for mount in container(name)["volumeMounts"] if mount["name"] in secrets)
    files = {variable: environment(name)[variable] for variable in PROTECTION}
    assert {variable: mounted[path.rpartition("/")[0]] for variable, path in files.items()} == {
        "LORA_ROUTER_TLS_CERT": "lora-router-tls",
        "LORA_ROUTER_TLS_KEY": "lora-router-tls",
        "LORA_ROUTER_CLIENTS": "lora-router-clients",
    }
    assert [path.rpartition("/")[2] for path in files.values()] == ["tls.crt", "tls.key", "clients.toml"]


@every
def test_a_network_policy_says_who_reaches_each_port(name: str) -> None:
    place, overlay, _ = name.partition("/overlays/")  # none of which changes who may come in
    folder = DEPLOY / (f"{place}/base" if overlay else name)
    labels = PODS[name]["metadata"]["labels"]
    of_all = [one["spec"] for one in documents(folder) if one["kind"] == "NetworkPolicy"]
    policies = [one for one in of_all if one["podSelector"]["matchLabels"].items() <= labels.items()]
    rules = [rule for policy in policies for rule in policy["ingress"]]
    assert all("Ingress" in policy["policyTypes"] for policy in policies)
    assert all(rule["from"] for rule in rules), "an empty one allows all"
    ports = {port["port"]: rule["from"] for rule in rules for port in rule.get("ports", ())}
    (metrics,) = ports[9464]
    assert metrics == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert set(ports) == {one["containerPort"] for one in container(name)["ports"]}


def test_the_page_makes_the_secrets_before_it_applies_the_manifests() -> None:
    page = (DEPLOY.parent / "docs/deploy.md").read_text(encoding="utf-8")
    before = page.partition("kubectl apply -k deploy/kubernetes/base\n")[0]
    assert "kubectl create secret tls lora-router-tls --cert=" in before
    assert "kubectl create secret generic lora-router-clients --from-file=clients.toml" in before
