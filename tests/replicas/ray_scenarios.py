"""What happens in a Ray: run by test_ray.py in a network of its own, prints what it found as JSON.

`python -m tests.replicas.ray_scenarios NAME`. Replicas have fake engines.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import psutil

from router.engine.base import Delta, Finished, Generation
from router.engine.fake import FakeEngine
from router.errors import RouterError
from router.replicas.engine import FleetEngine
from router.replicas.ray import RayCluster
from router.types import Constraint
from tests.engine.test_contract import fake_adapter
from tests.replicas.conftest import job

HEAD, SECOND, PORT = "127.0.0.2", "127.0.0.3", 6379
STORE = 100 << 20
LIMITS = {"max_running": 8, "max_queue": 256}
OWN = LIMITS | {"stall_seconds": 2.0, "drain_seconds": 5.0, "log_level": "warning"}
OWN |= dict.fromkeys(("tls_cert", "tls_key", "tls_client_ca"))
Facts = dict[str, Any]


def cluster_of(shared: str = "") -> RayCluster:
    """The way to the head that runs."""
    return RayCluster(
        f"{HEAD}:{PORT}", "fake", OWN, fleet=shared, start_seconds=60, fake={"step_seconds": 0.02}
    )


def fleet(shared: str = "", cluster: RayCluster | None = None) -> FleetEngine:
    """An edge over two replicas, which it shares with others under the name."""
    cluster = cluster or cluster_of(shared)
    links = [cluster.link(str(i)) for i in range(2)]
    return FleetEngine(links, FakeEngine, **LIMITS, stall_seconds=2.0, shared=bool(shared))


async def head(cpus: int = 2) -> None:
    """Ray's head, with places for so many replicas."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5e" * 32, "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= token | {"RAY_worker_niceness": "0"}
    await _ray("start", "--head", f"--node-ip-address={HEAD}", f"--port={PORT}", f"--num-cpus={cpus}")


async def outcome(generation: Generation) -> tuple[str, str]:
    """The text, and how it ended."""
    text = ""
    try:
        async for event in generation:
            if isinstance(event, Delta):
                text += event.text
            elif isinstance(event, Finished):
                return text, event.reason.value
    except RouterError as error:
        return text, error.code
    return text, "nothing"


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> float:
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError("the condition never came true")
        await asyncio.sleep(0.02)
    return time.monotonic() - began


REPLICA = ("--child",)


def processes(names: tuple[str, ...] = REPLICA) -> list[psutil.Process]:
    """Of this network, which nobody else's Ray is in."""
    mine = os.readlink("/proc/self/ns/net")
    found = []
    for process in psutil.process_iter():
        try:
            same = os.readlink(f"/proc/{process.pid}/ns/net") == mine
            if same and any(name in part for part in process.cmdline() for name in names) and _lives(process):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _lives(process: psutil.Process) -> bool:
    return process.status() != psutil.STATUS_ZOMBIE


async def killed() -> Facts:
    """A replica is killed under load: by its process id, as the kernel would."""
    await head()
    engine = fleet()
    await asyncio.to_thread(engine.start)
    adapters = [fake_adapter(f"a{i}") for i in range(4)]
    sizes = [await engine.load(adapter) for adapter in adapters]
    long = job(min_tokens=150, max_tokens=150)
    begun = [asyncio.create_task(outcome(engine.submit(long))) for _ in range(8)]
    await until(lambda: engine.status().running == 8)
    processes()[0].send_signal(signal.SIGKILL)
    late = [
        asyncio.create_task(outcome(engine.submit(job(adapter=adapters[i % 4].digest)))) for i in range(8)
    ]
    ends = [end for _, end in await asyncio.gather(*begun)]
    texts = [text for text, _ in await asyncio.gather(*late)]
    back = await until(lambda: all(replica.up for replica in engine.replicas))
    again = [(await outcome(engine.submit(job(adapter=a.digest))))[0] for a in adapters]
    shaped = job(constraint=Constraint("choices", choices=("a", "b")))
    checked = await engine.compile(Constraint("choices", choices=("a", "b")))
    answered = await outcome(engine.submit(replace(shaped, grammar=checked)))
    await asyncio.to_thread(engine.close)
    await until(lambda: not processes())
    return {
        "sizes": sizes,
        "ends": sorted(set(ends)),
        "late": sorted(set(texts)),
        "again": again == [f"[{a.digest[:8]}] one two three" for a in adapters],
        "shaped": answered,
        "back": back,
        "left": len(processes()),
    }


async def stopped() -> Facts:
    """A replica is stopped (SIGSTOP): nobody tells of it."""
    await head()
    engine = fleet()
    await asyncio.to_thread(engine.start)
    await outcome(engine.submit(job()))
    processes()[0].send_signal(signal.SIGSTOP)
    asked = [asyncio.create_task(outcome(engine.submit(job()))) for _ in range(8)]
    texts = {text for text, _ in await asyncio.gather(*asked)}

    def replaced() -> int:
        return sum(replica.losses for replica in engine.replicas)

    await until(lambda: replaced() > 0 and all(replica.up for replica in engine.replicas))
    facts: Facts = {"texts": sorted(texts), "replaced": replaced()}
    await asyncio.to_thread(engine.close)
    return facts


