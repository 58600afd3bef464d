"""Engines served over gRPC from a thread of the test's process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import grpc

from router.engine.base import AdapterArtifact, Engine
from router.replicas.host import EngineHost, engine_server
from router.replicas.link import Link, Security
from router.v1 import engine_pb2 as pb
from tests.engine.test_contract import read_folder


class ServedLink(Link):
    """The way to a replica of its own, which `start` makes where there is none."""

    def __init__(
        self,
        name: str,
        make: Callable[[], Engine],
        security: Security | None = None,
        credentials: grpc.ServerCredentials | None = None,
        read: Callable[[Path], AdapterArtifact] = read_folder,
    ) -> None:
        super().__init__(name, "", security or Security(), 10.0)
        self._read = read
        self._make, self._credentials = make, credentials
        self.host: EngineHost | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None

    def start(self) -> pb.HelloResponse:
        if self.host is None:
            listening = Event()
            self._thread = Thread(target=lambda: asyncio.run(self._serve(listening)), daemon=True)
            self._thread.start()
            assert listening.wait(10)
        return super().start()

    async def _serve(self, listening: Event) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self.host = host = EngineHost(self._make(), self._read, 1 << 30)
        server = engine_server(self._security.secret)
        host.register(server)
        if self._credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", self._credentials)
        self.address = f"127.0.0.1:{port}"
        await server.start()
        listening.set()
        host.start()
        host.loaded.set()
        await self._ended.wait()
        await server.stop(0)
        host.close()

    def kill(self) -> None:
        host, self.host = self.host, None
        if host is not None and self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(10)

    def close(self) -> None:
        self.kill()
