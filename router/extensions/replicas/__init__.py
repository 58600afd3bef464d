"""FleetService, where the engine runs in replicas."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from router.hookspecs import RegisterService
from router.markers import hookimpl

if TYPE_CHECKING:
    from router.replicas.members import Members
    from router.server.admission import Admission
    from router.server.app import ServerApp

PLACES_SECONDS = 0.5  # between two looks at how many replicas are up
NONE = (
    "this server has one engine, in its own process: start it with `serve --set replicas=N` to have replicas"
)


def members_of(server: ServerApp) -> Members | None:
    """The replicas that the engine is over; None for an engine in this process."""
    found: Members | None = getattr(server.engine, "members", None)
    return found


@hookimpl
async def on_startup(server: ServerApp) -> None:
    """Count them, and follow their places."""
    if (members := members_of(server)) is None:
        return
    from router.extensions.replicas.service import FleetCollector

    server.metrics.registry.register(FleetCollector(members))
    server.follow("the places of replicas", partial(follow_places, members, server.admission))


@hookimpl
def register_service(register: RegisterService, server: ServerApp) -> None:
    """FleetService; without replicas it refuses."""
    from router.extensions.replicas.service import ROWS, FleetService
    from router.server.policy import ServiceSpec
    from router.server.registration import Refusing
    from router.v1.fleet_pb2_grpc import add_FleetServiceServicer_to_server

    members = members_of(server)
    servicer = FleetService(members) if members is not None else Refusing(NONE)
    register(ServiceSpec(add_FleetServiceServicer_to_server, servicer, ROWS))


async def follow_places(members: Members, admission: Admission) -> None:
    """As many are let in as the replicas that are up have places for."""
    while True:
        running, places = members.places()
        admission.resize(places, running)
        await asyncio.sleep(PLACES_SECONDS)
