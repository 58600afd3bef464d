"""FleetService: the replicas over gRPC, and how many there are for a scraper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.conversion import timestamp
from router.errors import Findings
from router.server.call import Call
from router.server.policy import ADMIN, OBSERVE, Policy
from router.v1 import fleet_pb2 as pb
from router.v1.fleet_pb2_grpc import FleetServiceServicer

if TYPE_CHECKING:
    from router.replicas.members import Members
    from router.replicas.replica import FleetReplica

ROWS: Mapping[str, Policy] = {
    "/router.v1.FleetService/ListReplicas": OBSERVE,
    "/router.v1.FleetService/DrainReplica": ADMIN,
}
STATES = ("starting", "serving", "lost", "draining")
MAX_NAME_BYTES = 256


class FleetService(FleetServiceServicer):
    """What operators see of the fleet, and change."""

    def __init__(self, members: Members) -> None:
        self._members = members

    async def ListReplicas(self, request: pb.ListReplicasRequest, call: Call) -> pb.ListReplicasResponse:
        """All, whatever they do."""
        return pb.ListReplicasResponse(replicas=map(replica_message, self._members.replicas.values()))

    async def DrainReplica(self, request: pb.DrainReplicaRequest, call: Call) -> pb.DrainReplicaResponse:
        """It drains from now on."""
        found = Findings()
        if not found.text("name", request.name, MAX_NAME_BYTES):
            found.add("name", "must be the name of a replica")
        found.check()
        await self._members.drain(request.name)
        return pb.DrainReplicaResponse()


def replica_message(replica: FleetReplica) -> pb.Replica:
    """As callers get it."""
    status = replica.status
    return pb.Replica(
        name=replica.name,
        state=f"STATE_{replica.state.upper()}",
        since=timestamp(replica.since),
        problem=replica.problem or replica.stalls,
        running=status.running,
        waiting=status.waiting,
        adapters=len(status.host_adapters),
        device=replica.device,
    )


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
