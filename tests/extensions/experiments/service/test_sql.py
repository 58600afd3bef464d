"""One pass through every method with a real database behind it, which no call reaches on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router.extensions.experiments.model import ArmSpec, Mode, SegmentSpec
from router.extensions.experiments.store.store import ExperimentStore
from router.v1 import experiments_pb2 as pb
from tests.extensions.experiments.service.lab import NAME, answer, create, experimenting, running
from tests.extensions.experiments.store.postgres import Server, binaries
from tests.server.helpers import Connect, Start, ask, failure

pytestmark = pytest.mark.slow


class WatchedStore(ExperimentStore):
    """Notes the calls that are made where an event loop runs: there they would hold up every token."""

    seen: set[str]
    blocking: set[str]

    def __init__(self, url: str) -> None:
        self.seen, self.blocking = set(), set()
        super().__init__(url)

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        public = not name.startswith("_") and name in vars(ExperimentStore)
        return partial(self._noted, name, found) if public and callable(found) else found

    def _noted(self, name: str, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        self.seen.add(name)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return call(*args, **named)
        self.blocking.add(name)
        return call(*args, **named)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/experiments.db"
        return
    where = binaries()
    if where is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    server = Server(where, "-c fsync=off")
    yield server.url()
    server.close()


@pytest.fixture
async def lab(
    url: str, fakes: SimpleNamespace, start_server: Start, connect: Connect
) -> AsyncIterator[SimpleNamespace]:
    store = await asyncio.to_thread(WatchedStore, url)
    async with experimenting(store, fakes, start_server, connect) as stubs:
        yield stubs
    assert {"create", "get", "list", "replace", "record", "expose", "data", "trail", "delete"} <= store.seen
    assert store.blocking == set()


async def test_the_holdout_is_read_out_beside_a_split_by_segments(
    url: str, fakes: SimpleNamespace, start_server: Start, connect: Connect
) -> None:
    store = await asyncio.to_thread(ExperimentStore, url)
    async with experimenting(store, fakes, start_server, connect, holdout=0.5) as lab:
        await running(lab, segments=(SegmentSpec("country", ("é0", "é1")),))
        arms = (ArmSpec("out", 0.5), ArmSpec("in", 0.5))
        nothing = {"route": "", "arms": arms, "control": "out", "mode": Mode.HOLDOUT}
        started = await running(lab, "worth", **nothing)
        assert list(started.warnings) == []
        asked = [
            ask("a medical question", routing={"unit": f"user-{i}"}, labels={"country": f"é{i % 2}"})
            for i in range(24)
        ]
        answers = [await lab.inference.Generate(one) for one in asked]
        outcomes = [pb.Outcome(response_id=a.response_id, metric="solved", value=1) for a in answers]
        call = lab.experiments.RecordOutcomes()
        await call.write(pb.RecordOutcomesRequest(sequence=1, outcomes=outcomes))
        assert set((await call.read()).statuses) == {pb.OUTCOME_STATUS_COUNTED}
        await call.done_writing()
        report = await lab.experiments.GetReport(pb.GetReportRequest(name="experiments/worth"))
        units = {one.arm: one.units for one in report.numbers}
        held = sum(not a.decision.experiment for a in answers)
        assert units == {"out": held, "in": 24 - held}
        assert 0 < held < 24
        assert not [check.name for check in report.checks if check.failed]
        report = await lab.experiments.GetReport(pb.GetReportRequest(name=NAME))
        assert sum(one.units for one in report.numbers) == 24 - held
        assert lab.live.counts.lost == {}


async def test_every_method(lab: SimpleNamespace) -> None:
    service = lab.experiments
    await running(lab, enrolment=0.99)
    answers = [await answer(lab, f"user-{i}") for i in range(12)]
    shown = [a for a in answers if a.decision.experiment == "trial"]
    assert len(shown) > 6
    first = pb.Outcome(response_id=shown[0].response_id, metric="solved", value=1, idempotency_key="k")
    for status in (pb.OUTCOME_STATUS_COUNTED, pb.OUTCOME_STATUS_DUPLICATE):
        assert (await service.RecordOutcome(pb.RecordOutcomeRequest(outcome=first))).status == status
    call = service.RecordOutcomes()
    rest = [pb.Outcome(response_id=a.response_id, metric="solved", value=0) for a in shown[1:]]
    await call.write(
        pb.RecordOutcomesRequest(sequence=4, outcomes=[*rest, pb.Outcome(response_id="nope", metric="x")])
    )
    acknowledged = await call.read()
    assert acknowledged.sequence == 4
    counted, unknown = pb.OUTCOME_STATUS_COUNTED, pb.OUTCOME_STATUS_UNKNOWN
    assert list(acknowledged.statuses) == [counted] * len(rest) + [unknown]
    await call.done_writing()

    report = await service.GetReport(pb.GetReportRequest(name=NAME))
    assert sum(n.units for n in report.numbers) == len(shown)
    mask = {"paths": ["enrolment"]}
    wider = pb.UpdateExperimentRequest(experiment={"name": NAME, "enrolment": 1.0}, update_mask=mask)
    assert len((await service.UpdateExperiment(wider)).experiment.phases) == 1
    edit = pb.UpdateExperimentRequest(
        experiment={"name": NAME, "alpha": 0.01}, update_mask={"paths": ["alpha"]}
    )
    edited = (await service.UpdateExperiment(edit)).experiment
    assert [p.number for p in edited.phases] == [1, 2]
    edit.experiment.etag = "stale"
    edit.experiment.alpha = 0.02
    assert (await failure(service.UpdateExperiment(edit))).code().name == "ABORTED"
    promoted = await service.PromoteArm(
        pb.PromoteArmRequest(name=NAME, arm="new", force=True, reason="why not")
    )
    assert promoted.default_version.endswith("1.1.0")
    back = await service.RollBackPromotion(pb.RollBackPromotionRequest(name=NAME))
    assert back.default_version.endswith("1.0.0")
    stopped = await service.StopExperiment(pb.StopExperimentRequest(name=NAME))
    assert stopped.experiment.state == pb.Experiment.STATE_STOPPED
    audit = (await service.GetReport(pb.GetReportRequest(name=NAME))).audit
    assert [a.act for a in audit] == ["create", "start", "widen", "new phase", "promote", "roll back"]
    await service.CreateExperiment(create("another"))
    listed = await service.ListExperiments(pb.ListExperimentsRequest())
    assert [e.name for e in listed.experiments] == ["experiments/another", NAME]
    await service.DeleteExperiment(pb.DeleteExperimentRequest(name=NAME))
    assert (
        await failure(service.GetExperiment(pb.GetExperimentRequest(name=NAME)))
    ).code().name == "NOT_FOUND"
