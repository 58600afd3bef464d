"""Fleets of `lora-router replica` processes with fake engines, which tests kill, stop and cut off."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import grpc

from router.engine.fake import FakeEngine
from router.replicas.children import ChildLink
from router.replicas.engine import FleetEngine
from router.replicas.membership import FixedMembership
from router.v1 import fleet_pb2 as pb
from router.v1 import fleet_pb2_grpc, inference_pb2_grpc
from tests.addresses import free_address
from tests.engine.contract import answer, job
from tests.replicas.standing import STEP
from tests.server.helpers import launch

OWN = {"max_running": 8, "max_queue": 64, "stall_seconds": 10.0, "drain_seconds": 5.0, "log_level": "warning"}
OWN |= dict.fromkeys(("tls_cert", "tls_key", "tls_client_ca"))
SECRET = "of all"


class Cable:
    """Bytes between two sockets, in both directions. While it is cut they wait; no end gets an error."""

    def __init__(self) -> None:
        self.near = self.far = ""  # addresses
        self.passes = asyncio.Event()
        self.passes.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def lay(self) -> None:
        """Have a near end; its far end is set later."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.near = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.far.rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        for source, target in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.ensure_future(self._copy(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                await self.passes.wait()
                target.write(data)
                await target.drain()
        target.close()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._server.close()


class CabledLink(ChildLink):
    """The way to a child through a cable."""

    def __init__(self, cable: Cable, *arguments: Any, **options: Any) -> None:
        self.cable = cable
        super().__init__(*arguments, **options)

    @property  # type: ignore[override]
    def address(self) -> str:
        return self.cable.near

    @address.setter
    def address(self, address: str) -> None:
        self.cable.far = address


class Children:
    """An edge over children that run."""

    def __init__(
        self,
        number: int,
        stall_seconds: float,
        *,
        each: Mapping[str, Mapping[str, Any]] | None = None,
        cables: Sequence[Cable] = (),
        **fake: Any,
    ) -> None:
        """`fake`: options of all engines; `each`: of single ones; `cables`: one for each."""
        own = OWN | {"stall_seconds": stall_seconds}
        self.links: list[ChildLink] = []
        self.options: dict[str, dict[str, Any]] = {}  # of engines to come, by name

        def link(name: str) -> ChildLink:
            options = self.options[name] = STEP | fake | dict((each or {}).get(name, {}))
            if cables:
                self.links.append(CabledLink(cables[int(name)], name, "fake", own, fake=options))
            else:
                self.links.append(ChildLink(name, "fake", own, fake=options))
            return self.links[-1]

        self.engine = FleetEngine(
            FixedMembership([link(str(at)) for at in range(number)]),
            FakeEngine,
            max_running=8,
            max_queue=64,
            stall_seconds=stall_seconds,
        )

    def pid(self, number: int) -> int:
        child = self.links[number].child
        assert child is not None
        return child.process.pid


async def outcome(engine: FleetEngine, **params: Any) -> str:
    """The text, or the name of the error."""
    try:
        return (await answer(engine, job(engine, **params)))[0]
    except Exception as error:
        return type(error).__name__


async def outcomes(engine: FleetEngine, number: int, **params: Any) -> list[str]:
    """Of as many answers at a time."""
    return await asyncio.gather(*(outcome(engine, **params) for _ in range(number)))


def free_port() -> int:
    return int(free_address().rpartition(":")[2])


class Standing:
    """Two places for replicas, at addresses that stay, and edges at addresses of their own."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack, self._ports = stack, (free_port(), free_port())
        self.replicas: dict[int, subprocess.Popen[bytes]] = {}

    def address(self, at: int) -> str:
        """Of the replica there."""
        return f"127.0.0.1:{self._ports[at]}"

    def replica(self, at: int) -> None:
        """Start one there."""
        command = [sys.executable, "-m", "tests.replicas.standing", "--metrics-listen", ""]
        command += ["--listen", self.address(at)]
        process = self.replicas[at] = subprocess.Popen(command)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)

    async def edge(self) -> ServerProcess:
        """Start one; it serves."""
        replicas = ",".join(map(self.address, (0, 1)))
        process, address = await launch("--replicas", replicas)
        assert address
        logs = asyncio.create_task(process.communicate())
        channel = grpc.aio.insecure_channel(address)
        self._stack.push_async_callback(channel.close)

        async def end() -> None:
            if process.returncode is None:
                process.kill()
            await logs

        self._stack.push_async_callback(end)
        fleet = fleet_pb2_grpc.FleetServiceStub(channel)
        return ServerProcess(process, inference_pb2_grpc.InferenceServiceStub(channel), fleet)


@dataclass
class ServerProcess:
    """An edge as a process."""

    process: Process
    inference: inference_pb2_grpc.InferenceServiceStub
    fleet: fleet_pb2_grpc.FleetServiceStub

    async def has_both(self) -> None:
        """Wait until both replicas are up there."""
        async with asyncio.timeout(90):
            while True:
                found = (await self.fleet.ListReplicas(pb.ListReplicasRequest())).replicas
                if [one.state for one in found] == [pb.Replica.STATE_SERVING] * 2:
                    return
                await asyncio.sleep(0.1)

    async def load(self) -> int:
        """Jobs that its replicas run or let wait, of all edges."""
        found = await self.fleet.ListReplicas(pb.ListReplicasRequest())
        return sum(one.running + one.waiting for one in found.replicas)
