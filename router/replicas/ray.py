"""Replicas in a Ray cluster: the only module that imports ray (extra `ray`).

Ray finds a place and a device for each replica, starts an actor there, and tells its address. The actor runs
`lora-router replica` as its child; everything else is between edge and replica, as without Ray.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from router.errors import ConfigError, RouterError, install_extra
from router.replicas.children import FORSAKEN, HELLO_SECONDS, Child
from router.replicas.link import START_SECONDS, Link, LinkLost, Security
from router.v1 import engine_pb2 as pb

log = logging.getLogger(__name__)

NAMESPACE = "lora-router"
FORSAKEN_SECONDS = 60.0  # without an edge, after which a replica that several share ends
REACH_SECONDS, CHECK_SECONDS = 5.0, 10.0
ENVIRONMENT = {  # which Ray reads when it is imported; what the operator sets is stronger
    "RAY_USAGE_STATS_ENABLED": "0",  # it would tell its makers of every cluster
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # or SIGTERM ends the server, which has to drain first
    "RAY_worker_niceness": "0",  # or replicas yield to whatever else runs on their machine
}


def require_ray() -> None:
    """Raises ConfigError without the extra; imports nothing."""
    if find_spec("ray") is None:
        raise ConfigError(f"the setting `ray` needs ray, which is not installed: {install_extra('ray')}")


def check_reached(address: str) -> None:
    """Raises ConfigError where nobody listens, which Ray would find out in minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        text = f"no Ray can be reached at {address} ({error}): name the head's address, HOST:PORT"
        raise ConfigError(text) from None


