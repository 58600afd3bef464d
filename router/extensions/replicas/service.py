"""FleetService: the replicas over gRPC, and how many there are for a scraper."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.errors import Findings
from router.server.call import Call
from router.v1 import fleet_pb2 as pb
from router.v1.fleet_pb2_grpc import FleetServiceServicer

if TYPE_CHECKING:
    from router.replicas.members import Members
    from router.replicas.membership import FleetPlan, MemberReplacement
    from router.replicas.replica import FleetReplica

STATES = ("starting", "serving", "lost", "draining")
MAX_NAME_BYTES = 256
LOOK_SECONDS = 0.2  # between two looks at how far replacements are


class FleetService(FleetServiceServicer):
    """What operators see of the fleet, and change."""

    def __init__(self, members: Members) -> None:
        self._members = members

    async def ListReplicas(self, request: pb.ListReplicasRequest, call: Call) -> pb.ListReplicasResponse:
        """All, whatever they do."""
        fleet_plan = self._members.fleet_plan
        return pb.ListReplicasResponse(
            replicas=map(replica_message, self._members.replicas.values()),
            least=fleet_plan.least,
            most=fleet_plan.most,
        )

    async def ResizeReplicas(
        self, request: pb.ResizeReplicasRequest, call: Call
    ) -> pb.ResizeReplicasResponse:
        """The bounds that hold from now on."""
        fleet_plan = await self._members.resize(request.least, request.most)
        return pb.ResizeReplicasResponse(least=fleet_plan.least, most=fleet_plan.most)

    async def ReplaceReplicas(
        self, request: pb.ReplaceReplicasRequest, call: Call
    ) -> AsyncIterator[pb.ReplaceReplicasResponse]:
        """Every step, until all are over."""
        names = check_names(request)
        fleet_plan = await self._members.replace(names)
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
        await self._members.drain(request.name)
        return pb.DrainReplicaResponse()

    async def _followed(
        self, fleet_plan: FleetPlan, names: Collection[str]
    ) -> AsyncIterator[MemberReplacement]:
        """Every step of these replacements from `fleet_plan` on, until all are over."""
        last: dict[str, MemberReplacement] = {}
        while True:
            found = [one for one in fleet_plan.replacements if one.old in names]
            for one in found:
                if last.get(one.old) != one:
                    last[one.old] = one
                    yield one
            if all(one.over for one in found):
                return
            await asyncio.sleep(LOOK_SECONDS)
            fleet_plan = self._members.fleet_plan


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


def replica_message(replica: FleetReplica) -> pb.Replica:
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


def step_message(found: MemberReplacement) -> pb.ReplaceReplicasResponse:
    """As callers get it."""
    step = f"STEP_{found.step.name}"
    return pb.ReplaceReplicasResponse(old=found.old, new=found.new, step=step, problem=found.problem)


class FleetCollector(Collector):
    """Replicas by what they do, for a scraper."""

    def __init__(self, members: Members) -> None:
        self._members = members

    def collect(self) -> Iterator[Metric]:
        """As it is now."""
        counted: Counter[str] = Counter(replica.state for replica in tuple(self._members.replicas.values()))
        found = GaugeMetricFamily("lora_router_replicas", "Replicas by state.", labels=("state",))
        for state in STATES:
            found.add_metric((state,), counted[state])
        yield found
