"""Experiments over gRPC: plans, service, reports."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from router.errors import StoreDown
from router.experiments.wire.plans import plan_message
from router.v1 import adapters_pb2
from router.v1 import experiments_pb2 as pb
from tests.experiments.plans import SOLVED, router_plan
from tests.experiments.service.lab import NAME, answer, create, fields_of, refused, running
from tests.fakes import adapter

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


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda e: e.arms[0].ClearField("weight"), "experiment.arms[0].weight"),
        (lambda e: setattr(e.arms[0], "weight", 0.6), "experiment.arms"),
        (lambda e: setattr(e, "route", "adapters/nope"), "experiment.route"),
        (
            lambda e: setattr(e.arms[1], "adapter", "adapters/medical/versions/9"),
            "experiment.arms[1].adapter",
        ),
        (lambda e: setattr(e.arms[1].router, "threshold", 0.5), "experiment.arms[1]"),
        (lambda e: setattr(e, "planned_units", 5), "experiment.planned_units"),
        (lambda e: e.window.FromSeconds(-5), "experiment.window"),
    ],
)
async def test_bad_plans(lab: SimpleNamespace, change: Any, field: str) -> None:
    request = create()
    change(request.experiment)
    assert fields_of(await refused(lab.experiments.CreateExperiment(request), "INVALID_ARGUMENT")) == [field]


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


async def test_adapters_that_have_gone(lab: SimpleNamespace) -> None:
    await lab.experiments.CreateExperiment(create())
    lab.registry.remove(adapter("medical", "1.1.0").ref)
    start = pb.StartExperimentRequest(name=NAME)
    found = await refused(lab.experiments.StartExperiment(start), "FAILED_PRECONDITION")
    assert "arms[1].adapter" in found["text"]


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


async def test_units_that_look_like_request_ids_are_warned_of(lab: SimpleNamespace) -> None:
    await running(lab)
    await answer(lab, "req-77")
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


async def test_router_experiments(lab: SimpleNamespace) -> None:
    message = plan_message(router_plan())
    request = pb.CreateExperimentRequest(experiment_id="routers", experiment=message)
    made = (await lab.experiments.CreateExperiment(request)).experiment
    assert (made.route, made.arms[1].router.threshold) == ("", 0.8)
    start = pb.StartExperimentRequest(name="experiments/routers")
    assert (await lab.experiments.StartExperiment(start)).experiment.state == pb.Experiment.STATE_RUNNING


async def test_without_a_store_every_method_says_how_to_turn_it_on(stubs: SimpleNamespace) -> None:
    for method in pb.DESCRIPTOR.services_by_name["ExperimentService"].methods:
        request = getattr(pb, method.input_type.name)()
        call = getattr(stubs.experiments, method.name)
        seen = call(iter([request])) if method.client_streaming else call(request)
        found = await refused(seen, "FAILED_PRECONDITION")
        assert "`experiments`" in found["text"]
