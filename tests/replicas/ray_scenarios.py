"""What happens in a Ray: run by test_ray_link.py in a network of its own, prints what it found as JSON.

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
from router.replicas.link import Links
from router.replicas.local_crew import LocalCrew
from router.replicas.ray_link import RayCluster
from router.replicas.scaling import Rules, Scaler
from router.types import Constraint
from tests.engine.test_contract import fake_adapter
from tests.replicas.conftest import job

HEAD, SECOND = "127.0.0.2", "127.0.0.3"
STORE = 100 << 20
Facts = dict[str, Any]


def fleet(address: str = "", cpus: int = 0) -> tuple[FleetEngine, RayCluster]:
    """Of two."""
    make = partial(FakeEngine, step_seconds=0.02)
    cluster = RayCluster(make, address, cpus=cpus, store_bytes=STORE, start_seconds=120)
    links = [cluster.link(str(i)) for i in range(2)]
    limits = {"max_running": 32, "max_queue": 256}
    return FleetEngine(links, FakeEngine, **limits, stall_seconds=2.0, stow=cluster.stow), cluster


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


REPLICA, ALL = ("ray::ReplicaActor",), ("ray::", "/ray/", "gcs_server", "router.replicas.ray_node")


def processes(names: tuple[str, ...] = REPLICA) -> list[psutil.Process]:
    """Of this network, which nobody else's Ray is in."""
    mine = os.readlink("/proc/self/ns/net")
    found = []
    for process in psutil.process_iter():
        try:
            same = os.readlink(f"/proc/{process.pid}/ns/net") == mine
            if same and any(name in part for part in process.cmdline() for name in names):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


async def killed() -> Facts:
    """A replica is killed under load: by its process id, as the kernel would."""
    engine, cluster = fleet()
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
    await asyncio.to_thread(cluster.disconnect)
    return {
        "sizes": sizes,
        "ends": sorted(set(ends)),
        "late": sorted(set(texts)),
        "again": again == [f"[{a.digest[:8]}] one two three" for a in adapters],
        "shaped": answered,
        "back": back,
        "left": len(processes(ALL)),
    }


async def stopped() -> Facts:
    """A replica is stopped (SIGSTOP): nobody tells of it."""
    engine, _ = fleet()
    await asyncio.to_thread(engine.start)
    await outcome(engine.submit(job()))
    processes()[0].send_signal(signal.SIGSTOP)
    asked = [asyncio.create_task(outcome(engine.submit(job()))) for _ in range(8)]
    texts = {text for text, _ in await asyncio.gather(*asked)}
    await until(lambda: all(replica.up for replica in engine.replicas))
    replaced = sum(replica.losses for replica in engine.replicas)
    await asyncio.to_thread(engine.close)
    return {"texts": sorted(texts), "replaced": replaced}


