"""What is wrong with a plan, and what deserves a second look."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from router.errors import AdapterNotFound, AdapterRejected
from router.experiments.management.plans import Known, plan_problems, plan_warnings
from router.experiments.model import Aggregate, ArmSpec, Kind, MetricSpec, Mode, Spec
from router.types import AdapterInfo, AdapterRef, AdapterState, RouterVariant
from tests.experiments.plans import SOLVED, plan, router_plan

THERE = {("medical", "1.0.0"), ("medical", "1.1.0"), ("medical", "")}
LENGTH = MetricSpec("length", Kind.MEAN, False, Aggregate.SUM, margin=0.1, relative=True)


def resolve(name: str, version: str = "", /) -> AdapterInfo:
    if (name, version) == ("medical", "0.9.0"):
        raise AdapterRejected("adapter medical@0.9.0 is quarantined: rank 512", resource="adapters/medical")
    if (name, version) not in THERE:
        raise AdapterNotFound(f"adapters/{name}" + (f"/versions/{version}" if version else ""))
    return AdapterInfo(AdapterRef(name, version or "1.0.0"), AdapterState.READY, "5e" * 32)


KNOWN = Known(resolve, lambda: {"exact_match", "length"}, lambda: {"keywords", "linear"})


def arm(name: str, weight: float, version: str = "") -> ArmSpec:
    return ArmSpec(name, weight, AdapterRef("medical", version) if version else None)


def fields(spec: Spec) -> set[str]:
    return {problem.field for problem in plan_problems(spec, KNOWN)}


@pytest.mark.parametrize(
    "spec",
    [
        plan(),
        plan(guardrails=(LENGTH, MetricSpec("error", Kind.PROPORTION, False, margin=0.02))),
        plan(arms=(arm("old", 0.5, "1.0.0"), arm("base", 0.5))),
        plan(arms=(arm("old", 0.2, "1.0.0"), arm("same", 0.8, "1.0.0")), enrolment=0.0),
        plan(route="base", arms=(arm("old", 0.5), arm("new", 0.5, "1.1.0"))),
        plan(mode=Mode.SHADOW, judge="length"),
        plan(mode=Mode.BANDIT, floor=0.5, epoch=60.0),
        plan(namespace="checkout", slot=(0.2, 0.4)),
        plan(primary=MetricSpec("cost", Kind.RATIO, aggregate=Aggregate.SUM, per="sessions", covariate=True)),
        router_plan(),
        router_plan(namespace="routers", slot=(0.0, 0.5)),
    ],
    ids=lambda spec: f"{spec.mode}-{spec.route}",
)
def test_good_plans(spec: Spec) -> None:
    assert plan_problems(spec, KNOWN) == []


BAD: list[tuple[dict[str, Any], set[str]]] = [
    ({"hypothesis": "x" * 5000}, {"hypothesis"}),
    ({"unit": "x" * 65, "unit_label": "ü" * 40}, {"unit", "unit_label"}),
    ({"route": "dental"}, {"route"}),
    ({"arms": ()}, {"arms", "control"}),
    ({"arms": (arm("old", 1.0, "1.0.0"),)}, {"arms", "arms[0].weight"}),
    ({"arms": (arm("old", 0.5, "1.0.0"), arm("new", 0.4, "1.1.0"))}, {"arms"}),
    (
        {"arms": (arm("old", math.nan, "1.0.0"), arm("new", math.inf, "1.1.0"))},
        {"arms[0].weight", "arms[1].weight"},
    ),
    ({"arms": (arm("old", 0.5, "1.0.0"), arm("old", 0.5, "1.1.0"))}, {"arms"}),
    ({"arms": (arm("old", 0.5, "1.0.0"), arm("", 0.5, "1.1.0"))}, {"arms"}),
    ({"arms": (arm("old", 0.5, "1.0.0"), arm("a b", 0.5, "1.1.0"))}, {"arms[1].name"}),
    ({"arms": (arm("old", 0.5, "1.0.0"), arm("new", 0.5, "7.0.0"))}, {"arms[1].adapter"}),
    ({"arms": (arm("old", 0.5, "1.0.0"), arm("new", 0.5, "0.9.0"))}, {"arms[1].adapter"}),
    ({"arms": tuple(arm(f"a{i}", 1 / 17) for i in range(17)), "control": "a0"}, {"arms"}),
    ({"arms": (arm("old", 0.5), ArmSpec("new", 0.5, None, RouterVariant()))}, {"arms[1].router"}),
    ({"arms": (arm("old", 0.5), replace(arm("new", 0.5, "1.1.0"), router=RouterVariant()))}, {"arms[1]"}),
    ({"control": "nobody"}, {"control"}),
    ({"primary": replace(SOLVED, name="")}, {"primary.name"}),
    ({"primary": replace(SOLVED, name="a b")}, {"primary.name"}),
    ({"primary": replace(SOLVED, name="responses")}, {"primary.name"}),
    ({"primary": replace(SOLVED, aggregate=Aggregate.SUM)}, {"primary.aggregate"}),
    ({"primary": replace(SOLVED, margin=0.1)}, {"primary.margin"}),
    ({"primary": MetricSpec("cost", Kind.RATIO)}, {"primary.aggregate"}),
    ({"primary": MetricSpec("cost", Kind.RATIO, aggregate=Aggregate.SUM, per="cost")}, {"primary.per"}),
    ({"primary": MetricSpec("cost", Kind.RATIO, aggregate=Aggregate.SUM, per="a b")}, {"primary.per"}),
    ({"guardrails": (replace(LENGTH, margin=0.0),)}, {"guardrails[0].margin"}),
    ({"guardrails": (LENGTH, replace(LENGTH, name="b", margin=math.nan))}, {"guardrails[1].margin"}),
    ({"guardrails": (replace(LENGTH, margin=1.5),)}, {"guardrails[0].margin"}),
    ({"guardrails": (replace(LENGTH, name="solved"),)}, {"guardrails"}),
    ({"guardrails": tuple(replace(LENGTH, name=f"g{i}") for i in range(33))}, {"guardrails"}),
    ({"enrolment": 1.5}, {"enrolment"}),
    ({"enrolment": math.nan}, {"enrolment"}),
    ({"namespace": "Not so"}, {"namespace"}),
    ({"slot": (0.0, 0.5)}, {"namespace"}),
    ({"namespace": "a", "slot": (0.5, 0.5)}, {"slot_end"}),
    ({"namespace": "a", "slot": (math.nan, 0.5)}, {"slot_end"}),
    ({"margin": -1.0}, {"margin"}),
    ({"margin": math.inf}, {"margin"}),
    ({"alpha": 0.0}, {"alpha"}),
    ({"alpha": 0.5}, {"alpha"}),
    ({"alpha": math.nan}, {"alpha"}),
    ({"planned_units": 10}, {"planned_units"}),
    ({"min_units": 1, "min_matured": 1.5}, {"min_units", "min_matured"}),
    ({"window": 0.0, "epoch": math.inf}, {"window", "epoch"}),
    ({"window": math.nan}, {"window"}),
    ({"shadow_share": 0.0}, {"shadow_share"}),
    ({"shadow_share": math.nan}, {"shadow_share"}),
    ({"mode": Mode.SHADOW, "judge": "coin"}, {"judge"}),
    ({"mode": Mode.BANDIT, "floor": 0.6}, {"floor"}),
    ({"mode": Mode.BANDIT, "floor": math.nan}, {"floor"}),
    (
        {"mode": Mode.BANDIT, "primary": MetricSpec("cost", Kind.RATIO, aggregate=Aggregate.SUM)},
        {"primary.kind"},
    ),
]


@pytest.mark.parametrize(("changes", "wrong"), BAD, ids=lambda value: ",".join(sorted(value)))
def test_bad_fields_are_named(changes: dict[str, Any], wrong: set[str]) -> None:
    assert fields(plan(**changes)) == wrong


@pytest.mark.parametrize(
    ("arms", "wrong"),
    [
        ((ArmSpec("here", 0.5), ArmSpec("other", 0.5)), {"arms[1].router"}),
        ((ArmSpec("here", 0.5), arm("other", 0.5, "1.1.0")), {"arms[1].adapter"}),
        (
            (ArmSpec("here", 0.5), ArmSpec("other", 0.5, None, RouterVariant(2.0))),
            {"arms[1].router.threshold"},
        ),
        (
            (
                ArmSpec("here", 0.5),
                ArmSpec("other", 0.5, None, RouterVariant(classifiers=("tarot", "linear"))),
            ),
            {"arms[1].router.classifiers"},
        ),
    ],
)
def test_arms_of_router_experiments(arms: tuple[ArmSpec, ...], wrong: set[str]) -> None:
    assert fields(replace(router_plan(), arms=arms)) == wrong


@pytest.mark.parametrize("mode", [Mode.SHADOW, Mode.BANDIT])
def test_router_experiments_are_a_split(mode: Mode) -> None:
    assert fields(router_plan(mode=mode)) == {"mode"}


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
    told = {
        p.field: p.description for p in plan_problems(plan(mode=Mode.SHADOW, judge="coin", route="x"), KNOWN)
    }
    assert "exact_match, length" in told["judge"]
    assert "ListAdapters" in told["route"]


def rail(kind: Kind) -> MetricSpec:
    return MetricSpec("error", kind, higher_is_better=False, margin=0.05)


@pytest.mark.parametrize("kind", [Kind.RATIO, Kind.MEAN])
def test_a_guardrail_that_may_never_vary(kind: Kind) -> None:
    (found,) = plan_warnings(plan(guardrails=(rail(kind),)))
    assert "as a proportion" in found


def test_a_bandit_whose_units_move_before_their_window_closes() -> None:
    (found,) = plan_warnings(plan(mode=Mode.BANDIT, window=7200, epoch=3600))
    assert "between epochs" in found


def test_a_usual_plan_has_none() -> None:
    assert not list(plan_warnings(plan(guardrails=(rail(Kind.PROPORTION),))))
