"""What is wrong with a plan, and what deserves a second look."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from router.errors import AdapterNotFound, AdapterRejected
from router.extensions.experiments.model import (
    Aggregate,
    ArmSpec,
    Experiment,
    ExperimentPhase,
    Kind,
    Lifecycle,
    MetricSpec,
    Mode,
    SegmentSpec,
    Spec,
)
from router.extensions.experiments.outcomes import Declared
from router.extensions.experiments.plans import Known, conflict, plan_problems, plan_warnings
from router.types import AdapterInfo, AdapterRef, AdapterState
from tests.extensions.experiments.plans import SOLVED, plan

THERE = {("medical", "1.0.0"), ("medical", "1.1.0"), ("medical", "")}
LENGTH = MetricSpec("length", Kind.MEAN, False, Aggregate.SUM, margin=0.1, relative=True)


def resolve(name: str, version: str = "", /) -> AdapterInfo:
    if (name, version) == ("medical", "0.9.0"):
        raise AdapterRejected("adapter medical@0.9.0 is quarantined: rank 512", resource="adapters/medical")
    if (name, version) not in THERE:
        raise AdapterNotFound(f"adapters/{name}" + (f"/versions/{version}" if version else ""))
    return AdapterInfo(AdapterRef(name, version or "1.0.0"), AdapterState.READY, "5e" * 32)


SECONDS = MetricSpec("seconds", Kind.MEAN, False, Aggregate.SUM, cap=60.0, least=1.0)
HOLDOUT = plan(mode=Mode.HOLDOUT, route="", arms=(ArmSpec("held", 0.1), ArmSpec("all", 0.9)), control="held")
KNOWN = Known(resolve)


def arm(name: str, weight: float, version: str = "") -> ArmSpec:
    return ArmSpec(name, weight, AdapterRef("medical", version) if version else None)


def fields(spec: Spec) -> set[str]:
    return {problem.field for problem in plan_problems(spec, KNOWN)}


def test_equal_arms_are_refused_with_the_way_to_an_aa_test() -> None:
    twins = (arm("old", 0.4, "1.0.0"), arm("new", 0.3, "1.1.0"), arm("same", 0.3, "1.0.0"))
    (problem,) = plan_problems(plan(arms=twins), KNOWN)
    assert problem.field == "arms[2].adapter"
    assert "is medical@1.0.0, as in arm old" in problem.description
    assert "lora-router experiments aa" in problem.description
    assert "equal_arms" in problem.description


@pytest.mark.parametrize(
    "spec",
    [
        plan(),
        plan(guardrails=(LENGTH, MetricSpec("error", Kind.PROPORTION, False, margin=0.02))),
        plan(arms=(arm("old", 0.5, "1.0.0"), arm("base", 0.5))),
        plan(arms=(arm("old", 0.2, "1.0.0"), arm("same", 0.8, "1.0.0")), enrolment=0.0, equal_arms=True),
        plan(route="base", arms=(arm("old", 0.5), arm("new", 0.5, "1.1.0"))),
        plan(mode=Mode.SHADOW),
        plan(namespace="checkout", slot=(0.2, 0.4)),
        plan(arms=tuple(arm(f"a{i}", 1 / 32) for i in range(32)), control="a0", equal_arms=True),
        plan(primary=SECONDS, secondary=(MetricSpec("clicks", Kind.MEAN), SOLVED), grace=3600.0),
        plan(segments=(SegmentSpec("country", ("de", "fr")), SegmentSpec("plan", ("free",)))),
        HOLDOUT,
        plan(primary=MetricSpec("cost", Kind.RATIO, aggregate=Aggregate.SUM, per="sessions", covariate=True)),
    ],
    ids=lambda spec: f"{spec.mode}-{spec.route}",
)
def test_good_plans(spec: Spec) -> None:
    assert plan_problems(spec, KNOWN) == []


BAD: list[tuple[dict[str, Any], set[str]]] = [
    ({"hypothesis": "x" * 5000}, {"hypothesis"}),
    ({"unit": "x" * 65, "unit_label": "ü" * 65}, {"unit", "unit_label"}),
    ({"route": "dental"}, {"route"}),
    ({"route": ""}, {"route"}),
    ({"arms": ()}, {"arms", "control"}),
    ({"arms": (arm("old", 1.0, "1.0.0"),)}, {"arms", "arms[0].weight"}),
    ({"arms": (arm("old", 0.5, "1.0.0"), arm("new", 0.4, "1.1.0"))}, {"arms"}),
    (
        {"arms": (arm("old", math.nan, "1.0.0"), arm("new", math.inf, "1.1.0"))},
        {"arms[0].weight", "arms[1].weight"},
    ),
    ({"arms": (arm("old", 0.5, "1.0.0"), arm("old", 0.5, "1.1.0"))}, {"arms"}),
    ({"arms": (arm("old", 0.5, "1.0.0"), arm("", 0.5, "1.1.0"))}, {"arms", "arms[1].name"}),
    ({"arms": (arm("old", 0.5, "1.0.0"), arm("a b", 0.5, "1.1.0"))}, {"arms[1].name"}),
    ({"arms": (arm("old", 0.5, "1.0.0"), arm("new", 0.5, "7.0.0"))}, {"arms[1].adapter"}),
    ({"arms": (arm("old", 0.5, "1.0.0"), arm("new", 0.5, "0.9.0"))}, {"arms[1].adapter"}),
    ({"arms": tuple(arm(f"a{i}", 1 / 33) for i in range(33)), "control": "a0", "equal_arms": True}, {"arms"}),
    ({"arms": (arm("old", 0.5, "1.0.0"), arm("same", 0.5, "1.0.0"))}, {"arms[1].adapter"}),
    ({"arms": (arm("old", 0.5), arm("same", 0.5)), "mode": Mode.SHADOW}, {"arms[1].adapter"}),
    ({"control": "nobody"}, {"control"}),
    ({"primary": replace(SOLVED, name="")}, {"primary.name"}),
    ({"primary": replace(SOLVED, name="a b")}, {"primary.name"}),
    ({"primary": replace(SOLVED, name="responses")}, {"primary.name"}),
    ({"primary": replace(SOLVED, aggregate=Aggregate.SUM)}, {"primary.aggregate"}),
    ({"primary": replace(SOLVED, margin=0.1)}, {"primary.margin"}),
    ({"primary": MetricSpec("cost", Kind.RATIO, aggregate=Aggregate.MAX)}, {"primary.aggregate"}),
    ({"primary": MetricSpec("cost", Kind.RATIO, aggregate=Aggregate.SUM, per="cost")}, {"primary.per"}),
    ({"primary": MetricSpec("cost", Kind.RATIO, aggregate=Aggregate.SUM, per="a b")}, {"primary.per"}),
    ({"guardrails": (replace(LENGTH, margin=0.0),)}, {"guardrails[0].margin"}),
    ({"guardrails": (LENGTH, replace(LENGTH, name="b", margin=math.nan))}, {"guardrails[1].margin"}),
    ({"guardrails": (replace(LENGTH, margin=1.5),)}, {"guardrails[0].margin"}),
    ({"guardrails": (replace(LENGTH, name="solved"),)}, {"guardrails"}),
    ({"guardrails": tuple(replace(LENGTH, name=f"g{i}") for i in range(33))}, {"guardrails"}),
    ({"primary": replace(SOLVED, cap=1.0)}, {"primary.cap"}),
    ({"primary": replace(SECONDS, kind=Kind.RATIO)}, {"primary.cap"}),
    ({"primary": replace(SECONDS, cap=math.inf)}, {"primary.cap"}),
    ({"primary": replace(SECONDS, cap=1.0)}, {"primary.cap"}),
    ({"primary": replace(SECONDS, cap=math.nan)}, {"primary.cap"}),
    ({"primary": replace(SECONDS, least=math.nan)}, {"primary.least"}),
    ({"primary": replace(SECONDS, cap=None)}, {"primary.least"}),
    ({"guardrails": (replace(SECONDS, margin=0.1, cap=0.5),)}, {"guardrails[0].cap"}),
    ({"secondary": (replace(SECONDS, margin=0.1),)}, {"secondary[0].margin"}),
    ({"secondary": (replace(SECONDS, relative=True),)}, {"secondary[0].margin"}),
    ({"secondary": (SOLVED,)}, {"secondary[0].name"}),
    ({"primary": replace(SOLVED, window=60.0)}, {"primary.window"}),
    ({"guardrails": (replace(LENGTH, window=86_401.0),)}, {"guardrails[0].window"}),
    ({"guardrails": (replace(LENGTH, window=math.nan),)}, {"guardrails[0].window"}),
    ({"secondary": (replace(SECONDS, window=0.5),)}, {"secondary[0].window"}),
    ({"secondary": (SECONDS, replace(SECONDS, cap=9.0))}, {"secondary[1].name"}),
    ({"secondary": (replace(SECONDS, name="length"),), "guardrails": (LENGTH,)}, {"secondary[0].name"}),
    ({"secondary": (replace(SECONDS, name="a b", cap=0.0),)}, {"secondary[0].name", "secondary[0].cap"}),
    ({"secondary": tuple(replace(SECONDS, name=f"s{i}") for i in range(33))}, {"secondary"}),
    ({"segments": tuple(SegmentSpec(f"l{i}", ("v",)) for i in range(4))}, {"segments"}),
    ({"segments": (SegmentSpec("l", ("v",)), SegmentSpec("l", ("v",)))}, {"segments"}),
    (
        {"segments": (SegmentSpec("", ("v",)), SegmentSpec("ü" * 33, ("v",)))},
        {"segments[0].label", "segments[1].label"},
    ),
    (
        {"segments": (SegmentSpec("a\x07", ("v",)), SegmentSpec("\ud800", ("v",)))},
        {"segments[0].label", "segments[1].label"},
    ),
    ({"segments": (SegmentSpec("user", ("v",)),), "unit_label": "user"}, {"segments[0].label"}),
    ({"segments": (SegmentSpec("l"),)}, {"segments[0].values"}),
    ({"segments": (SegmentSpec("l", tuple(f"v{i}" for i in range(13))),)}, {"segments[0].values"}),
    ({"segments": (SegmentSpec("l", ("a", "a")),)}, {"segments[0].values"}),
    (
        {"segments": (SegmentSpec("l", ("", "x" * 65, "(other)", "ok", "\ud800", "a\nb")),)},
        {f"segments[0].values[{i}]" for i in (0, 1, 2, 4, 5)},
    ),
    ({"grace": -1.0}, {"grace"}),
    ({"grace": math.nan}, {"grace"}),
    ({"grace": 4e7}, {"grace"}),
    ({"enrolment": 1.5}, {"enrolment"}),
    ({"enrolment": math.nan}, {"enrolment"}),
    ({"namespace": "Not so"}, {"namespace"}),
    ({"slot": (0.0, 0.5)}, {"namespace"}),
    ({"namespace": "a", "slot": (0.5, 0.5)}, {"slot"}),
    ({"namespace": "a", "slot": (math.nan, 0.5)}, {"slot"}),
    ({"margin": -1.0}, {"margin"}),
    ({"margin": math.inf}, {"margin"}),
    ({"alpha": 0.0}, {"alpha"}),
    ({"alpha": 0.5}, {"alpha"}),
    ({"alpha": math.nan}, {"alpha"}),
    ({"planned_units": 10}, {"planned_units"}),
    ({"min_units": 1, "min_matured": 1.5}, {"min_units", "min_matured"}),
    ({"window": 0.0}, {"window"}),
    ({"window": math.nan}, {"window"}),
    ({"shadow_share": 0.0}, {"shadow_share"}),
    ({"shadow_share": math.nan}, {"shadow_share"}),
]


@pytest.mark.parametrize(("changes", "wrong"), BAD, ids=lambda value: ",".join(sorted(value)))
def test_bad_fields_are_named(changes: dict[str, Any], wrong: set[str]) -> None:
    assert fields(plan(**changes)) == wrong


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"route": "medical"}, {"route"}),
        ({"arms": (arm("held", 0.1), arm("all", 0.9, "1.0.0"))}, {"arms[1].adapter"}),
        ({"arms": (arm("held", 0.2), arm("all", 0.4), arm("more", 0.4))}, {"arms"}),
        ({"control": "nobody"}, {"control"}),
        ({"enrolment": 0.5}, {"enrolment"}),
        ({"namespace": "a"}, {"namespace"}),
        ({"namespace": "a", "slot": (0.0, 0.5)}, {"namespace"}),
    ],
)
def test_a_holdout_has_nothing_of_its_own(changes: dict[str, Any], wrong: set[str]) -> None:
    assert fields(replace(HOLDOUT, **changes)) == wrong


def test_a_holdout_is_in_nobodys_way() -> None:
    running = Experiment("other", plan(), Lifecycle.RUNNING)
    reading = Experiment("reading", HOLDOUT, Lifecycle.RUNNING)
    assert conflict("trial", HOLDOUT, [running, reading]) == ""
    assert conflict("trial", plan(), [reading]) == ""
    assert "runs on the route 'medical'" in conflict("trial", plan(), [running, reading])


def test_secondary_proportions_take_0_and_1_only() -> None:
    spec = plan(secondary=(MetricSpec("clicked", Kind.PROPORTION), MetricSpec("minutes", Kind.MEAN)))
    declared = Declared(
        [Experiment("trial", spec, Lifecycle.RUNNING, (ExperimentPhase(1, 0.0, "e", "v", spec),))]
    )
    assert "'clicked' is a proportion in experiments/trial" in declared.problem("clicked", 2.0)
    assert declared.problem("minutes", 2.0, "trial") == ""


def test_everything_is_named_at_once() -> None:
    bad = plan(
        route="dental",
        arms=(arm("old", 0.5, "7.0.0"), arm("a b", math.nan, "8.0.0")),
        control="nobody",
        primary=replace(SOLVED, name="", aggregate=Aggregate.MEAN),
        guardrails=(replace(LENGTH, margin=-1.0),),
        alpha=2.0,
        window=-5.0,
        enrolment=7.0,
    )
    assert fields(bad) == {
        "route", "arms[0].adapter", "arms[1].name", "arms[1].adapter", "arms[1].weight", "control",
        "primary.name", "primary.aggregate", "guardrails[0].margin", "alpha", "window", "enrolment",
    }  # fmt: skip


def test_texts_say_what_to_do() -> None:
    told = {p.field: p.description for p in plan_problems(plan(route="x"), KNOWN)}
    assert "ListAdapters" in told["route"]


def test_texts_of_segments_and_secondary_metrics_say_what_is_allowed() -> None:
    many = SegmentSpec("country", tuple(f"v{i}" for i in range(13)))
    found = plan_problems(plan(secondary=(SOLVED,), segments=(many,)), KNOWN)
    told = {p.field: p.description for p in found}
    assert told["secondary[0].name"].startswith("secondary metric named like the primary")
    assert told["segments[0].values"].startswith("must have at most 12 items")


def rail(kind: Kind) -> MetricSpec:
    return MetricSpec("error", kind, higher_is_better=False, margin=0.05)


@pytest.mark.parametrize("kind", [Kind.RATIO, Kind.MEAN])
def test_a_guardrail_that_may_never_vary(kind: Kind) -> None:
    (found,) = plan_warnings(plan(guardrails=(rail(kind),)))
    assert "as a proportion" in found


def test_a_usual_plan_has_none() -> None:
    assert not list(plan_warnings(plan(guardrails=(rail(Kind.PROPORTION),))))


def weighted(new: float) -> tuple[ArmSpec, ...]:
    return arm("old", 1 - new, "1.0.0"), arm("new", new, "1.1.0")


def test_an_arm_too_small_for_what_has_no_cap() -> None:
    spec = plan(arms=weighted(0.02), primary=replace(SECONDS, cap=None, least=0.0), min_units=100)
    (found,) = plan_warnings(spec)
    assert found == (
        "new gets 2 % of 5,000 planned units, 100; without a cap seconds needs 750 in each arm: "
        "plan 37,500 units, or give it more weight"
    )
    assert not list(plan_warnings(replace(spec, planned_units=37_500)))
    assert not list(plan_warnings(replace(spec, primary=SECONDS)))
    assert not list(plan_warnings(replace(spec, mode=Mode.SHADOW)))


def test_an_arm_that_will_not_have_its_least_units() -> None:
    (found,) = plan_warnings(plan(arms=weighted(0.01)))
    assert found == (
        "new gets 1 % of 5,000 planned units, 50; nothing is promoted before 100 in each arm: "
        "plan 10,000 units, or give it more weight"
    )


SLOW = MetricSpec("total_time_over_4s", Kind.PROPORTION, False, margin=0.02)


@pytest.mark.parametrize(
    ("metric", "refused"),
    [
        (SLOW, set()),
        (replace(SLOW, name="time_to_first_token_over_800ms"), set()),
        (replace(SLOW, name="total_time_over_4"), {"guardrails[0].name"}),
        (replace(SLOW, name="total_time_over_0s"), {"guardrails[0].name"}),
        (replace(SLOW, kind=Kind.MEAN, aggregate=Aggregate.SUM), {"guardrails[0].kind"}),
        (replace(SLOW, aggregate=Aggregate.LAST), {"guardrails[0].aggregate"}),
        (replace(SLOW, higher_is_better=True), {"guardrails[0].higher_is_better"}),
        (replace(SLOW, covariate=True), {"guardrails[0].covariate"}),
    ],
)
def test_a_share_of_slow_units_is_a_proportion_with_a_limit(metric: MetricSpec, refused: set[str]) -> None:
    assert fields(plan(guardrails=(metric,))) == refused


def test_only_a_guardrail_has_to_improve() -> None:
    cost = MetricSpec("completion_tokens", Kind.MEAN, False, Aggregate.SUM, improve=True)
    assert fields(plan(guardrails=(cost,))) == set()
    assert fields(plan(guardrails=(replace(cost, margin=0.1),))) == {"guardrails[0].margin"}
    assert fields(plan(secondary=(cost,))) == {"secondary[0].improve"}


def test_an_uncapped_time_guardrail_is_warned_of_with_the_share_in_its_place() -> None:
    mean = MetricSpec("total_time", Kind.MEAN, False, Aggregate.MEAN, margin=0.1, relative=True)
    found = [text for text in plan_warnings(plan(guardrails=(mean,))) if "total_time_over_4s" in text]
    assert len(found) == 1
    fine = (replace(mean, cap=60.0), replace(mean, name="minutes"), SLOW)
    assert not [text for text in plan_warnings(plan(guardrails=fine)) if "_over_" in text]
