"""What happens to edges that share replicas in a Ray: run by test_ray_edges.py in a network of its own.

`python -m tests.replicas.edges_scenarios NAME` prints what it found as JSON. Replicas have fake engines.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from router.engine.fake import FakeEngine
from router.errors import ConfigError
from router.replicas.engine import FleetEngine
from router.replicas.ray_crew import RayCrew, shared_links
from router.replicas.ray_link import RayCluster
from tests.engine.test_contract import fake_adapter
from tests.replicas.conftest import job
from tests.replicas.ray_scenarios import HEAD, Facts, _ray, outcome, processes, until

PORT, FLEET, STALL = 6390, "shared", 2.0
ADDRESS = f"{HEAD}:{PORT}"
KEEPER = ("ray::Keeper",)
LIMITS = {"max_running": 8, "max_queue": 64}


def fleet(
    spec: dict[str, Any] | None = None, forsaken: float = 60.0, cluster: RayCluster | None = None
) -> tuple[FleetEngine, RayCluster]:
    """An edge of the fleet."""
    cluster = cluster or RayCluster(partial(FakeEngine, step_seconds=0.02), ADDRESS, start_seconds=120)
    crew = RayCrew(cluster, FLEET, spec or {"slots": 4}, (2, 2), forsaken_seconds=forsaken)
    links = shared_links(crew, cluster, STALL)
    engine = FleetEngine(
        links, FakeEngine, **LIMITS, stall_seconds=STALL, stow=cluster.stow, crew=crew, shared=True
    )
    return engine, cluster


@dataclass
class Other:
    """An edge in a process of its own."""

    process: asyncio.subprocess.Process

    async def says(self) -> Facts:
        """The next line."""
        if self.process.stdout is None:
            raise RuntimeError("it has no output")
        async with asyncio.timeout(120):
            while not (line := await self.process.stdout.readline()).startswith(b"{"):
                if not line:
                    raise RuntimeError("it ended")
        found: Facts = json.loads(line)
        return found


@asynccontextmanager
async def other(kind: str, *arguments: str) -> AsyncIterator[Other]:
    command = [sys.executable, "-m", "tests.replicas.edges_scenarios", kind, *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, limit=1 << 20
    )
    try:
        yield Other(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def head() -> None:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5e" * 32, "RAY_USAGE_STATS_ENABLED": "0"}
    await _ray("start", "--head", f"--node-ip-address={HEAD}", f"--port={PORT}", "--num-cpus=2")


def held(engine: FleetEngine) -> set[str]:
    """Digests that replicas have, for whatever edge."""
    return {digest for replica in engine.replicas for digest in replica.status.host_adapters}


def names(engine: FleetEngine) -> list[str]:
    return sorted(replica.name for replica in engine.replicas)


def all_up(engine: FleetEngine) -> bool:
    return len(engine.replicas) == 2 and all(replica.up for replica in engine.replicas)


COMMON, OWN = fake_adapter("common"), fake_adapter("own")


async def edge() -> Facts:
    """Has two adapters and two streams; says so, and what it loses, until it is killed."""
    engine, _ = fleet()
    await asyncio.to_thread(engine.start)
    for adapter in (COMMON, OWN):
        await engine.load(adapter)
    long = job(adapter=OWN.digest, min_tokens=1500, max_tokens=1500)
    streams = [asyncio.create_task(outcome(engine.submit(long))) for _ in range(2)]
    await until(lambda: engine.status().running > 0)
    say(up=names(engine))
    await until(lambda: not all_up(engine), 300)
    await until(lambda: all_up(engine))
    say(again=names(engine), text=(await outcome(engine.submit(job(adapter=COMMON.digest))))[0])
    await asyncio.gather(*streams)
    await asyncio.sleep(300)
    return {}


async def shared() -> Facts:
    """Two edges over two replicas: one is lost, then an edge; another hangs. Who differs is refused."""
    await head()
    engine, cluster = fleet()
    await asyncio.to_thread(engine.start)
    await engine.load(COMMON)
    async with other("edge") as second:
        begun = (await second.says())["up"]
        facts: Facts = {"same": names(engine) == begun, "replicas": len(processes()), "keepers": keepers()}
        facts["homes"] = [sum(COMMON.digest in r.status.host_adapters for r in engine.replicas)]
        facts["refused"] = await refusal(cluster)
        facts["cut"] = await cut(engine)
        processes()[0].send_signal(signal.SIGKILL)
        counting = asyncio.create_task(most_replicas())
        await until(lambda: not all_up(engine))
        await until(lambda: all_up(engine))
        facts["again"] = (await second.says()) | {"mine": names(engine)}
        facts["most"] = (await counting, len(processes()))
        long = job(adapter=COMMON.digest, min_tokens=200, max_tokens=200)
        streams = [asyncio.create_task(outcome(engine.submit(long))) for _ in range(4)]
        await until(lambda: OWN.digest in held(engine) and engine.status().running >= 4)
        second.process.kill()
        await until(lambda: OWN.digest not in held(engine))
        ended = await asyncio.gather(*streams)
    facts["streams"] = sorted({(len(text.split()), end) for text, end in ended})
    facts["kept"] = COMMON.digest in held(engine)
    facts["hung"] = await hung(engine)
    await asyncio.to_thread(engine.close)
    await asyncio.sleep(1)
    facts["left"] = len(processes())
    return facts


def keepers() -> int:
    return len(processes(KEEPER))


async def most_replicas() -> int:
    """The most processes of replicas that there are from the loss of one until some time after its return."""
    most, two = len(processes()), 0
    while two < 15:
        await asyncio.sleep(0.2)
        now = len(processes())
        most, two = max(most, now), two + 1 if now >= 2 else 0
    return most


async def refusal(cluster: RayCluster) -> str:
    """What an edge with another setting is told."""
    engine, _ = fleet(spec={"slots": 5}, cluster=cluster)
    try:
        await asyncio.to_thread(engine.start)
    except ConfigError as error:
        return error.message
    return ""


async def cut(engine: FleetEngine) -> bool:
    """Whether a replica lives on that only one edge calls silent; that edge has it again."""
    before = {process.pid for process in processes()}
    replica = engine.replicas[0]
    await asyncio.to_thread(replica._link.kill)
    hello = await asyncio.to_thread(replica._link.start)
    return {process.pid for process in processes()} == before and hello == engine._hello


async def hung(engine: FleetEngine) -> Facts:
    """A replica that says nothing to anybody is ended, and there is one in its place; weights come again,
    though the edge that brought them first is gone."""
    before = {process.pid for process in processes()}
    processes()[0].send_signal(signal.SIGSTOP)
    await until(lambda: not all_up(engine))
    await until(lambda: all_up(engine))
    await until(lambda: len(processes()) == 2)
    now = {process.pid for process in processes()}
    text, _ = await outcome(engine.submit(job(adapter=COMMON.digest)))
    return {"new": len(now - before), "all": len(now), "text": text}


async def keeper() -> Facts:
    """The keeper is killed: edges go on, a new one knows members and bounds. Then no edge is left."""
    await head()
    engine, _ = fleet(forsaken=8.0)
    await asyncio.to_thread(engine.start)
    await outcome(engine.submit(job()))
    await engine.members.resize(3, 3)
    await until(lambda: len(engine.replicas) == 3 and all(r.up for r in engine.replicas))
    before = {process.pid for process in processes()}
    stream = asyncio.create_task(outcome(engine.submit(job(min_tokens=200, max_tokens=200))))
    (first,) = processes(KEEPER)
    first.kill()
    text, end = await stream
    await until(lambda: any(p.pid != first.pid for p in processes(KEEPER)))
    await asyncio.sleep(3)
    roster = await replaced(engine)
    facts: Facts = {
        "stream": (len(text.split()), end),
        "same": {process.pid for process in processes()} == before,
        "bounds": (roster["least"], roster["most"]),
        "members": roster["members"],
    }
    await asyncio.to_thread(engine.close)
    facts["stay"] = len(processes())
    facts["gone"] = await until(lambda: not processes() and not processes(KEEPER), 60)
    return facts


async def replaced(engine: FleetEngine) -> Facts:
    """A roster of the present keeper."""
    before = engine.members.roster.number
    roster = await engine.members.resize(engine.members.roster.least, engine.members.roster.most)
    return {
        "least": roster.least,
        "most": roster.most,
        "members": sorted(member.name for member in roster.members),
        "before": before,
    }


async def server() -> Facts:
    """A whole server over the fleet, until SIGTERM."""
    from router.config import Settings
    from router.server.app import ServerApp
    from tests.fakes import FakeRegistry, FakeRouter

    engine, _ = fleet()
    registry = FakeRegistry(engine, [])
    settings = Settings(listen="127.0.0.1:0", metrics_listen="", drain_seconds=20.0, lame_duck_seconds=0.5)
    app = ServerApp(settings, engine, registry, FakeRouter(registry))
    running = asyncio.ensure_future(app.run())
    await asyncio.wait((running, asyncio.ensure_future(app.ready.wait())), return_when="FIRST_COMPLETED")
    if not running.done():
        say(address=app.address)
    await running
    return {"ended": True}


@dataclass
class Callers:
    """Who asks, one call after the other, at any of the addresses; refused ones go to the next."""

    addresses: list[str]
    answered: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    ends: bool = False

    async def ask(self, first: int) -> None:
        from router.client import AsyncClient, ClientError

        clients: dict[str, AsyncClient] = {}
        number = first
        while not self.ends:
            number += 1
            address = self.addresses[number % len(self.addresses)]
            client = clients.setdefault(address, AsyncClient(address, timeout=30))
            try:
                answer = await client.generate("one two three", max_tokens=30, min_tokens=30)
                whole = answer.usage.completion_tokens == 30
                self.answered += whole
                if not whole:
                    self.lost.append(answer.text)
            except ClientError as error:
                if error.reason == "DRAINING" or (error.code == "UNAVAILABLE" and not error.reason):
                    self.refused += 1  # it was never let in
                else:
                    self.lost.append(f"{error.code} {error.reason} {error.message}")
        for client in clients.values():
            await client.close()


async def replace_all() -> list[str]:
    """All replicas by new ones, asked for at one edge of several; how that ended for each."""
    engine, _ = fleet()
    await asyncio.to_thread(engine.start)
    asked = await engine.members.replace([])

    def over() -> bool:
        roster = engine.members.roster
        return roster.number > asked.number and all(one.over for one in roster.replacements)

    await until(over, 120)
    steps = [one.step.value for one in engine.members.roster.replacements]
    await asyncio.to_thread(engine.close)
    await until(lambda: len(processes()) == 2)
    return steps


async def rolling() -> Facts:
    """Under load a third server joins, then the first is told to end, then all replicas are replaced: whoever
    was let in is answered."""
    await head()
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(other("server")) for _ in range(2)]
        addresses = [(await one.says())["address"] for one in (first, second)]
        callers = Callers(addresses)
        asking = [asyncio.create_task(callers.ask(n)) for n in range(8)]
        await until(lambda: callers.answered > 50)
        third = await stack.enter_async_context(other("server"))
        addresses.append((await third.says())["address"])
        replicas = {process.pid for process in processes()}
        await until(lambda: callers.answered > 100)
        first.process.terminate()
        async with asyncio.timeout(60):
            code = await first.process.wait()
        del addresses[0]
        now = callers.answered
        await until(lambda: callers.answered > now + 50)
        same = {process.pid for process in processes()} == replicas
        steps = await replace_all()
        kept = {process.pid for process in processes()} & replicas
        now = callers.answered
        await until(lambda: callers.answered > now + 50)
        callers.ends = True
        await asyncio.gather(*asking)
    return {
        "steps": steps,
        "kept": len(kept),
        "answered": callers.answered,
        "refused": callers.refused,
        "lost": callers.lost,
        "code": code,
        "same": same,
    }


SCENARIOS: dict[str, Callable[[], Awaitable[Facts]]] = {
    kind.__name__: kind for kind in (shared, edge, keeper, server, rolling)
}


async def main(name: str) -> None:
    say(**await SCENARIOS[name]())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
