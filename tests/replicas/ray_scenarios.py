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
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import psutil

from router.engine.base import Delta, Finished, Generation
from router.engine.fake import FakeEngine
from router.errors import RouterError
from router.replicas import ray as launcher
from router.replicas.engine import FleetEngine
from router.replicas.link import Security
from router.replicas.membership import FoundMembership
from tests.engine.test_contract import fake_adapter
from tests.replicas.conftest import job, text_of

HEAD, SECOND, PORT = "127.0.0.2", "127.0.0.3", 6379
STORE = 100 << 20
LIMITS = {"max_running": 8, "max_queue": 256}
OWN = LIMITS | {"stall_seconds": 2.0, "drain_seconds": 5.0, "log_level": "warning"}
OWN |= dict.fromkeys(("tls_cert", "tls_key", "tls_client_ca"))
SECRET = "of all"
Facts = dict[str, Any]


def launch() -> dict[str, str]:
    """Have a replica on every node, and leave Ray."""
    ray = launcher.connect(f"{HEAD}:{PORT}")
    found = launcher.launch(ray, "fake", OWN, SECRET, gpu=False, fake={"step_seconds": 0.02})
    ray.shutdown()
    return found


async def edge(addresses: Iterable[str]) -> FleetEngine:
    """One over replicas at these addresses, which knows nothing of Ray; both are up."""
    membership = FoundMembership(list(addresses), Security(SECRET))
    engine = FleetEngine(membership, FakeEngine, **LIMITS, stall_seconds=2.0)
    await asyncio.to_thread(engine.start)
    engine.status()
    await until(lambda: all(replica.up for replica in engine.replicas))
    return engine


async def cluster() -> None:
    """Ray on two nodes."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5e" * 32, "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= token | {"RAY_worker_niceness": "0"}
    os.environ |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "6"}  # 60 as Ray has it
    await _ray("start", "--head", f"--node-ip-address={HEAD}", f"--port={PORT}", "--num-cpus=1")
    await second_node()


async def second_node() -> None:
    ports = ("--min-worker-port=20000", "--max-worker-port=29999")  # of its own: both are one machine
    agents = ("--dashboard-agent-listen-port=52366", "--dashboard-agent-grpc-port=52367")
    place = (f"--address={HEAD}:{PORT}", f"--node-ip-address={SECOND}", "--num-cpus=1")
    await _ray("start", *place, *ports, *agents)


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
    """A replica is killed amid its answers, then Ray's control store."""
    await cluster()
    started = await asyncio.to_thread(launch)
    again = await asyncio.to_thread(launch)
    engine = await edge(started)
    adapter = fake_adapter("a")
    await engine.load(adapter)
    facts: Facts = {"started": started, "again": again, "before": len(processes())}

    async def twelve() -> int:
        asked = [outcome(engine.submit(job(adapter=adapter.digest))) for _ in range(12)]
        return [text for text, _ in await asyncio.gather(*asked)].count(text_of(adapter))

    begun = [
        asyncio.create_task(outcome(engine.submit(job(min_tokens=150, max_tokens=150)))) for _ in "12345678"
    ]
    await until(lambda: engine.status().running == 8)
    processes()[0].send_signal(signal.SIGKILL)
    await until(lambda: not all(replica.up for replica in engine.replicas))
    facts["after the kill"] = await twelve()
    facts["ends"] = sorted({end for _, end in await asyncio.gather(*begun)})
    await until(lambda: all(replica.up for replica in engine.replicas))

    (control,) = processes(("gcs_server",))
    control.kill()
    facts["without the store"] = await twelve()
    await until(lambda: not processes(("raylet/raylet",)))
    facts["without Ray"] = await twelve()
    await asyncio.sleep(2)
    facts["later"] = await twelve()
    facts["lost"] = sum(replica.losses for replica in engine.replicas)
    await asyncio.to_thread(engine.close)
    await until(lambda: not processes())
    return facts


async def node_lost() -> Facts:
    """A node is lost with all that runs there, and comes back at its address."""
    await cluster()
    started = await asyncio.to_thread(launch)
    engine = await edge(started)
    for process in processes(("raylet/raylet",)):
        if any(SECOND in part for part in process.cmdline()):
            process.kill()
    for process in processes():
        if any(one.laddr.ip == SECOND for one in process.net_connections() if one.status == "LISTEN"):
            process.kill()
    await until(lambda: not all(replica.up for replica in engine.replicas))
    text, _ = await outcome(engine.submit(job()))
    await second_node()
    await until(lambda: all(replica.up for replica in engine.replicas), 120)
    await asyncio.to_thread(engine.close)
    return {"started": started, "text": text}


async def _ray(*arguments: str) -> None:
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *arguments]
    command += ["--disable-usage-stats", f"--object-store-memory={STORE}"]
    command += ["--include-dashboard=false"] if "--head" in arguments else []
    await asyncio.to_thread(partial(subprocess.run, command, check=True, capture_output=True))


SCENARIOS: dict[str, Callable[[], Awaitable[Facts]]] = {kind.__name__: kind for kind in (killed, node_lost)}


async def main(name: str) -> None:
    facts = await SCENARIOS[name]()
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
