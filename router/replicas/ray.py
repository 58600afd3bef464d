"""Starts replicas on the nodes of a Ray cluster: the only module that imports ray (extra `ray`).

An actor on each node keeps `lora-router replica` running there, at an address that stays. Edges find replicas
by these addresses and do not know Ray, so replicas with an edge also outlive Ray's processes.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from router.errors import ConfigError, RouterError, install_extra
from router.replicas.children import Child
from router.replicas.link import LinkLost

log = logging.getLogger(__name__)

NAMESPACE = "lora-router"
PORT = 50060  # of the first replica of a node; the next one has the next
REACH_SECONDS, START_SECONDS, RETRY_SECONDS = 5.0, 600.0, 2.0
ENVIRONMENT = {  # which Ray reads when it is imported; what the operator sets is stronger
    "RAY_USAGE_STATS_ENABLED": "0",  # it would tell its makers of every cluster
    "RAY_worker_niceness": "0",  # or replicas yield to whatever else runs on their machine
}
OF_ACTORS = {"RAY_kill_child_processes_on_worker_exit": "0"}  # a replica ends by itself, after its edges


def connect(address: str) -> Any:
    """Ray, connected to a cluster. Raises ConfigError."""
    if find_spec("ray") is None:
        raise ConfigError(f"this command needs ray, which is not installed: {install_extra('ray')}")
    host, _, port = address.rpartition(":")
    try:  # Ray would find it out in minutes
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        text = f"no Ray can be reached at {address} ({error}): name the head's address, HOST:PORT"
        raise ConfigError(text) from None
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if os.environ.get("RAY_AUTH_MODE") != "token":
        log.warning("RAY_AUTH_MODE is not token: anyone who reaches the ports of Ray may run code there")
    import ray  # which reads here how it is protected

    try:
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(f"Ray at {address}: {_line(str(error))}") from error
    return ray


def places(ray: Any, gpu: bool) -> dict[str, str]:
    """The node's address for each replica's address: one for each GPU, or one a node without `gpu`."""
    found: dict[str, str] = {}
    for node in ray.nodes():
        if node["Alive"]:
            ip = node["NodeManagerAddress"]
            count = int(node["Resources"].get("GPU", 0)) if gpu else 1
            found |= {f"{ip}:{PORT + number}": ip for number in range(max(1, count))}
    return found


def launch(
    ray: Any,
    engine: str,
    settings: Mapping[str, Any],
    secret: str,
    *,
    gpu: bool = True,
    fake: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Have a replica on every node; blocks until their bases are loaded.

    Returns why one does not start, by address; "" for one that runs. Those of an earlier call stay.
    """
    asked = {}
    for address, ip in places(ray, gpu).items():
        devices = 1 if gpu and ray.cluster_resources().get("GPU") else 0
        kind = ray.remote(max_restarts=-1, max_task_retries=-1, max_concurrency=4)(ReplicaActor)
        actor = kind.options(
            name=f"replica/{address}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=1,
            num_gpus=devices,
            resources={f"node:{ip}": 0.001},  # so that its address stays, also after a restart of the node
            runtime_env={"env_vars": OF_ACTORS},
        ).remote(engine, dict(settings), address, secret, dict(fake or {}))
        asked[address] = actor.problem.remote()
    found = {}
    for address, answer in asked.items():
        try:
            found[address] = ray.get(answer, timeout=START_SECONDS)
        except ray.exceptions.GetTimeoutError:
            found[address] = f"no answer within {START_SECONDS:g} s: does its node have room for it?"
        except ray.exceptions.RayError as error:
            found[address] = _line(str(error))
    return found


class ReplicaActor:
    """What runs in an actor's process: it starts a replica, and another when that one ends."""

    def __init__(
        self, engine: str, settings: Mapping[str, Any], address: str, secret: str, fake: Mapping[str, Any]
    ) -> None:
        self._arguments = (engine, settings)
        self._options: dict[str, Any] = {"listen": address, "secret": secret, "fake": fake}
        self._tried = threading.Event()
        self._problem = ""
        threading.Thread(target=self._keep, daemon=True).start()

    def problem(self) -> str:
        """Why the first replica did not start; empty if it did. Blocks until that is known."""
        self._tried.wait()
        return self._problem

    def _keep(self) -> None:
        while True:
            child = Child(*self._arguments, **self._options)
            try:
                child.address(START_SECONDS)
                self._problem = ""
                self._tried.set()
                child.process.wait()
            except (LinkLost, RouterError) as error:  # also where one of an earlier Ray still has the port
                self._problem = str(error)
                self._tried.set()
            child.end()
            time.sleep(RETRY_SECONDS)


def _line(text: str) -> str:
    return next((found.strip() for found in text.splitlines() if found.strip()), "it gives no reason")
