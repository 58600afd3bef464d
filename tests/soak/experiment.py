"""An experiment that runs during a soak: two versions of the shared adapter."""

from __future__ import annotations

import itertools

from router.client import Client
from router.extensions.experiments.client import ArmSpec, Experiments, Outcome, Spec, metric
from router.types import AdapterRef
from tests.soak.server import Server
from tests.soak.world import ADMIN, SHARED, VERSIONS, World

NAME = "two-versions"
ALPHA = 1e-6  # the outcomes are drawn by lot: nothing is to be found
FULL_BYTES = 96 << 20  # of the database: more than SQLite keeps of it in memory
AT_ONCE = 20_000


def begin_experiment(world: World, server: Server) -> None:
    """Create and start it."""
    world.journal.read()
    old, new = VERSIONS[SHARED]
    spec = Spec(
        hypothesis="the versions solve as many problems",
        route=SHARED,
        arms=(
            ArmSpec("old", 0.5, AdapterRef(SHARED, old)),
            ArmSpec("new", 0.5, AdapterRef(SHARED, new)),
        ),
        control="old",
        primary=metric("solved"),
        alpha=ALPHA,
        window=600.0,
    )
    with Client(server.address, token=world.journal.entry(ADMIN).token) as client:
        Experiments(client).create(NAME, spec)
        Experiments(client).start(NAME)


def fill_store(world: World, server: Server, least: int = FULL_BYTES) -> int:
    """Record outcomes of units that nobody knows until the database has `least` bytes; returns how many.

    The store keeps up to 64 MiB of its file in memory, so that a process grows with its database until then.
    """
    numbers = itertools.count()
    with Client(server.address, token=world.journal.entry(ADMIN).token) as client:
        while store_bytes(world) < least:
            outcomes = (
                Outcome("solved", 1.0, experiment=NAME, unit=f"past-{number}", key=f"past-{number}")
                for number in itertools.islice(numbers, AT_ONCE)
            )
            for recorded in Experiments(client).record_outcomes(outcomes):
                if recorded.error:
                    raise RuntimeError(f"an outcome was refused: {recorded.error}")
    return next(numbers)


def store_bytes(world: World) -> int:
    """Of the database, what is still to be moved into it left out."""
    return sum(file.stat().st_size for file in (world.folder / "state").rglob("experiments.db"))
