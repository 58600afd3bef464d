"""ExperimentService of a server without experiments: it says how to get them."""

from __future__ import annotations

from typing import Any

from router import optional
from router.errors import FailedPrecondition
from router.v1 import experiments_pb2 as pb
from router.v1.experiments_pb2_grpc import ExperimentServiceServicer

OFF = (
    "experiments are off, since the setting `experiments` is empty: set it to auto or to the URL of a "
    "database, and start the server again"
)


class ExperimentsAbsent(ExperimentServiceServicer):
    """Every method refuses with FailedPrecondition."""


async def _refuse(self: ExperimentsAbsent, request: Any, context: Any) -> None:
    raise FailedPrecondition(OFF if optional.has_experiments() else optional.NOT_INSTALLED)


for _method in pb.DESCRIPTOR.services_by_name["ExperimentService"].methods:
    setattr(ExperimentsAbsent, _method.name, _refuse)
