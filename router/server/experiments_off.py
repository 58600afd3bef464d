"""ExperimentService of a server without a store: it says how to get one."""

from __future__ import annotations

from typing import Any

from router.errors import FailedPrecondition
from router.v1 import experiments_pb2 as pb
from router.v1.experiments_pb2_grpc import ExperimentServiceServicer

TEXT = (
    "experiments are off, since the setting `experiments` is empty: set it to auto or to the URL of a "
    "database, and start the server again"
)


class ExperimentsOff(ExperimentServiceServicer):
    """Every method refuses with FailedPrecondition."""


async def _refuse(self: ExperimentsOff, request: Any, context: Any) -> None:
    raise FailedPrecondition(TEXT)


for _method in pb.DESCRIPTOR.services_by_name["ExperimentService"].methods:
    setattr(ExperimentsOff, _method.name, _refuse)