class RayCluster:
    """Where the replicas of this edge run. Its links share one connection, made by the first that starts."""

    def __init__(
        self,
        address: str,
        engine: str,
        settings: Mapping[str, Any],
        *,
        fleet: str = "",
        cpus: float = 1,
        gpus: float | None = 0,
        security: Security | None = None,
        tls_name: str = "",
        start_seconds: float = START_SECONDS,
        fake: Mapping[str, Any] | None = None,
    ) -> None:
        """`fleet`: replicas have names under it, and edges that say the same use the same ones. `gpus` None:
        one each, where there are some. `security` has certificates; secrets are made by the replicas.
        """
        self._address, self._engine, self.fleet = address, engine, fleet
        self._cpus, self._gpus, self._fake = cpus, gpus, dict(fake or {})
        self.security, self.tls_name, self.start_seconds = security or Security(), tls_name, start_seconds
        files: dict[str, Any] = {}
        if security is not None and security.ca is not None:
            files = {"tls_cert": security.cert, "tls_key": security.key, "tls_client_ca": security.ca}
        self._settings = {**settings, **files}
        self._lock = threading.Lock()
        self.ray: Any = None

    def link(self, name: str) -> RayLink:
        """The way to one replica, which is made when the link is started."""
        return RayLink(name, self)

    def connect(self) -> None:
        """Have a Ray. Raises ConfigError. Off the main thread, where Ray leaves signals alone."""
        with self._lock:
            if self.ray is not None:
                return
            for variable, value in ENVIRONMENT.items():
                os.environ.setdefault(variable, value)
            if os.environ.get("RAY_AUTH_MODE") != "token":
                log.warning(
                    "RAY_AUTH_MODE is not token: anyone who reaches the ports of Ray may run code there"
                )
            check_reached(self._address)
            import ray  # which reads here how it is protected

            try:
                ray.init(self._address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
            except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise ConfigError(f"Ray at {self._address}: {line(str(error))}") from error
            self.ray = ray

    def actor(self, name: str) -> Any:
        """The replica of that name in a fleet that is shared, else a new one, somewhere with room for it."""
        found = self.ray.cluster_resources().get("GPU", 0)
        options: dict[str, Any] = {
            "num_cpus": self._cpus,
            "num_gpus": min(1, found) if self._gpus is None else self._gpus,
            "scheduling_strategy": "SPREAD",
        }
        if self.fleet:
            shared = {"namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
            options |= {"name": f"{self.fleet}/replica/{name}", **shared}
        kind = self.ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=4)(ReplicaActor)
        forsaken = FORSAKEN_SECONDS if self.fleet else 0.0
        arguments = (self._engine, self._settings, forsaken, self._fake, self.tls_name)
        return kind.options(**options).remote(*arguments)

    def disconnect(self) -> None:
        """Leave Ray; takes seconds. A server need not: all ends with its process."""
        with self._lock:
            if self.ray is not None:
                self.ray.shutdown()
                self.ray = None


class RayLink(Link):
    """The way to the replica of an actor."""

    def __init__(self, name: str, cluster: RayCluster) -> None:
        super().__init__(name, "", Security(), HELLO_SECONDS, cluster.tls_name)
        self._cluster = cluster
        self._actor: Any = None

    def start(self) -> pb.HelloResponse:
        """The replica that there is, or a new one."""
        self._cluster.connect()
        if self._actor is None:
            self._actor = self._cluster.actor(self.name)
        try:
            result = self._asked("start", self._cluster.start_seconds)
        except LinkLost:
            self.kill()
            raise
        if isinstance(result, RouterError):
            self._end("end")
            raise result
        self.address, secret = result
        files = self._cluster.security
        self._security = Security(secret, files.ca, files.cert, files.key)
        return super().start()

    def kill(self) -> None:
        """Its process ends at once, whatever it does; one that others use only if it answers nobody."""
        self._end("check" if self._cluster.fleet else "end")

    def close(self) -> None:
        """It ends, or is left to others."""
        if self._cluster.fleet:
            self._actor = None
        else:
            self._end("end")

    def _end(self, how: str) -> None:
        actor = self._actor
        if actor is None or self._cluster.ray is None:
            return
        try:
            if problem := self._asked(how, CHECK_SECONDS):
                log.warning("replica %s is ended: %s", self.name, problem)
        except LinkLost as lost:
            log.warning("replica %s is ended: %s", self.name, lost)
            self._cluster.ray.kill(actor)
        if how == "end":
            self._cluster.ray.kill(actor)
        self._actor = None

    def _asked(self, method: str, seconds: float) -> Any:
        """What the actor answers. Raises LinkLost."""
        errors = self._cluster.ray.exceptions
        try:
            return self._cluster.ray.get(getattr(self._actor, method).remote(), timeout=seconds)
        except errors.GetTimeoutError:
            raise LinkLost(
                f"no answer within {seconds:g} s: no node has room for it, or loading takes longer"
            ) from None
        except errors.RayError as error:
            self._actor = None if isinstance(error, errors.RayActorError) else self._actor
            raise LinkLost(line(str(error))) from None


class ReplicaActor:
    """What runs in an actor's process: the replica as its child, and what can be asked about it."""

    def __init__(
        self,
        engine: str,
        settings: Mapping[str, Any],
        forsaken_seconds: float,
        fake: Mapping[str, Any],
        tls_name: str,
    ) -> None:
        self._engine, self._settings, self._tls_name = engine, settings, tls_name
        self._options: dict[str, Any] = {"fake": fake, "forsaken_seconds": forsaken_seconds}
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._address = ""

    def start(self) -> tuple[str, str] | RouterError:
        """Address and secret of the replica, which is started where there is none, or why there is none."""
        with self._lock:
            if self._child is None or not self._child.runs:
                import ray

                listen = f"{ray.util.get_node_ip_address()}:0"
                child = Child(self._engine, self._settings, listen=listen, **self._options)
                try:
                    self._address = child.address()
                except RouterError as error:
                    return error
                self._child = child
                threading.Thread(target=self._follow, args=(child,), daemon=True).start()
            return self._address, self._child.secret

    def check(self) -> str:
        """End the replica if it does not answer, and say so; empty if it does."""
        child = self._child
        if child is None or not child.runs:
            return ""
        files = (self._settings.get(name) for name in ("tls_client_ca", "tls_cert", "tls_key"))
        security = Security(child.secret, *files)
        try:
            Link("", self._address, security, CHECK_SECONDS / 2, self._tls_name).start()
        except (LinkLost, RouterError) as error:
            child.kill()
            return str(error)
        return ""

    def end(self) -> str:
        """End the replica, though it hangs."""
        if self._child is not None:
            self._child.kill()
        return ""

    def _follow(self, child: Child) -> None:
        """A replica that no edge was attached to ends, and its actor with it."""
        if child.process.wait() == FORSAKEN:
            os._exit(0)


def line(text: str) -> str:
    """The first line that is not empty."""
    return next((found.strip() for found in text.splitlines() if found.strip()), "it gives no reason")