async def drained() -> Facts:
    """A signal ends the server when it has answered, as it does without Ray; exit code and all."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)  # before Ray, as a server does
    engine, _ = fleet()
    await asyncio.to_thread(engine.start)
    asked = asyncio.create_task(outcome(engine.submit(job(min_tokens=60))))
    await until(lambda: engine.status().running == 1)
    os.kill(os.getpid(), signal.SIGTERM)
    await told.wait()
    text, end = await asked
    began = time.monotonic()
    await asyncio.to_thread(engine.close)
    return {"words": len(text.split()), "end": end, "close": time.monotonic() - began}


async def replaced() -> Facts:
    """Requests all the time: all replicas are replaced, then load brings one more, then its end takes one."""
    make = partial(FakeEngine, step_seconds=0.02)
    cluster = RayCluster(make, store_bytes=STORE, start_seconds=120)
    links, rules = Links(cluster.link), Rules(memory=0.5, up_seconds=1.0, down_seconds=4.0)
    crew = LocalCrew(2, 3, links.end, scaler=Scaler(rules))
    limits = {"max_running": 8, "max_queue": 256}
    engine = FleetEngine(links, FakeEngine, **limits, stall_seconds=5.0, stow=cluster.stow, crew=crew)
    await asyncio.to_thread(engine.start)
    adapters = [fake_adapter(f"a{i}") for i in range(6)]
    for adapter in adapters:
        await engine.load(adapter)
    wanted, stop = [f"[{a.digest[:8]}] one two three" for a in adapters], asyncio.Event()
    wrong, answered = set[str](), 0

    async def client(at: int) -> None:
        nonlocal answered
        while not stop.is_set():
            text, end = await outcome(engine.submit(job(adapter=adapters[at % 6].digest)))
            wrong.update({f"{end}: {text}"} - {f"stop: {wanted[at % 6]}"})
            at, answered = at + 1, answered + 1

    def serving() -> list[str]:
        return [r.name for r in engine.members.seen() if r.state == "serving"]

    asked = [asyncio.create_task(client(i)) for i in range(6)]
    long = asyncio.create_task(outcome(engine.submit(job(min_tokens=300, max_tokens=300))))
    await until(lambda: answered > 6)
    before = {process.pid for process in processes()}
    await engine.members.replace([])
    took = await until(lambda: serving() == ["2", "3"] and len(processes()) == 2, 120)
    after = {process.pid for process in processes()}
    asked += [asyncio.create_task(client(i)) for i in range(40)]
    await until(lambda: serving() == ["2", "3", "4"], 120)
    stop.set()
    await asyncio.gather(*asked)
    await until(lambda: len(serving()) == 2 and len(processes()) == 2, 120)
    again = [(await outcome(engine.submit(job(adapter=a.digest))))[0] for a in adapters]
    text, _ = await long
    await asyncio.to_thread(engine.close)
    return {
        "wrong": sorted(wrong),
        "answered": answered,
        "others": not before & after,
        "again": again == wanted,
        "long": len(text.split()),
        "took": took,
    }


async def crowded() -> Facts:
    """No room for one more: the old ones stay, and nobody waits for the start of the new one."""
    cluster = RayCluster(partial(FakeEngine), cpus=1, store_bytes=STORE, start_seconds=120)
    links = Links(cluster.link)
    crew = LocalCrew(2, 2, links.end, start_seconds=5)
    limits = {"max_running": 8, "max_queue": 256}
    engine = FleetEngine(links, FakeEngine, **limits, stall_seconds=5.0, stow=cluster.stow, crew=crew)
    await asyncio.to_thread(engine.start)
    cpus = int(cluster.ray.cluster_resources()["CPU"])
    await engine.members.resize(cpus, cpus)
    await until(lambda: sum(r.up for r in engine.members.seen()) == cpus, 120)
    await engine.members.replace(["0"])
    took = await until(lambda: any(r.over for r in engine.members.roster.replacements))
    gone = await until(lambda: len(engine.members.seen()) == cpus)
    (found,) = engine.members.roster.replacements
    text, _ = await outcome(engine.submit(job()))
    await asyncio.to_thread(engine.close)
    return {"step": found.step, "problem": found.problem, "took": took, "gone": gone, "text": text}


async def edge_killed() -> Facts:
    """The edge is killed: Ray and the replicas end by themselves."""
    command = [sys.executable, "-m", "tests.replicas.ray_scenarios", "edge"]
    edge = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    if edge.stdout is not None:
        await edge.stdout.readline()
    before = len(processes())
    edge.kill()
    await edge.wait()
    seconds = await until(lambda: not processes(ALL))
    return {"before": before, "seconds": seconds}


async def edge() -> Facts:
    """An edge that is there until it is killed."""
    engine, _ = fleet()
    await asyncio.to_thread(engine.start)
    sys.stdout.write("up\n")
    sys.stdout.flush()
    await asyncio.sleep(600)
    return {}


async def two_nodes() -> Facts:
    """A cluster of two nodes with a replica each; the second node is lost, and comes back."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5e" * 32, "RAY_USAGE_STATS_ENABLED": "0"}
    await _ray("start", "--head", f"--node-ip-address={HEAD}", "--port=6379", "--num-cpus=1")
    ports = ("--min-worker-port=20000", "--max-worker-port=29999")  # of its own: both are one machine
    agents = ("--dashboard-agent-listen-port=52366", "--dashboard-agent-grpc-port=52367")
    place = (f"--address={HEAD}:6379", f"--node-ip-address={SECOND}", "--num-cpus=1")
    second = ("start", *place, *ports, *agents)
    await _ray(*second)
    engine, _ = fleet(f"{HEAD}:6379", cpus=1)
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
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5e" * 32, "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= token | {"RAY_gcs_rpc_server_reconnect_timeout_s": "6"}  # 60 as Ray has it
    await _ray("start", "--head", f"--node-ip-address={HEAD}", "--port=6379", "--num-cpus=2")
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
    engine, _ = fleet(f"{HEAD}:6379", cpus=1)
    await asyncio.to_thread(engine.start)
    while True:
        text, end = await outcome(engine.submit(job()))
        sys.stdout.write((text or end) + "\n")
        sys.stdout.flush()
        await asyncio.sleep(0.1)


async def _ray(*arguments: str) -> None:
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *arguments]
    command += ["--disable-usage-stats", f"--object-store-memory={STORE}"]
    command += ["--include-dashboard=false"] if "--head" in arguments else []
    await asyncio.to_thread(partial(subprocess.run, command, check=True, capture_output=True))


SCENARIOS: dict[str, Callable[[], Awaitable[Facts]]] = {
    kind.__name__: kind
    for kind in (killed, stopped, drained, replaced, crowded, edge_killed, edge, two_nodes, head_lost, asking)
}


async def main(name: str) -> None:
    facts = await SCENARIOS[name]()
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
