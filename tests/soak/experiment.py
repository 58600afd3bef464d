"""An experiment that runs during a soak: two versions of the shared adapter."""

from __future__ import annotations

from router.client import ArmSpec, Client, Spec, metric
from router.types import AdapterRef
from tests.soak.server import Server
from tests.soak.world import ADMIN, SHARED, VERSIONS, World

NAME = "two-versions"
ALPHA = 1e-6  # the outcomes are drawn by lot: nothing is to be found


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
        client.experiments.create(NAME, spec)
        client.experiments.start(NAME)
