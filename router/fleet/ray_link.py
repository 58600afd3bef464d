"""Replicas as Ray actors, on this machine or in a cluster: the only module that imports ray (extra `ray`).

Ray starts processes, finds them places and devices, tells of their death and carries messages. It restarts
nothing by itself: an actor that it restarts is found dead only seconds later.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from router.engine.base import AdapterArtifact, Engine
from router.errors import ConfigError, RouterError
from router.fleet.host import EngineHost
from router.fleet.link import LinkLost
from router.fleet.messages import Batch, Hello, Post
from router.fleet.ray_node import LOOPBACK

log = logging.getLogger(__name__)

NAMESPACE = "lora-router"
START_SECONDS = 600.0
CLOSE_SECONDS, REACH_SECONDS = 5.0, 5.0
ENVIRONMENT = {  # which Ray reads when it is imported; what the operator says is stronger
    "RAY_USAGE_STATS_ENABLED": "0",  # it would tell its makers of every cluster
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # or SIGTERM ends the server, which has to drain first
    "RAY_worker_niceness": "0",  # or replicas yield to whatever else runs on this machine
}
AHEAD = 4  # batches that may wait; what comes then is joined to the next


def require_ray() -> None:
    """Raises ConfigError without the extra; imports nothing."""
    if find_spec("ray") is None:
        raise ConfigError("replicas need ray, which is not installed: pip install 'lora-router[ray]'")


def check_reached(address: str) -> None:
    """Raises ConfigError where nobody listens, which Ray would find out in minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        text = f"no Ray can be reached at {address} ({error}): name the head's address, HOST:PORT"
        raise ConfigError(text) from None