async def edge_killed() -> Facts:
    """The edge is killed: its replicas end by themselves."""
    await head()
    command = [sys.executable, "-m", "tests.replicas.ray_scenarios", "edge"]
    edge = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    if edge.stdout is not None:
        await edge.stdout.readline()
    before = len(processes())
    edge.kill()
    await edge.wait()
    seconds = await until(lambda: not processes())
    return {"before": before, "seconds": seconds}


async def edge() -> Facts:
    """An edge that is there until it is killed."""
    engine = fleet()
    await asyncio.to_thread(engine.start)
    sys.stdout.write("up\n")
    sys.stdout.flush()
    await asyncio.sleep(600)
    return {}


async def two_nodes() -> Facts:
    """A cluster of two nodes with a replica each; the second node is lost, and comes back."""
    await head(1)
    ports = ("--min-worker-port=20000", "--max-worker-port=29999")  # of its own: both are one machine
    agents = ("--dashboard-agent-listen-port=52366", "--dashboard-agent-grpc-port=52367")
    place = (f"--address={HEAD}:{PORT}", f"--node-ip-address={SECOND}", "--num-cpus=1")
    second = ("start", *place, *ports, *agents)
    await _ray(*second)
    engine = fleet()
    await asyncio.to_thread(engine.start)
    adapters = [fake_adapter(f"a{i}") for i in range(4)]
    for adapter in adapters:
        await engine.load(adapter)
    lost = [p for p in processes(("raylet/raylet",)) if any(SECOND in part for part in p.cmdline())]
    for process in lost:
        process.kill()
    noticed = await until(lambda: not all(replica.up for replica in engine.replicas))
    texts = [(await outcome(engine.submit(job(adapter=a.digest))))[0] for a in adapters]
    await _ray(*second)
    back = await until(lambda: all(replica.up for replica in engine.replicas), 120)
    await asyncio.to_thread(engine.close)
    return {
        "lost": len(lost),
        "texts": texts == [f"[{a.digest[:8]}] one two three" for a in adapters],
        "noticed": noticed,
        "back": back,
    }


async def head_lost() -> Facts:
    """The head's process that knows the cluster is killed: answers go on, until Ray ends the edge."""
    os.environ |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "6"}  # 60 as Ray has it
    await head()
    command = [sys.executable, "-m", "tests.replicas.ray_scenarios", "asking"]
    edge = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    if edge.stdout is None:
        raise RuntimeError("it has an output")
    await edge.stdout.readline()
    (control,) = processes(("gcs_server",))
    control.kill()
    killed = time.monotonic()
    answered = 0
    while line := await edge.stdout.readline():
        if time.monotonic() - killed > 2:
            answered += line == b"[base] one two three\n"
    return {"answered": answered, "code": await edge.wait(), "seconds": time.monotonic() - killed}


async def asking() -> Facts:
    """An edge that asks and tells what it was answered, until it is ended."""
    engine = fleet()
    await asyncio.to_thread(engine.start)
    while True:
        text, end = await outcome(engine.submit(job()))
        sys.stdout.write((text or end) + "\n")
        sys.stdout.flush()
        await asyncio.sleep(0.1)


async def shared() -> Facts:
    """Two edges over the same replicas: a replica is killed, one is stopped, an edge ends, then both have."""
    await head()
    cluster = cluster_of("blue")  # a process has one way to Ray
    one, two = fleet("blue", cluster), fleet("blue", cluster)
    adapter = fake_adapter("a")
    for edge in (one, two):
        await asyncio.to_thread(edge.start)
        await edge.load(adapter)
    facts: Facts = {"replicas": len(processes())}

    def homes() -> list[int]:
        edges = (one, two)
        return [sum(adapter.digest in r.status.host_adapters for r in edge.replicas) for edge in edges]

    await until(lambda: all(homes()))
    facts["homes"] = homes()
    for number in (signal.SIGKILL, signal.SIGSTOP):
        before = {process.pid for process in processes()}
        processes()[0].send_signal(number)
        asked = [outcome(edge.submit(job(adapter=adapter.digest))) for edge in (one, two) for _ in range(8)]
        name = f"[{adapter.digest[:8]}]"
        texts = {text.replace(name, "[a]") for text, _ in await asyncio.gather(*asked)}
        await until(lambda before=before: len(before & {process.pid for process in processes()}) == 1)
        await until(lambda: len(processes()) == 2)
        await until(lambda: all(r.up for edge in (one, two) for r in edge.replicas))
        now = {process.pid for process in processes()}
        facts[number.name] = {"texts": sorted(texts), "same": len(now & before), "all": len(now)}
    stream = asyncio.create_task(outcome(two.submit(job(min_tokens=100, max_tokens=100))))
    await asyncio.to_thread(one.close)
    facts["stream"] = len((await stream)[0].split())
    await asyncio.to_thread(two.close)
    facts["stay"] = len(processes())
    facts["gone"] = await until(lambda: not processes(), 120)
    return facts


async def _ray(*arguments: str) -> None:
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *arguments]
    command += ["--disable-usage-stats", f"--object-store-memory={STORE}"]
    command += ["--include-dashboard=false"] if "--head" in arguments else []
    await asyncio.to_thread(partial(subprocess.run, command, check=True, capture_output=True))


SCENARIOS: dict[str, Callable[[], Awaitable[Facts]]] = {
    kind.__name__: kind for kind in (killed, stopped, edge_killed, edge, two_nodes, head_lost, asking, shared)
}


async def main(name: str) -> None:
    facts = await SCENARIOS[name]()
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
