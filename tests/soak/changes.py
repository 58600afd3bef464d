"""What changes under the callers: adapters come, go and are replaced, clients too; bad files are dropped."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import grpc

from router.client import ClientError
from router.client.aio import AsyncAdapters, AsyncConnection
from router.client.channel import channel_options
from router.types import AdapterState
from tests.soak.world import ADMIN, ALL, VERSIONS, World

BAD_SECONDS, CLIENTS_SECONDS = 5.0, 30.0  # between bad folders, between changes of the clients file
SERVED_SECONDS = 60.0  # a version that was replaced must serve its new files after so long
TOGETHER = 3  # replacements at once
ACTS = {"load": 0.35, "unload": 0.3, "default": 0.25, "replace": 0.1}
Tell = Callable[[str, str, str], None]


class Changes:
    """Acts on a world; `tell` counts what becomes of each."""

    def __init__(self, world: World, tell: Tell) -> None:
        self._world, self._tell = world, tell
        self._room = asyncio.Semaphore(TOGETHER)

    async def run(self, address: str, acts: bool) -> None:
        """Bad files and clients from time to time, until cancelled; `acts`: what administrators do, too."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._every(BAD_SECONDS, self._bad))
            tasks.create_task(self._every(CLIENTS_SECONDS, self._world.change_clients))
            if acts:
                tasks.create_task(self._administrators(address))

    async def act(self, admin: AsyncAdapters, draw: random.Random) -> tuple[str, str, str]:
        """One act: its name, what became of it, and the problem in words."""
        (act,) = draw.choices(list(ACTS), list(ACTS.values()))
        name, version = draw.choice(ALL)
        if act == "replace" and (self._world.lock(name, version).locked() or self._room.locked()):
            act = "load"
        ref = f"{name}@{version}"
        try:
            if act == "load":
                await admin.load(ref)
            elif act == "unload":
                await admin.unload(ref)
            elif act == "default":
                await admin.set_default(ref)
            else:
                await self._replace(admin, name, version)
        except ClientError as error:
            return act, "unknown" if error.unreachable else "error", f"{ref}: {error.reason} {error}"
        except TimeoutError as error:
            return act, "error", f"{ref}: {error}"
        return act, "ok", ""

    async def calm(self, address: str) -> None:
        """As at the start: nothing bad, all clients, all in memory, the highest versions the default."""
        await self._world.calm()
        async with grpc.aio.insecure_channel(address, options=channel_options(address)) as channel:
            admin = self._admin(channel)
            for name, versions in VERSIONS.items():
                await admin.reset_default(name)
                for version in versions:
                    await admin.load(f"{name}@{version}")

    async def _replace(self, admin: AsyncAdapters, name: str, version: str) -> None:
        async with self._room, self._world.lock(name, version):
            digest = await asyncio.to_thread(self._world.replace, name, version)
            deadline = time.monotonic() + SERVED_SECONDS
            while True:
                now = await admin.get(f"{name}@{version}")
                if now.digest == digest and now.state is not AdapterState.LOADING:
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(f"its new files are not served: {now.state.value} {now.error}")
                await asyncio.sleep(0.1)
            self._world.journal.confirm(name, version, digest)

    async def _administrators(self, address: str) -> None:
        """Four of them, one act after the other."""
        async with (
            grpc.aio.insecure_channel(address, options=channel_options(address)) as channel,
            asyncio.TaskGroup() as tasks,
        ):
            for number in range(4):
                tasks.create_task(self._administrator(channel, random.Random(number)))

    async def _administrator(self, channel: grpc.aio.Channel, draw: random.Random) -> None:
        while True:
            self._tell(*await self.act(self._admin(channel), draw))
            await asyncio.sleep(0.1)

    def _admin(self, channel: grpc.aio.Channel) -> AsyncAdapters:
        self._world.journal.read()
        token = self._world.journal.entry(ADMIN).token
        return AsyncAdapters(AsyncConnection(channel, SERVED_SECONDS, token))

    async def _bad(self) -> None:
        await asyncio.to_thread(self._world.drop_bad)

    @staticmethod
    async def _every(seconds: float, work: Callable[[], object]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await work()  # type: ignore[misc]
