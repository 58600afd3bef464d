"""Changes of experiments over gRPC: edits, promotion, deletion."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from router.experiments.wire.plans import plan_message
from router.v1 import experiments_pb2 as pb
from tests.experiments.plans import plan
from tests.experiments.service.lab import NAME, answer, create, fields_of, refused, running

MEDICAL, NEWER = "adapters/medical/versions/1.0.0", "adapters/medical/versions/1.1.0"


def update(paths: list[str], etag: str = "", **fields: Any) -> pb.UpdateExperimentRequest:
    message = plan_message(plan(**fields))
    message.name, message.etag = NAME, etag
    return pb.UpdateExperimentRequest(experiment=message, update_mask={"paths": paths})


async def test_two_on_one_route(lab: SimpleNamespace) -> None:
    await running(lab)
    await lab.experiments.CreateExperiment(create("another"))
    start = pb.StartExperimentRequest(name="experiments/another")
    found = await refused(lab.experiments.StartExperiment(start), "FAILED_PRECONDITION")
    assert "namespace" in found["text"]
    assert found["PreconditionFailure"].violations[0].subject == "experiments/another"


async def test_edits(lab: SimpleNamespace) -> None:
    old = await running(lab, enrolment=0.5)
    wider = (
        await lab.experiments.UpdateExperiment(update(["enrolment"], old.etag, enrolment=0.9))
    ).experiment
    assert (len(wider.phases), wider.phases[0].enrolment) == (1, 0.9)
    assert wider.phases[0].variant_salt == old.phases[0].variant_salt
    found = await refused(
        lab.experiments.UpdateExperiment(update(["alpha"], old.etag, alpha=0.01)), "ABORTED"
    )
    assert found["ErrorInfo"].reason == "STALE_ETAG"
    redefined = update(["primary"])
    redefined.experiment.primary.kind = pb.Experiment.Metric.KIND_MEAN
    edited = (await lab.experiments.UpdateExperiment(redefined)).experiment
    assert (len(edited.phases), edited.primary.kind, edited.enrolment) == (
        2,
        redefined.experiment.primary.kind,
        0.9,
    )
    assert edited.phases[1].variant_salt != edited.phases[0].variant_salt
    fewer = update(["arms"])
    fewer.experiment.arms[1].name = "newest"
    found = await refused(lab.experiments.UpdateExperiment(fewer), "FAILED_PRECONDITION")
    assert "arm new cannot be removed" in found["text"]
    found = await refused(
        lab.experiments.UpdateExperiment(update(["alpha", "control"], alpha=9.0, control="x")),
        "INVALID_ARGUMENT",
    )
    assert sorted(fields_of(found)) == ["experiment.alpha", "experiment.control"]
    found = await refused(lab.experiments.UpdateExperiment(update(["state", "colour"])), "INVALID_ARGUMENT")
    assert fields_of(found) == ["update_mask", "update_mask"]


async def test_an_arm_more_is_told_in_the_audit_trail(lab: SimpleNamespace) -> None:
    await running(lab)
    more = update(["*"])
    more.experiment.arms[1].weight = 0.25
    more.experiment.arms.add(name="base", weight=0.25)
    assert len((await lab.experiments.UpdateExperiment(more)).experiment.phases) == 2
    last = (await lab.experiments.GetReport(pb.GetReportRequest(name=NAME))).audit[-1]
    assert (last.act, last.actor, last.reason) == ("new phase", "127.0.0.1", "edited: arms")
    after = last.detail["fields"]["arms"]["after"]
    assert [(arm["name"], arm["weight"]) for arm in after] == [("old", 0.5), ("new", 0.25), ("base", 0.25)]


async def test_delete(lab: SimpleNamespace) -> None:
    experiment = await running(lab)
    request = pb.DeleteExperimentRequest(name=NAME)
    await refused(lab.experiments.DeleteExperiment(request), "FAILED_PRECONDITION")
    await lab.experiments.StopExperiment(pb.StopExperimentRequest(name=NAME))
    stale = pb.DeleteExperimentRequest(name=NAME, etag=experiment.etag)
    await refused(lab.experiments.DeleteExperiment(stale), "ABORTED")
    await lab.experiments.DeleteExperiment(request)
    await refused(lab.experiments.GetExperiment(pb.GetExperimentRequest(name=NAME)), "NOT_FOUND")


async def test_promote_and_back(lab: SimpleNamespace) -> None:
    await running(lab)
    promote = pb.PromoteArmRequest(name=NAME, arm="new")
    found = await refused(lab.experiments.PromoteArm(promote), "FAILED_PRECONDITION")
    assert found["ErrorInfo"].metadata["decision"] == "undecided"
    promote.force, promote.reason = True, "a release"
    done = await lab.experiments.PromoteArm(promote)
    assert (done.default_version, done.previous_version) == (NEWER, MEDICAL)
    assert (done.experiment.state, done.experiment.promoted) == (pb.Experiment.STATE_STOPPED, "new")
    assert (await answer(lab, "anna")).decision.adapter == NEWER
    back = await lab.experiments.RollBackPromotion(pb.RollBackPromotionRequest(name=NAME, reason="worse"))
    assert (back.default_version, back.experiment.promoted) == (MEDICAL, "")
    assert (await answer(lab, "anna")).decision.adapter == MEDICAL
    report = await lab.experiments.GetReport(pb.GetReportRequest(name=NAME))
    acts = [(a.act, a.actor, a.reason) for a in report.audit]
    assert acts[-2:] == [("promote", "127.0.0.1", "a release"), ("roll back", "127.0.0.1", "worse")]
    assert report.audit[-2].detail["forced"] is True


async def test_two_changes_at_once_are_one_after_the_other(lab: SimpleNamespace) -> None:
    await lab.experiments.CreateExperiment(create())
    start = pb.StartExperimentRequest(name=NAME)
    both = await asyncio.gather(*(lab.experiments.StartExperiment(start) for _ in range(8)))
    assert {len(one.experiment.phases) for one in both} == {1}
