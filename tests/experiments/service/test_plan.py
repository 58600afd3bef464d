"""PlanExperiment over gRPC: everything given, everything from history, and what is wrong."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from router.experiments.model import Aggregate, Kind, MetricSpec, SegmentSpec
from router.experiments.wire.plans import update_request
from router.v1 import experiments_pb2 as pb
from tests.experiments.plans import plan
from tests.experiments.service.lab import answer, create, fields_of, refused, running

METRIC = pb.Experiment.Metric(name="solved", kind=pb.Experiment.Metric.KIND_PROPORTION)


async def test_a_size_needs_no_history(lab: SimpleNamespace) -> None:
    asked = pb.PlanExperimentRequest(
        metric=METRIC, baseline=0.5, effect=0.05, weights=(0.9, 0.1), units_per_day=800
    )
    found = await lab.experiments.PlanExperiment(asked)
    assert (found.baseline, found.effect, found.least_units) == (0.5, 0.05, 1000)
    assert found.units > found.fixed_units > 0
    assert found.factor == pytest.approx(found.units / found.fixed_units, rel=0.01)
    assert found.days == pytest.approx(found.units / 800)


async def test_history_of_a_running_experiment(lab: SimpleNamespace) -> None:
    await running(lab, window=1.0)
    for i in range(5):
        await answer(lab, f"u{i}")
    asked = pb.PlanExperimentRequest(route="adapters/medical", metric=METRIC, baseline=0.5, effect=0.05)
    found = await lab.experiments.PlanExperiment(asked)
    assert found.units_per_day > 0
    assert "from experiments/trial, phase 1: 5 new units" in found.notes[0]


async def test_bad_questions_are_named(lab: SimpleNamespace) -> None:
    asked = pb.PlanExperimentRequest(metric=METRIC, weights=(1.0,), alpha=3.0)
    assert fields_of(await refused(lab.experiments.PlanExperiment(asked), "INVALID_ARGUMENT")) == [
        "weights",
        "alpha",
    ]
    unknown = await refused(
        lab.experiments.PlanExperiment(pb.PlanExperimentRequest(metric=METRIC)), "INVALID_ARGUMENT"
    )
    assert "no experiment told of solved yet" in unknown["text"]


SECONDS = MetricSpec("seconds", Kind.MEAN, aggregate=Aggregate.SUM)


async def test_a_plan_out_of_reach_is_warned_of_with_numbers(lab: SimpleNamespace) -> None:
    arms = tuple(replace(arm, weight=w) for arm, w in zip(plan().arms, (0.98, 0.02), strict=True))
    made = await lab.experiments.CreateExperiment(create(arms=arms, primary=SECONDS))
    (warning,) = made.experiment.warnings
    assert warning.startswith("new gets 2 % of 5,000 planned units, 100; seconds has no cap and needs 750")


async def test_other_secondary_metrics_keep_the_phase(lab: SimpleNamespace) -> None:
    old = await running(lab)
    changed = update_request("trial", old.etag, {"secondary": (replace(SECONDS, cap=9.0),)})
    new = (await lab.experiments.UpdateExperiment(changed)).experiment
    assert [phase.variant_salt for phase in new.phases] == [phase.variant_salt for phase in old.phases]
    assert (new.secondary[0].name, new.secondary[0].cap) == ("seconds", 9.0)


async def test_bad_caps_and_segments_are_named(lab: SimpleNamespace) -> None:
    wrong = create(primary=replace(SECONDS, cap=0.0), segments=(SegmentSpec(""),), grace=-1.0)
    found = await refused(lab.experiments.CreateExperiment(wrong), "INVALID_ARGUMENT")
    assert fields_of(found) == ["experiment.primary.cap", "experiment.segments[0].label", "experiment.grace"]
