"""No call of the store is made on the event loop: it would hold up every token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from router.experiments.store.store import ExperimentStore
from router.v1 import experiments_pb2 as pb
from tests.experiments.memory_store import MemoryStore
from tests.experiments.service.lab import NAME, answer, create, experimenting, running
from tests.server.helpers import Connect, Start


class Watching(MemoryStore):
    """Notes the calls that are made where an event loop runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.blocking: set[str] = set()

    def __getattribute__(self, name: str):
        found = super().__getattribute__(name)
        return partial(self._noted, found) if name in vars(ExperimentStore) and callable(found) else found

    def _noted(self, call: Callable[..., Any], *args: Any) -> Any:
        self.seen.add(call.__name__)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return call(*args)
        self.blocking.add(call.__name__)
        return call(*args)


@pytest.mark.slow
async def test_the_store_is_called_from_threads(
    fakes: SimpleNamespace, start_server: Start, connect: Connect
) -> None:
    store = Watching()
    async with experimenting(store, fakes, start_server, connect) as lab:
        service = lab.experiments
        await running(lab)
        rid = (await answer(lab, "anna")).response_id
        outcome = pb.Outcome(response_id=rid, metric="solved", value=1)
        await service.RecordOutcome(pb.RecordOutcomeRequest(outcome=outcome))
        call = service.RecordOutcomes()
        await call.write(pb.RecordOutcomesRequest(outcomes=[outcome]))
        await call.read()
        await call.done_writing()
        await service.GetExperiment(pb.GetExperimentRequest(name=NAME))
        await service.ListExperiments(pb.ListExperimentsRequest())
        await service.GetReport(pb.GetReportRequest(name=NAME))
        edit = pb.Experiment(name=NAME, alpha=0.01)
        request = pb.UpdateExperimentRequest(experiment=edit, update_mask={"paths": ["alpha"]})
        await service.UpdateExperiment(request)
        await service.PromoteArm(pb.PromoteArmRequest(name=NAME, arm="new", force=True))
        await service.RollBackPromotion(pb.RollBackPromotionRequest(name=NAME))
        await service.CreateExperiment(create("another"))
        await service.StopExperiment(pb.StopExperimentRequest(name=NAME))
        await service.DeleteExperiment(pb.DeleteExperimentRequest(name=NAME))
    assert {"create", "get", "list", "replace", "record", "expose", "data", "trail", "delete"} <= store.seen
    assert store.blocking == set()
