"""Replicas as Ray actors, on this machine or in a cluster: the only module that imports ray (extra `ray`).

Ray starts processes, finds them places and devices, and carries weights. What goes to and fro with every step
takes the way of `router.fleet.wire`, 10 times as fast, which also ends with the process on either side. Ray
restarts nothing by itself: an actor that it restarts is found dead only seconds later.
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
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from router.engine.base import AdapterArtifact, Engine
from router.errors import ConfigError, RouterError, Unavailable, install_extra
from router.fleet.host import EngineHost
from router.fleet.link import LinkLost
from router.fleet.messages import Batch, Hello, Load, Post
from router.fleet.ray_node import LOOPBACK
from router.fleet.wire import Door, Line, Listener

log = logging.getLogger(__name__)

NAMESPACE = "lora-router"
START_SECONDS = 600.0
CLOSE_SECONDS, REACH_SECONDS = 5.0, 5.0
ENVIRONMENT = {  # which Ray reads when it is imported; what the operator says is stronger
    "RAY_USAGE_STATS_ENABLED": "0",  # it would tell its makers of every cluster
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # or SIGTERM ends the server, which has to drain first
    "RAY_worker_niceness": "0",  # or replicas yield to whatever else runs on this machine
}
WEIGHTS_SECONDS = 60.0  # from when an adapter is asked for until Ray says where its weights are


def require_ray() -> None:
    """Raises ConfigError without the extra; imports nothing."""
    if find_spec("ray") is None:
        raise ConfigError(f"replicas need ray, which is not installed: {install_extra('ray')}")


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
        told = self._node.stdout.readline() if self._node.stdout is not None else ""
        said = json.loads(told) if told.startswith("{") else {"error": "it ended at once"}
        if "error" in said:
            self.close()
            raise ConfigError(f"Ray does not start on this machine: {line(said['error'])}")
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
                raise ConfigError(f"Ray at {address}: {line(str(error))}") from error
            self.ray = ray

    def actor(self, shared: Mapping[str, Any]) -> Any:
        """A new replica, somewhere with room for it. `shared`: Ray's options for one of several edges."""
        found = self.ray.cluster_resources().get("GPU", 0)
        gpus = min(1, found) if self._gpus is None else self._gpus
        options = {"num_cpus": self._cpus, "num_gpus": gpus, "scheduling_strategy": "SPREAD", **shared}
        kind = self.ray.remote(max_restarts=0, max_task_retries=0)(ReplicaActor)
        return kind.options(**options).remote(self._make)

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
    """The way to an actor. `shared`: Ray's options for one that other edges reach by a name, too."""

    def __init__(self, name: str, cluster: RayCluster, shared: Mapping[str, Any] | None = None) -> None:
        self.name, self._cluster, self._shared = name, cluster, shared or {}
        self._actor: Any = None
        self._door: Door | None = None
        self._line = Line()

    def start(self) -> Hello:
        """The actor that there is, or a new one."""
        self._cluster.connect()
        died = self._cluster.ray.exceptions.RayActorError
        if self._actor is not None:
            with suppress(died):
                return self._greeted()
        self._actor = self._cluster.actor(self._shared)
        try:
            return self._greeted()
        except died as error:
            self._discard()
            raise LinkLost(line(str(error))) from None

    def post(self, post: Post) -> None:
        """Send; weights are told of through Ray."""
        commands = [self._told(post.edge, c) if isinstance(c, Load) else c for c in post.commands]
        self._line.post(replace(post, commands=tuple(commands)))

    async def batches(self, edge: str) -> AsyncGenerator[Batch, None]:
        """One stream of the replica."""
        if self._door is None:
            raise LinkLost("it is not there")
        async with aclosing(self._line.batches(self._door, edge)) as stream:
            async for batch in stream:
                yield batch

    def kill(self) -> None:
        """Its process ends at once, whatever it does."""
        self._discard()

    def _discard(self) -> None:
        actor, self._actor, self._door = self._actor, None, None
        if actor is not None and self._cluster.ray is not None:
            self._cluster.ray.kill(actor)

    def close(self) -> None:
        """It ends."""
        self.kill()

    def _told(self, edge: str, load: Load) -> Load:
        """With a ticket in place of the weights, for which Ray tells where they are."""
        ticket = f"{edge}#{load.key}"
        if self._actor is not None:
            self._actor.bring.options(num_returns=0).remote(ticket, load.weights)
        return replace(load, weights=ticket)

    def _greeted(self) -> Hello:
        errors = self._cluster.ray.exceptions
        seconds = self._cluster.start_seconds
        try:
            said = self._cluster.ray.get(self._actor.start.remote(), timeout=seconds)
        except errors.GetTimeoutError:
            self._discard()
            text = (
                f"it has not started within {seconds:g} s: no node has room for it, or loading takes longer"
            )
            raise LinkLost(text) from None
        except errors.RayActorError:
            raise
        except errors.RayError as error:
            self._discard()
            raise LinkLost(line(str(error))) from None
        if isinstance(said, RouterError):
            self._discard()
            raise said
        hello: Hello
        hello, self._door = said
        return hello


class ReplicaActor:
    """What runs in a replica's process: an engine, its host, and the door to it."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        logging.basicConfig(level=logging.INFO)
        self._weights = Weights()
        self._host = EngineHost(make(), self._weights.fetch)
        self._listener = Listener(self._host)
        self._starting = asyncio.Lock()
        self._said: tuple[Hello, Door] | RouterError | None = None

    async def start(self) -> tuple[Hello, Door] | RouterError:
        """Load the base and open the door, once."""
        async with self._starting:
            if self._said is None:
                try:
                    hello = await asyncio.to_thread(self._host.start)
                    self._said = hello, await self._listener.open(_own_address())
                except RouterError as error:
                    self._said = error
            return self._said

    async def ping(self, patience: float) -> str:
        """Why it has to be ended; empty if it lives. `patience`: seconds that a step may take."""
        return self._host.problem(patience)

    async def bring(self, ticket: str, weights: Any) -> None:
        """Where the weights of an adapter are; says nothing of whether it is to be loaded."""
        self._weights.came(ticket, weights)


class Weights:
    """By ticket: what came through Ray and what came with a Load, in either order, or one of them alone."""

    def __init__(self) -> None:
        self._there: dict[str, asyncio.Future[Any]] = {}

    def came(self, ticket: str, weights: Any) -> None:
        """Whoever asks for the ticket gets them, for a while."""
        self._of(ticket).set_result(weights)

    async def fetch(self, ticket: object) -> AdapterArtifact:
        """Out of the object store, of this machine or the edge's. Raises Unavailable."""
        try:
            (ref,) = await asyncio.wait_for(self._of(str(ticket)), WEIGHTS_SECONDS)
        except TimeoutError:
            raise Unavailable("the weights of an adapter never came: ask again") from None
        artifact: AdapterArtifact = await ref
        return artifact

    def _of(self, ticket: str) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if ticket not in self._there:
            self._there[ticket] = loop.create_future()
            loop.call_later(WEIGHTS_SECONDS, self._there.pop, ticket, None)
        return self._there[ticket]


def _own_address() -> str:
    """Of this node, as Ray knows it: the edge reaches it there."""
    import ray

    return str(ray.util.get_node_ip_address())


def line(text: str) -> str:
    """The first line that says something."""
    return next((found.strip() for found in text.splitlines() if found.strip()), "it gives no reason")