class OwnRay:
    """A Ray of this server's own, which begins and ends with it, and a token that nobody else gets."""

    def __init__(self, store_bytes: int) -> None:
        """Raises ConfigError."""
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray in this process knows one only
        self._node = subprocess.Popen(
            [sys.executable, "-m", "router.fleet.ray_node", str(store_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # signals of a terminal are for the server
        )
        line = self._node.stdout.readline() if self._node.stdout is not None else ""
        said = json.loads(line) if line.startswith("{") else {"error": "it ended at once"}
        if "error" in said:
            self.close()
            raise ConfigError(f"Ray does not start on this machine: {_line(said['error'])}")
        self.address = str(said["address"])

    def close(self) -> None:
        """End it, and all that it started."""
        if self._node.stdin is not None:
            self._node.stdin.close()
        try:
            self._node.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._node.kill()
            self._node.wait()


class RayCluster:
    """Where the replicas of this edge run. Its links share one connection, made by the first that starts."""

    def __init__(
        self,
        make: Callable[[], Engine],
        address: str = "",
        *,
        cpus: float = 0,
        gpus: float | None = 0,
        store_bytes: int = 1 << 30,
        start_seconds: float = START_SECONDS,
    ) -> None:
        """`make` gives a replica its engine, in its own process. Without an address a Ray of this process's
        own is started, with a token that nobody else knows. `gpus` None: one each, where there are some.
        """
        self._make, self._address, self._cpus, self._gpus = make, address, cpus, gpus
        self._store_bytes, self.start_seconds = store_bytes, start_seconds
        self._lock = threading.Lock()
        self._own: OwnRay | None = None
        self.ray: Any = None

    def link(self, name: str) -> RayLink:
        """The way to one replica, which is made when the link is started."""
        return RayLink(name, self)

    def stow(self, artifact: AdapterArtifact) -> object:
        """Weights go into the object store once; replicas on its machine read them there without a copy."""
        return [self.ray.put(artifact)]  # in a list, or Ray would fetch it for the edge's own message

    def connect(self) -> None:
        """Have a Ray. Raises ConfigError. Off the main thread, where Ray leaves signals alone."""
        with self._lock:
            if self.ray is not None:
                return
            for variable, value in ENVIRONMENT.items():
                os.environ.setdefault(variable, value)
            if self._address and os.environ.get("RAY_AUTH_MODE") != "token":
                log.warning("RAY_AUTH_MODE is not token: whoever reaches the ports of Ray may run code there")
            if self._address:
                check_reached(self._address)
            else:
                self._own = OwnRay(self._store_bytes)
            import ray  # which reads here how it is protected

            address = self._own.address if self._own is not None else self._address
            local = {"_node_ip_address": LOOPBACK} if self._own is not None else {}
            try:
                ray.init(address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False, **local)
            except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise ConfigError(f"Ray at {address}: {_line(str(error))}") from error
            self.ray = ray

    def actor(self) -> Any:
        """A new replica, somewhere with room for it."""
        found = self.ray.cluster_resources().get("GPU", 0)
        gpus = min(1, found) if self._gpus is None else self._gpus
        options = {"num_cpus": self._cpus, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
        kind = self.ray.remote(max_restarts=0, max_task_retries=0, **options)(ReplicaActor)
        return kind.remote(self._make)

    def disconnect(self) -> None:
        """Leave Ray, and end one of our own; takes seconds. A server need not: all ends with its process."""
        with self._lock:
            if self.ray is not None:
                self.ray.shutdown()
                self.ray = None
            if self._own is not None:
                self._own.close()
                self._own = None


class RayLink:
    """The way to an actor."""

    def __init__(self, name: str, cluster: RayCluster) -> None:
        self.name, self._cluster = name, cluster
        self._actor: Any = None
        self._send: Any = None

    def start(self) -> Hello:
        """The actor that there is, or a new one."""
        self._cluster.connect()
        died = self._cluster.ray.exceptions.RayActorError
        if self._actor is not None:
            with suppress(died):
                return self._greeted()
        self._actor = self._cluster.actor()
        self._send = self._actor.post.options(num_returns=0)
        try:
            return self._greeted()
        except died as error:
            self.kill()
            raise LinkLost(_line(str(error))) from None

    def post(self, post: Post) -> None:
        """Without an answer: a dead actor is seen by its stream."""
        if self._send is not None:
            self._send.remote(post)

    async def batches(self, edge: str) -> AsyncGenerator[Batch, None]:
        """One stream of the actor; at most AHEAD batches wait in it."""
        ray, actor = self._cluster.ray, self._actor
        if actor is None:
            raise LinkLost("it is not there")
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": AHEAD}
        stream = actor.batches.options(**options).remote(edge)
        try:
            async for ref in stream:
                batch: Batch | str = await ref
                if isinstance(batch, str):
                    raise LinkLost(batch)
                yield batch
        except ray.exceptions.RayError as error:
            raise LinkLost(_line(str(error))) from None
        finally:
            with suppress(Exception):  # its silence would end it as well
                ray.cancel(stream)

    def kill(self) -> None:
        """Its process ends at once, whatever it does."""
        actor, self._actor, self._send = self._actor, None, None
        if actor is not None and self._cluster.ray is not None:
            self._cluster.ray.kill(actor)

    def close(self) -> None:
        """It ends."""
        self.kill()

    def _greeted(self) -> Hello:
        errors = self._cluster.ray.exceptions
        seconds = self._cluster.start_seconds
        try:
            hello = self._cluster.ray.get(self._actor.start.remote(), timeout=seconds)
        except errors.GetTimeoutError:
            self.kill()
            text = (
                f"it has not started within {seconds:g} s: no node has room for it, or loading takes longer"
            )
            raise LinkLost(text) from None
        except errors.RayActorError:
            raise
        except errors.RayError as error:
            self.kill()
            raise LinkLost(_line(str(error))) from None
        if isinstance(hello, RouterError):
            self.kill()
            raise hello
        return hello  # type: ignore[no-any-return]


class ReplicaActor:
    """What runs in a replica's process: an engine and its host."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        logging.basicConfig(level=logging.INFO)
        self._host = EngineHost(make(), _fetched)
        self._starting = asyncio.Lock()
        self._hello: Hello | RouterError | None = None

    async def start(self) -> Hello | RouterError:
        """Load the base, once."""
        async with self._starting:
            if self._hello is None:
                try:
                    self._hello = await asyncio.to_thread(self._host.start)
                except RouterError as error:
                    self._hello = error
            return self._hello

    async def post(self, post: Post) -> None:
        """What an edge wants."""
        self._host.post(post)

    async def batches(self, edge: str) -> AsyncGenerator[Batch | str, None]:
        """The stream of an edge; a text at the end says why it has ended."""
        try:
            async for batch in self._host.batches(edge):
                yield batch
        except RouterError as error:
            yield error.message


async def _fetched(weights: Any) -> AdapterArtifact:
    """Out of the object store, of this machine or the edge's."""
    (ref,) = weights
    artifact: AdapterArtifact = await ref
    return artifact


def _line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "it gives no reason")
