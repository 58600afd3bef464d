"""Many threads load and unload one adapter while others ask for it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from router.client import Client, ClientError
from tests.soak.sampling import samples
from tests.soak.series import least
from tests.soak.server import Callers, Server, serving
from tests.soak.world import ADMIN, SHARED, VERSIONS, World

ASKING = 8  # clients that ask meanwhile, a quarter of them for this adapter
WARM_ROUNDS = 64
IDLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Storm:
    """What it did to the server."""

    acts: int
    errors: Sequence[str]
    counts: Counter[str]  # of those who asked
    problems: Sequence[str]
    leases: float  # left
    growth_mb: float
    exit_code: int


def storm(world: World, threads: int, rounds: int) -> Storm:
    """So many threads, each of which loads and unloads so many times. Growth is from after a small one on."""
    world.lay_out()
    with serving(world, "--joint") as server:
        _beside_callers(world, server, threads, min(rounds, WARM_ROUNDS))
        before = _idle(server)
        callers, acts, errors = _beside_callers(world, server, threads, rounds)
        after = _idle(server)
        code = server.stop()
    growth = after["rss_mb"] - before["rss_mb"]
    return Storm(acts, errors, callers.counts, callers.problems, after["leases"], growth, code)


def _beside_callers(
    world: World, server: Server, threads: int, rounds: int
) -> tuple[Callers, int, list[str]]:
    callers = Callers.begin(world, server, "--mix", "answers", "--clients", ASKING)
    acts, errors = _all(world, server, threads, rounds)
    callers.end()
    return callers, acts, errors


def _idle(server: Server) -> dict[str, float]:
    time.sleep(IDLE_SECONDS)
    return least(samples(server, 2.0, 0.5))


def _all(world: World, server: Server, threads: int, rounds: int) -> tuple[int, list[str]]:
    world.journal.read()
    token, name = world.journal.entry(ADMIN).token, f"{SHARED}@{VERSIONS[SHARED][-1]}"
    done: list[int] = []
    errors: list[str] = []

    def work() -> None:
        with Client(server.address, token=token, timeout=120) as client:
            for _ in range(rounds):
                for act in (client.adapters.load, client.adapters.unload):
                    try:
                        act(name)
                    except ClientError as error:
                        errors.append(f"{error.reason} {error}")
                done.append(2)

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(done), errors
