"""FleetService: the replicas over gRPC, and how many there are for a scraper."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.engine.base import EngineStatus
from router.errors import Findings
from router.server.call import Call
from router.v1 import fleet_pb2 as pb
from router.v1.fleet_pb2_grpc import FleetServiceServicer

if TYPE_CHECKING:  # without replicas nothing of them is imported
    from router.replicas.membership import FleetPlan, Replacement

STATES = ("starting", "serving", "lost", "draining")
MAX_NAME_BYTES = 256
LOOK_SECONDS = 0.2  # between two looks at how far replacements are


class SeenReplica(Protocol):
    """One replica as this server finds it."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def state(self) -> str:
        """One of STATES."""
        ...

    @property
    def since(self) -> float:
        """Seconds of the epoch at which the state began."""
        ...

    @property
    def problem(self) -> str:
        """Why it is not up."""
        ...

    @property
    def stalls(self) -> str:
        """Why it gets nothing new."""
        ...

    @property
    def status(self) -> EngineStatus:
        """Of its engine."""
        ...

    @property
    def device(self) -> str:
        """Where it computes."""
        ...


class Fleet(Protocol):
    """Replicas that come and go; `router.replicas.members.Members`."""

    @property
    def fleet_plan(self) -> FleetPlan:
        """The fleet as it is to be."""
        ...

    def seen(self) -> Sequence[SeenReplica]:
        """The fleet as it is."""
        ...

    def places(self) -> tuple[int, int]:
        """Jobs that those that are up can run, and can run or let wait."""
        ...

    async def resize(self, least: int, most: int) -> FleetPlan:
        """Other bounds. Raises InvalidRequest, FailedPrecondition, Unavailable."""
        ...

    async def replace(self, names: Sequence[str]) -> FleetPlan:
        """New ones; without names for all. Raises NotFound, FailedPrecondition, Unavailable."""
        ...

    async def drain(self, name: str) -> None:
        """Have one end when it has finished. Raises NotFound, Unavailable."""
        ...


class FleetService(FleetServiceServicer):
    """What operators see of the fleet, and change."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def ListReplicas(self, request: pb.ListReplicasRequest, call: Call) -> pb.ListReplicasResponse:
        """All, whatever they do."""
        fleet_plan = self._fleet.fleet_plan
        return pb.ListReplicasResponse(
            replicas=map(replica_message, self._fleet.seen()), least=fleet_plan.least, most=fleet_plan.most
        )

    async def ResizeReplicas(
        self, request: pb.ResizeReplicasRequest, call: Call
    ) -> pb.ResizeReplicasResponse:
        """The bounds that hold from now on."""
        fleet_plan = await self._fleet.resize(request.least, request.most)
        return pb.ResizeReplicasResponse(least=fleet_plan.least, most=fleet_plan.most)

    async def ReplaceReplicas(
        self, request: pb.ReplaceReplicasRequest, call: Call
    ) -> AsyncIterator[pb.ReplaceReplicasResponse]:
        """Every step, until all are over."""
        names = check_names(request)
        fleet_plan = await self._fleet.replace(names)
        await call.begin()
        asked = names or tuple(found.old for found in fleet_plan.replacements if not found.over)
        async for found in self._followed(fleet_plan, asked):
            yield step_message(found)

    async def DrainReplica(self, request: pb.DrainReplicaRequest, call: Call) -> pb.DrainReplicaResponse:
        """It drains from now on."""
        found = Findings()
        if not found.text("name", request.name, MAX_NAME_BYTES):
            found.add("name", "must be the name of a replica")
        found.check()
        await self._fleet.drain(request.name)
        return pb.DrainReplicaResponse()

    async def _followed(self, fleet_plan: FleetPlan, names: Collection[str]) -> AsyncIterator[Replacement]:
        """Every step of these replacements from `fleet_plan` on, until all are over."""
        last: dict[str, Replacement] = {}
        while True:
            found = [one for one in fleet_plan.replacements if one.old in names]
            for one in found:
                if last.get(one.old) != one:
                    last[one.old] = one
                    yield one
            if all(one.over for one in found):
                return
            await asyncio.sleep(LOOK_SECONDS)
            fleet_plan = self._fleet.fleet_plan


def check_names(request: pb.ReplaceReplicasRequest) -> tuple[str, ...]:
    """Those that are named; none for all. Raises InvalidRequest."""
    found = Findings()
    if request.all and request.names:
        found.add("names", "are left out where all is set")
    if not request.all and not request.names:
        found.add("names", "say which replicas, or set all")
    for at, name in enumerate(request.names):
        if not found.text(f"names[{at}]", name, MAX_NAME_BYTES):
            found.add(f"names[{at}]", "must be the name of a replica")
    found.check()
    return tuple(dict.fromkeys(request.names))


def replica_message(replica: SeenReplica) -> pb.Replica:
    """As callers get it."""
    since = Timestamp()
    since.FromNanoseconds(int(replica.since * 1e9))
    status = replica.status
    return pb.Replica(
        name=replica.name,
        state=f"STATE_{replica.state.upper()}",
        since=since,
        problem=replica.problem or replica.stalls,
        running=status.running,
        waiting=status.waiting,
        adapters=len(status.host_adapters),
        device=replica.device,
    )


def step_message(found: Replacement) -> pb.ReplaceReplicasResponse:
    """As callers get it."""
    step = f"STEP_{found.step.name}"
    return pb.ReplaceReplicasResponse(old=found.old, new=found.new, step=step, problem=found.problem)


class FleetCollector(Collector):
    """Replicas by what they do, for a scraper."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        """As it is now."""
        counted = Counter(replica.state for replica in self._fleet.seen())
        found = GaugeMetricFamily("lora_router_replicas", "Replicas by state.", labels=("state",))
        for state in STATES:
            found.add_metric((state,), counted[state])
        yield found
