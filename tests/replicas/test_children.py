"""Replicas as processes: `lora-router replica` on the fake engine, killed, stopped, drained, found."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from router.engine.fake import FakeEngine
from router.errors import ConfigError, Unavailable
from router.replicas import members
from router.replicas.children import Child, ChildLink, devices
from router.replicas.engine import FleetEngine
from router.replicas.link import Link, LinkLost, Security
from router.replicas.membership import FixedMembership, FoundMembership
from router.server.admission import PhaseGate, ServerPhase
from router.server.health import ServerHealth
from tests.engine.contract import answer, job, until
from tests.engine.test_contract import fake_adapter
from tests.replicas.processes import OWN, SECRET, free_port, outcomes

pytestmark = pytest.mark.slow


async def test_one_is_killed_under_load_and_another_takes_its_place(started: Any) -> None:
    made = await started()
    adapter = fake_adapter("a")
    await made.engine.load(adapter)
    asked = asyncio.ensure_future(outcomes(made.engine, 24, min_tokens=150, max_tokens=150))
    await until(lambda: made.engine.status().running > 8)
    old = made.pid(0)
    os.kill(old, signal.SIGKILL)
    (whole,) = {text for text in await asked if text != "Unavailable"}
    assert len(whole.split()) > 3
    await until(lambda: made.engine.replicas[0].up and made.pid(0) != old, 20)
    assert set(await outcomes(made.engine, 8, adapter=adapter.digest)) == {
        f"[{adapter.digest[:8]}] one two three"
    }


@pytest.mark.alone
async def test_one_that_is_stopped_does_not_make_the_edge_unhealthy(started: Any) -> None:
    """A hung replica, while another is well: its requests move, and the server stays SERVING."""
    made = await started(2, 1.5)
    lifecycle = PhaseGate()
    lifecycle.phase = ServerPhase.SERVING
    health = ServerHealth(lifecycle, made.engine.status, 1.5, lambda: True)
    old = made.pid(0)
    os.kill(old, signal.SIGSTOP)
    asked = asyncio.ensure_future(outcomes(made.engine, 8))
    seen = []
    while made.links[0].child is None or made.pid(0) == old or not made.engine.replicas[0].up:
        seen.append(health.ready)
        await asyncio.sleep(0.05)
    assert all(seen)
    assert len(seen) > 10
    assert set(await asked) == {"[base] one two three"}


async def test_one_whose_engine_makes_no_step_ends_itself(
    capfd: pytest.CaptureFixture[str],
) -> None:
    own = OWN | {"stall_seconds": 0.3}
    child = Child("fake", own, fake={"step_seconds": 1000.0})
    link = Link("0", await asyncio.to_thread(child.address), Security(child.secret))
    engine = FleetEngine(FixedMembership([link]), FakeEngine, max_running=8, max_queue=64)
    await asyncio.to_thread(engine.start)
    with pytest.raises(Unavailable):
        await answer(engine, job(engine))
    assert await asyncio.to_thread(child.process.wait, 10) == 1
    assert "Timeout" in capfd.readouterr().err  # and where its threads were
    await asyncio.to_thread(engine.close)
    child.end()


def test_a_child_ends_with_its_edge() -> None:
    code = """
import sys, time
from router.replicas.children import Child
from tests.replicas.processes import OWN
child = Child("fake", OWN)
child.address()
print(child.process.pid, flush=True)
time.sleep(60)
"""
    edge = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert edge.stdout is not None
    pid = int(edge.stdout.readline())
    edge.kill()
    edge.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    edge.stdout.close()


def test_why_a_child_does_not_start_is_the_edges_error() -> None:
    with pytest.raises(ConfigError, match=r"engine .* is 'absent', and there are torch"):
        ChildLink("0", "absent", OWN).start()
    with pytest.raises(LinkLost, match=r"has not started within 0\.1 s"):
        ChildLink("0", "fake", OWN, 0.1, fake={"start_seconds": 30.0}).start()


async def test_one_that_drains_loses_nothing_and_another_takes_its_place(started: Any) -> None:
    made = await started()
    adapters = [fake_adapter(f"a{i}") for i in range(4)]
    for adapter in adapters:
        await made.engine.load(adapter)
    asked = asyncio.ensure_future(outcomes(made.engine, 16, min_tokens=150, max_tokens=150))
    await until(lambda: made.engine.status().running > 8)
    old = made.pid(1)
    await made.engine.members.drain("1")
    while not asked.done() or made.links[1].child is None or made.pid(1) == old:
        adapter = adapters[0]
        assert (
            await outcomes(made.engine, 2, adapter=adapter.digest)
            == [f"[{adapter.digest[:8]}] one two three"] * 2
        )
    assert "Unavailable" not in await asked
    await until(lambda: made.engine.replicas[1].up, 20)


@pytest.fixture
def standing() -> Iterator[Any]:
    """`standing(port)`: a replica that somebody else has started."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(port: int, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.replicas.standing", "--listen", f"127.0.0.1:{port}", *more]
        if "--metrics-listen" not in more:
            command += ["--metrics-listen", ""]
        environment = os.environ | {"LORA_ROUTER_REPLICA_SECRET": SECRET}
        processes.append(subprocess.Popen(command, env=environment))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


async def test_replicas_are_found_where_others_start_them(
    standing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "MOMENT_SECONDS", 0.1)
    one, two, page = free_port(), free_port(), free_port()
    first = standing(one, "--metrics-listen", f"127.0.0.1:{page}")
    found = FoundMembership([f"127.0.0.1:{one}", f"dns:///localhost:{two}"], Security(SECRET))
    edges = [FleetEngine(found, FakeEngine, max_running=8, max_queue=64) for _ in range(2)]
    await asyncio.gather(*(asyncio.to_thread(edge.start) for edge in edges))
    for edge in edges:
        assert await outcomes(edge, 4) == ["[base] one two three"] * 4  # by the one that is there
    standing(two)
    for edge in edges:
        await until(lambda edge=edge: sum(replica.up for replica in edge.replicas) == 2, 20)
    text = await asyncio.to_thread(lambda: urlopen(f"http://127.0.0.1:{page}/metrics").read().decode())
    assert "\nlora_router_requests_waiting 0.0" in text
    asked = asyncio.gather(*(outcomes(edge, 16, min_tokens=150, max_tokens=150) for edge in edges))
    await until(lambda: all(edge.status().running > 8 for edge in edges))
    first.terminate()  # drains: replaced under load
    assert all("Unavailable" not in texts for texts in await asked)
    assert await asyncio.to_thread(first.wait, 10) == 0
    await asyncio.to_thread(edges[0].close)  # an edge that ends leaves replicas to others
    assert await outcomes(edges[1], 4) == ["[base] one two three"] * 4
    await asyncio.to_thread(edges[1].close)


def test_a_replica_is_not_open_to_other_machines_by_accident() -> None:
    command = [sys.executable, "-m", "router.cli", "replica", "--engine", "fake", "--listen", "0.0.0.0:0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "can be reached from other machines" in done.stderr


def test_devices_are_dealt_out() -> None:
    assert devices({"CUDA_VISIBLE_DEVICES": "2,GPU-x"}) == ["2", "GPU-x"]
    assert devices({"CUDA_VISIBLE_DEVICES": ""}) == []
    with suppress(FileNotFoundError):
        assert devices({}, Path("/nowhere")) == []
