"""Experiments over gRPC: plans, sizes, changes and reports."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from router.errors import StoreDown
from router.extensions.experiments.messages import plan_message
from router.extensions.experiments.model import Aggregate, Kind, MetricSpec, SegmentSpec
from router.v1 import adapters_pb2
from router.v1 import experiments_pb2 as pb
from tests.extensions.experiments.plans import SOLVED, plan
from tests.extensions.experiments.service.lab import NAME, answer, create, fields_of, refused, running
from tests.fakes import adapter
from tests.server.helpers import ask

pytestmark = pytest.mark.slow

MEDICAL, NEWER = "adapters/medical/versions/1.0.0", "adapters/medical/versions/1.1.0"


async def test_create_get_list(lab: SimpleNamespace) -> None:
    made = (await lab.experiments.CreateExperiment(create())).experiment
    assert (made.name, made.state, made.route) == (NAME, pb.Experiment.STATE_DRAFT, "adapters/medical")
    assert [a.adapter for a in made.arms] == [MEDICAL, NEWER]
    assert made.etag
    got = (await lab.experiments.GetExperiment(pb.GetExperimentRequest(name=NAME))).experiment
    assert got == made
    await lab.experiments.CreateExperiment(create("another"))
    listed = await lab.experiments.ListExperiments(pb.ListExperimentsRequest())
    assert [e.name for e in listed.experiments] == ["experiments/another", NAME]
    assert lab.store.trail("trial")[0].actor == "127.0.0.1"


async def test_pages(lab: SimpleNamespace) -> None:
    for i in range(5):
        await lab.experiments.CreateExperiment(create(f"trial-{i}"))
    names, token = [], ""
    while True:
        request = pb.ListExperimentsRequest(page_size=2, page_token=token)
        listed = await lab.experiments.ListExperiments(request)
        names += [e.name for e in listed.experiments]
        if not (token := listed.next_page_token):
            break
    assert names == [f"experiments/trial-{i}" for i in range(5)]
    adapters = adapters_pb2.ListAdaptersRequest(page_size=1)
    other = (await lab.adapters.ListAdapters(adapters)).next_page_token
    for bad in ({"page_token": "x"}, {"page_size": -1}, {"page_token": other}, {"page_token": "x" * 2000}):
        call = lab.experiments.ListExperiments(pb.ListExperimentsRequest(**bad))
        assert fields_of(await refused(call, "INVALID_ARGUMENT")) == [next(iter(bad))]


async def test_every_bad_field_is_named(lab: SimpleNamespace) -> None:
    request = create(control="nobody", alpha=3.0, enrolment=math.nan, primary=SOLVED)
    request.experiment.arms[0].weight = math.inf
    request.experiment.arms[1].adapter = "adapters/dental/versions/1"
    request.experiment.primary.kind = 0
    request.experiment.guardrails.add(name="error", kind=pb.Experiment.Metric.KIND_PROPORTION)
    found = await refused(lab.experiments.CreateExperiment(request), "INVALID_ARGUMENT")
    assert set(fields_of(found)) == {
        "experiment.control",
        "experiment.alpha",
        "experiment.enrolment",
        "experiment.arms[0].weight",
        "experiment.arms[1].adapter",
        "experiment.primary.kind",
        "experiment.guardrails[0].margin",
    }
    assert found["ErrorInfo"].reason == "INVALID_REQUEST"


async def test_names(lab: SimpleNamespace) -> None:
    call = lab.experiments.CreateExperiment(create("Not so"))
    assert fields_of(await refused(call, "INVALID_ARGUMENT")) == ["experiment_id"]
    both = create("Not so")
    both.experiment.alpha = 2
    found = await refused(lab.experiments.CreateExperiment(both), "INVALID_ARGUMENT")
    assert fields_of(found) == ["experiment_id", "experiment.alpha"]
    await lab.experiments.CreateExperiment(create())
    found = await refused(lab.experiments.CreateExperiment(create()), "ALREADY_EXISTS")
    assert found["ResourceInfo"].resource_name == NAME
    for method, kind in (
        (lab.experiments.GetExperiment, pb.GetExperimentRequest),
        (lab.experiments.StartExperiment, pb.StartExperimentRequest),
        (lab.experiments.StopExperiment, pb.StopExperimentRequest),
        (lab.experiments.DeleteExperiment, pb.DeleteExperimentRequest),
        (lab.experiments.PromoteArm, pb.PromoteArmRequest),
        (lab.experiments.RollBackPromotion, pb.RollBackPromotionRequest),
        (lab.experiments.GetReport, pb.GetReportRequest),
    ):
        for bad in ("", "trial", "experiments/", "experiments/../etc"):
            assert fields_of(await refused(method(kind(name=bad)), "INVALID_ARGUMENT")) == ["name"]
        found = await refused(method(kind(name="experiments/nope")), "NOT_FOUND")
        assert found["ErrorInfo"].reason == "EXPERIMENT_NOT_FOUND"
    await refused(
        lab.experiments.UpdateExperiment(
            pb.UpdateExperimentRequest(experiment={"name": "x"}, update_mask={"paths": ["alpha"]})
        ),
        "INVALID_ARGUMENT",
    )


async def test_started_is_served_at_once(lab: SimpleNamespace) -> None:
    experiment = await running(lab)
    assert (experiment.state, len(experiment.phases)) == (pb.Experiment.STATE_RUNNING, 1)
    assert experiment.phases[0].enrolment_salt
    again = await lab.experiments.StartExperiment(pb.StartExperimentRequest(name=NAME))
    assert again.experiment == experiment
    decisions = [(await answer(lab, f"user-{i}")).decision for i in range(20)]
    assert {(d.arm, d.adapter) for d in decisions} == {("old", MEDICAL), ("new", NEWER)}
    stopped = await lab.experiments.StopExperiment(pb.StopExperimentRequest(name=NAME, reason="enough"))
    assert (stopped.experiment.state, stopped.experiment.stop_reason) == (
        pb.Experiment.STATE_STOPPED,
        "enough",
    )
    assert (await answer(lab, "user-1")).decision.experiment == ""


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("PromoteArm", pb.PromoteArmRequest(name=NAME, arm="x" * 65, reason="x" * 501), "arm"),
        ("StopExperiment", pb.StopExperimentRequest(name=NAME, reason="x" * 501), "reason"),
        ("RollBackPromotion", pb.RollBackPromotionRequest(name=NAME, reason="x" * 501), "reason"),
        ("GetReport", pb.GetReportRequest(name=NAME, phase=-1), "phase"),
    ],
)
async def test_long_texts(lab: SimpleNamespace, method: str, request_: Any, field: str) -> None:
    call = getattr(lab.experiments, method)(request_)
    assert fields_of(await refused(call, "INVALID_ARGUMENT"))[0] == field


async def test_report(lab: SimpleNamespace) -> None:
    await running(lab)
    for i in range(6):
        shown = await answer(lab, f"user-{i}")
        outcome = pb.Outcome(response_id=shown.response_id, metric="solved", value=i % 2)
        await lab.experiments.RecordOutcome(pb.RecordOutcomeRequest(outcome=outcome))
    report = await lab.experiments.GetReport(pb.GetReportRequest(name=NAME))
    assert (report.phase, report.verdict.decision) == (1, "undecided")
    assert sum(n.units for n in report.numbers) == 6
    assert sum(b.answered.get("solved", 0) for b in lab.store.data("trial", 1).buckets) == 6
    assert report.experiment.name == NAME


async def test_units_that_are_request_ids_are_warned_of(lab: SimpleNamespace) -> None:
    await running(lab)
    request = ask("a medical question", routing={"unit": "req-77"})
    await lab.inference.Generate(request, metadata=(("x-request-id", "req-77"),))
    got = await lab.experiments.GetExperiment(pb.GetExperimentRequest(name=NAME))
    assert "request" in got.experiment.warnings[0]


async def test_arms_that_deserve_a_second_look(lab: SimpleNamespace) -> None:
    lab.registry.put(replace(lab.registry.get("medical", "1.1.0"), gate="no report.json"))
    made = (await lab.experiments.CreateExperiment(create())).experiment
    assert list(made.warnings) == ["arm new: medical@1.1.0 did not pass the gate: no report.json"]
    lab.registry.remove(adapter("medical", "1.1.0").ref)
    got = (await lab.experiments.GetExperiment(pb.GetExperimentRequest(name=NAME))).experiment
    assert "arm new cannot answer" in got.warnings[0]


async def test_a_store_that_is_down(lab: SimpleNamespace) -> None:
    await running(lab)
    lab.store.down = True
    for call in (
        lab.experiments.ListExperiments(pb.ListExperimentsRequest()),
        lab.experiments.CreateExperiment(create("another")),
        lab.experiments.GetReport(pb.GetReportRequest(name=NAME)),
    ):
        found = await refused(call, "UNAVAILABLE")
        assert found["ErrorInfo"].reason == StoreDown.reason
        assert "RetryInfo" in found
    lab.store.down = False
    assert await lab.experiments.GetExperiment(pb.GetExperimentRequest(name=NAME))


async def test_without_a_store_every_method_says_how_to_turn_it_on(stubs: SimpleNamespace) -> None:
    for method in pb.DESCRIPTOR.services_by_name["ExperimentService"].methods:
        request = getattr(pb, method.input_type.name)()
        call = getattr(stubs.experiments, method.name)
        seen = call(iter([request])) if method.client_streaming else call(request)
        found = await refused(seen, "FAILED_PRECONDITION")
        assert "`experiments.enabled`" in found["text"]


def update(paths: list[str], etag: str = "", **fields: Any) -> pb.UpdateExperimentRequest:
    message = plan_message(plan(**fields))
    message.name, message.etag = NAME, etag
    return pb.UpdateExperimentRequest(experiment=message, update_mask={"paths": paths})


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
    found = await refused(
        lab.experiments.UpdateExperiment(update(["alpha", "control"], alpha=9.0, control="x")),
        "INVALID_ARGUMENT",
    )
    assert sorted(fields_of(found)) == ["experiment.alpha", "experiment.control"]
    found = await refused(lab.experiments.UpdateExperiment(update(["state", "colour"])), "INVALID_ARGUMENT")
    assert fields_of(found) == ["update_mask", "update_mask"]


async def test_a_new_phase_needs_consent_where_the_client_can_give_it(lab: SimpleNamespace) -> None:
    await running(lab)
    for i in range(6):
        await answer(lab, f"user-{i}")
    edit = update(["alpha"], alpha=0.01)
    edit.new_phase = False
    found = await refused(lab.experiments.UpdateExperiment(edit), "FAILED_PRECONDITION")
    assert "ends phase 1, whose 6 units in 0.0 days do not count afterwards" in found["text"]
    assert "new_phase" in found["text"]
    edit.ClearField("new_phase")  # as a client sends it that does not know the field
    edited = (await lab.experiments.UpdateExperiment(edit)).experiment
    assert len(edited.phases) == 2
    assert any("phase 1 ended: its 6 units in 0.0 days do not count" in text for text in edited.warnings)
    edit.experiment.alpha, edit.new_phase = 0.02, True
    assert len((await lab.experiments.UpdateExperiment(edit)).experiment.phases) == 3


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


SECONDS = MetricSpec("seconds", Kind.MEAN, aggregate=Aggregate.SUM)


async def test_a_plan_out_of_reach_is_warned_of_with_numbers(lab: SimpleNamespace) -> None:
    arms = tuple(replace(arm, weight=w) for arm, w in zip(plan().arms, (0.98, 0.02), strict=True))
    made = await lab.experiments.CreateExperiment(create(arms=arms, primary=SECONDS))
    (warning,) = made.experiment.warnings
    assert warning.startswith("new gets 2 % of 5,000 planned units, 100; without a cap seconds needs 750")


async def test_bad_caps_and_segments_are_named(lab: SimpleNamespace) -> None:
    wrong = create(primary=replace(SECONDS, cap=0.0), segments=(SegmentSpec("", ("v",)),), grace=-1.0)
    found = await refused(lab.experiments.CreateExperiment(wrong), "INVALID_ARGUMENT")
    assert fields_of(found) == [
        "experiment.segments[0].label",
        "experiment.grace",
        "experiment.primary.cap",
    ]
