"""What fails, and what callers see: many rounds of streams over replicas that are processes.

Each stream is whole or ends UNAVAILABLE, never wrong, lost or silently short, and whole answers are back
within 20 s. The same with Ray: `test_ray.py`; each case once, in one process: `test_failures.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from tests.engine.contract import until
from tests.engine.test_contract import fake_adapter
from tests.replicas.processes import CabledLink, Children, ServerProcess, Standing, outcome, outcomes
from tests.server.helpers import long_stream

ROUNDS, STREAMS, BACK_SECONDS, KILLED_EDGES = 20, 24, 20.0, 5
SLOW = {"0": {"step_seconds": 0.1}}
Act = Callable[[Children, int], Awaitable[None]]


async def nothing(made: Children, at: int) -> None:
    """What is wrong is so from the beginning."""


async def kill(made: Children, at: int) -> None:
    os.kill(made.pid(at), signal.SIGKILL)


async def kill_all(made: Children, at: int) -> None:
    for number in range(len(made.links)):
        os.kill(made.pid(number), signal.SIGKILL)


async def stop(made: Children, at: int) -> None:
    os.kill(made.pid(at), signal.SIGSTOP)


async def drain(made: Children, at: int) -> None:
    await made.engine.members.drain(str(at))


def cable(made: Children, at: int) -> asyncio.Event:
    link = made.links[at]
    assert isinstance(link, CabledLink)
    return link.cable.passes


async def cut(made: Children, at: int) -> None:
    cable(made, at).clear()


async def mend(made: Children, at: int) -> None:
    cable(made, at).set()


async def another_base(made: Children, at: int) -> None:
    """Who comes in its place has another context, and does not join."""
    made.options[str(at)]["context_length"] = 99
    await kill(made, at)
    await until(lambda: "context_length" in made.engine.replicas[at].problem, 20)


async def its_base(made: Children, at: int) -> None:
    assert not made.engine.replicas[at].up
    del made.options[str(at)]["context_length"]


@dataclass(frozen=True)
class Fault:
    """What happens to replica `at` in a round, and what ends it after the streams."""

    strike: Act
    heal: Act = nothing
    tokens: int = 120
    rounds: int = ROUNDS
    loses: bool = True  # streams that have begun
    options: dict[str, Any] = field(default_factory=dict)


FAULTS = {
    "killed": Fault(kill),
    "all killed": Fault(kill_all),
    "stopped": Fault(stop),
    "partitioned": Fault(cut, mend, options={"cabled": True}),
    "drained": Fault(drain, loses=False),
    "slow by 10": Fault(
        nothing, tokens=30, rounds=10, loses=False, options={"each": {"0": {"step_seconds": 0.1}}}
    ),
    "wrong base": Fault(another_base, its_base),
}


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", FAULTS)
async def test_no_answer_is_wrong_lost_or_silently_short(started: Any, how: str) -> None:
    fault = FAULTS[how]
    made: Children = await started(3, 2.0, **fault.options)
    adapter = fake_adapter("a")
    await made.engine.load(adapter)
    length = {"min_tokens": fault.tokens, "max_tokens": fault.tokens}

    async def streams() -> list[str]:
        texts = await outcomes(made.engine, STREAMS, adapter=adapter.digest, **length)
        return ["whole" if text == whole else text for text in texts]

    whole = await outcome(made.engine, adapter=adapter.digest, **length)
    assert whole.startswith(f"[{adapter.digest[:8]}]")
    lost = 0
    for turn in range(fault.rounds):
        await until(lambda: all(replica.up for replica in made.engine.replicas), 60)
        asked = asyncio.ensure_future(streams())
        await asyncio.sleep(0.1 + 0.05 * (turn % 10))  # somewhere in the streams
        await fault.strike(made, turn % 3)
        struck = time.monotonic()
        texts = await asked
        assert set(texts) <= {"whole", "Unavailable"}, turn
        lost += texts.count("Unavailable")
        while set(await streams()) != {"whole"}:
            assert time.monotonic() - struck < BACK_SECONDS, turn
        await fault.heal(made, turn % 3)
    assert fault.loses or lost == 0


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_killed_edge_costs_only_its_own_streams(standing_processes: Standing) -> None:
    """Two edges over the same replicas, which end the jobs of the one that is killed."""
    for at in (0, 1):
        standing_processes.replica(at)
    stays = await standing_processes.edge()
    await stays.has_both()

    async def stream(edge: ServerProcess) -> str:
        try:
            *_, last = [m async for m in edge.inference.StreamGenerate(long_stream(100))]
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "whole" if last.finished.usage.completion_tokens == 100 else str(last)

    for turn in range(KILLED_EDGES):
        goes = await standing_processes.edge()
        await goes.has_both()
        kept, lost = ([asyncio.ensure_future(stream(edge)) for _ in range(STREAMS)] for edge in (stays, goes))
        await asyncio.sleep(0.2 + 0.3 * turn)
        goes.process.kill()
        assert set(await asyncio.gather(*lost)) <= {"whole", "UNAVAILABLE"}
        assert set(await asyncio.gather(*kept)) == {"whole"}

        for _ in range(100):
            if not await stays.load():
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("replicas still run jobs of an edge that was killed 10 s ago")
