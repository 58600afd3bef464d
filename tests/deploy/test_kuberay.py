"""The manifests of edges and a Ray cluster: valid, of one mind with each other, the image and the server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from router import __version__
from router.cli.settings import ENV_PREFIX, NO_SETTINGS
from router.config import Settings
from router.extensions.mirrors import MirrorSettings
from tests.deploy.test_kubernetes import LEFT, VERSIONS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kuberay"
SCHEMA = json.loads((Path(__file__).parent / "raycluster.schema.json").read_text())
DOCUMENTS = {
    (path.stem, document["kind"], document["metadata"]["name"]): document
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.stem != "kustomization"
    for document in yaml.safe_load_all(path.read_text())
}
PAGE = (ROOT / "docs/operations.md").read_text()


def named(kind: str, name: str = "lora-router") -> Any:
    (found,) = [one for (_, its, called), one in DOCUMENTS.items() if (its, called) == (kind, name)]
    return found


RAY = named("RayCluster")
HEAD = RAY["spec"]["headGroupSpec"]
(WORKERS,) = RAY["spec"]["workerGroupSpecs"]
EDGES = named("Deployment")
PODS = {"head": HEAD["template"], "replica": WORKERS["template"], "edge": EDGES["spec"]["template"]}
CONTAINERS = {name: pod["spec"]["containers"][0] for name, pod in PODS.items()}
EDGE = CONTAINERS["edge"]
ENVIRONMENT = {one["name"]: one["value"] for one in EDGE["env"] if "value" in one}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("key", [key for key in DOCUMENTS if key[1] != "RayCluster"], ids="-".join)
def test_each_is_valid_and_has_no_unknown_field(key: tuple[str, str, str], version: str) -> None:
    kubernetes_validate.validate(DOCUMENTS[key], version, strict=True)


def test_the_ray_cluster_is_what_the_operator_takes() -> None:
    jsonschema.validate(RAY, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("headGroup",), {}),
        (("headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("headGroupSpec", "templates"), {}),
        (("workerGroupSpecs", 0, "groupName"), None),
        (("workerGroupSpecs", 0, "replicas"), "4"),
    ],
)
def test_the_check_sees_what_is_wrong(path: tuple[Any, ...], value: object) -> None:
    wrong = json.loads(json.dumps(RAY))
    at = wrong["spec"]
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["head", "replica"])
def test_pods_of_the_ray_cluster_are_pods(name: str, version: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **PODS[name]}
    pod["metadata"] = {"name": name, **pod["metadata"]}
    kubernetes_validate.validate(pod, version, strict=True)


def test_kustomize_is_given_all_files() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted({f"{stem}.yaml" for stem, _, _ in DOCUMENTS})


def test_everybody_has_the_same_image_and_the_same_secret() -> None:
    assert {one["image"] for one in CONTAINERS.values()} == {f"lora-router:{__version__}-ray"}
    for one in CONTAINERS.values():
        environment = {each["name"]: each for each in one["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        assert environment["RAY_USAGE_STATS_ENABLED"]["value"] == "0"
        secret = environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert secret == {"name": "lora-router-ray", "key": "auth_token"}
    assert re.search(r"kubectl create secret generic lora-router-ray --from-literal=auth_token=", PAGE)
    assert f"-t lora-router:{__version__}-ray ." in PAGE


def test_ray_is_one_that_the_package_takes() -> None:
    extras = (ROOT / "pyproject.toml").read_text()
    (said,) = re.findall(r'^ray = \[.*?"(ray>=[^"]+)"', extras, re.MULTILINE)
    assert Version(RAY["spec"]["rayVersion"]) in Requirement(said).specifier


@pytest.mark.parametrize("name", PODS)
def test_no_pod_has_more_rights_than_it_needs(name: str) -> None:
    pod, container = PODS[name]["spec"], CONTAINERS[name]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert pod["serviceAccountName"] == named("ServiceAccount")["metadata"]["name"]
    assert {"/var/lib/lora-router", "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}


def matches(selector: dict[str, Any], name: str) -> bool:
    return selector["matchLabels"].items() <= PODS[name]["metadata"]["labels"].items()


def test_only_these_pods_reach_rays_ports() -> None:
    policy = named("NetworkPolicy", "lora-router-ray")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all(matches(policy["podSelector"], name) for name in PODS)
    (rule,) = policy["ingress"]
    assert rule == {"from": [{"podSelector": policy["podSelector"]}]}
    inside, dns = policy["egress"]
    assert inside == {"to": rule["from"]}
    assert {port["port"] for port in dns["ports"]} == {53}


def test_callers_reach_edges_alone_and_there_what_is_meant_for_them() -> None:
    policy = named("NetworkPolicy", "lora-router-edges")["spec"]
    assert [name for name in PODS if matches(policy["podSelector"], name)] == ["edge"]
    assert all(rule["from"] for rule in policy["ingress"]), "an empty one allows all"
    allowed = [port["port"] for rule in policy["ingress"] for port in rule["ports"]]
    assert allowed == [port["containerPort"] for port in EDGE["ports"]]


def test_services_and_budgets_are_about_the_pods_that_they_mean() -> None:
    assert matches({"matchLabels": named("Service")["spec"]["selector"]}, "edge")
    assert not matches({"matchLabels": named("Service")["spec"]["selector"]}, "replica")
    edges = named("PodDisruptionBudget", "lora-router-edges")["spec"]
    assert [name for name in PODS if matches(edges["selector"], name)] == ["edge"]
    assert edges["minAvailable"] < EDGES["spec"]["replicas"]
    replicas = named("PodDisruptionBudget", "lora-router-replicas")["spec"]
    assert [name for name in PODS if matches(replicas["selector"], name)] == ["replica"]


def test_every_variable_of_an_edge_is_a_setting() -> None:
    known = {ENV_PREFIX + name.upper() for name in (*Settings.model_fields, *NO_SETTINGS)}
    assert {name for name in ENVIRONMENT if name.startswith(ENV_PREFIX)} <= known


def test_edges_find_the_head_and_are_nodes_without_room() -> None:
    assert ENVIRONMENT["LORA_ROUTER_RAY"] == f"{RAY['metadata']['name']}-head-svc:6379"
    (command,) = EDGE["args"]
    assert command.startswith('ray start --address="$LORA_ROUTER_RAY" --num-cpus=0 --num-gpus=0 ')
    assert command.endswith(" && exec lora-router serve"), "signals are for the server"
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    assert HEAD["rayStartParams"]["include-dashboard"] == "false"


def test_there_is_a_worker_for_every_replica_that_edges_may_want() -> None:
    said = {name: ENVIRONMENT[f"LORA_ROUTER_{name.upper()}"] for name in ("replicas", "ray", "threads")}
    least, most = Settings(**said).replica_bounds
    assert 1 <= least <= most
    wanted = most if "LORA_ROUTER_FLEET" in ENVIRONMENT else EDGES["spec"]["replicas"] * most
    assert WORKERS["replicas"] == WORKERS["maxReplicas"] == wanted
    assert ENVIRONMENT["LORA_ROUTER_THREADS"] == CONTAINERS["replica"]["resources"]["limits"]["cpu"]
    rolling = EDGES["spec"]["strategy"]["rollingUpdate"]
    assert (rolling["maxSurge"], rolling["maxUnavailable"]) == (0, 1), "a third edge would find no worker"


@pytest.mark.parametrize("name", ["head", "replica"])
def test_probes_ask_a_port_on_which_ray_listens(name: str) -> None:
    """Those that the operator would put there need wget and the dashboard."""
    group = {"head": HEAD, "replica": WORKERS}[name]
    (port,) = CONTAINERS[name]["ports"]
    said = group["rayStartParams"].get("node-manager-port", "6379" if name == "head" else "")
    assert str(port["containerPort"]) == said
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINERS[name][probe]["tcpSocket"] == {"port": port["name"]}


def test_an_edges_probes_and_grace_fit_the_server() -> None:
    lame_duck = float(ENVIRONMENT["LORA_ROUTER_LAME_DUCK_SECONDS"])
    ready = EDGE["readinessProbe"]
    assert lame_duck > ready["periodSeconds"] * ready["failureThreshold"]
    settings = Settings(lame_duck_seconds=lame_duck)
    assert (
        EDGES["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= settings.shutdown_seconds + LEFT
    )
    ports = {port["name"]: port["containerPort"] for port in EDGE["ports"]}
    assert ENVIRONMENT["LORA_ROUTER_METRICS_LISTEN"] == f"0.0.0.0:{ports['http']}"
    assert ENVIRONMENT["LORA_ROUTER_LISTEN"] == f"0.0.0.0:{ports['grpc']}"
    paths = [EDGE[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert paths == ["/readyz", "/readyz", "/healthz"]


def test_a_start_of_an_edge_may_take_as_long_as_a_mirror() -> None:
    """As `wait_seconds` of [mirrors] says, and some time for the base."""
    probe = EDGE["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > MirrorSettings().wait_seconds
