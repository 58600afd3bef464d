"""Adapters that no calibration knows: who speaks for them, and what they cost the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.calibration.model import Calibration
from router.routing import Classifier, Scores
from router.routing.in_force import RuleInForce
from router.routing.policy import FEW, FITTED, PROVISIONAL, CalibratedRule, PlainRule
from router.types import AdapterProfile, Reason, Request, Vote

COOKING = AdapterProfile("cooking", "1", domain="cooking", examples=("How long does rice boil?",))


def calibration_of(kit: Any, kept: bool = True, **changes: Any) -> Calibration:
    known = (kit.legal, kit.medical) if kept else ()
    made: Calibration = kit.calibration(**{"profiles": known} | changes)
    return made


class Scaling(Classifier):
    """Says what it is told to; keeps what it was fitted to."""

    name = "many"
    scales = True

    def __init__(self, **scores: float) -> None:
        self.scores = scores
        self.fitted: list[list[str]] = []
        self.asked = 0
        self.folder: Path | None = None

    def keep(self, folder: Path) -> None:
        self.folder = folder

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        self.fitted.append([a.name for a in adapters])

    def classify_batch(self, requests: Sequence[Request]) -> list[Scores | None]:
        self.asked += len(requests)
        return [Scores(self.scores) if self.scores else None for _ in requests]


class Fitted(Classifier):
    """One that a calibration knows."""

    name = "c"

    def __init__(self, **scores: float) -> None:
        self.scores = scores
        self.fitted: list[list[tuple[str, str]]] = []

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        self.fitted.append([(a.name, a.version) for a in adapters])

    def classify_batch(self, requests: Sequence[Request]) -> list[Scores | None]:
        return [Scores(self.scores) for _ in requests]


def rule_of(kit: Any, *present: AdapterProfile, kept: bool = True) -> CalibratedRule:
    in_force = RuleInForce(PlainRule(0.5), calibration_of(kit, kept))
    in_force.adapters_are(present)
    in_force.classifiers_are([kit.registered(Fitted()), kit.registered(Scaling())])
    assert isinstance(in_force.now, CalibratedRule)
    return in_force.now


def votes(**given: dict[str, float]) -> list[Vote]:
    return [Vote(name, scores) for name, scores in given.items()]


ALL = frozenset({"medical", "legal", "cooking"})


def test_a_newcomer_that_somebody_is_sure_of_gets_it(kit: Any) -> None:
    rule = rule_of(kit, kit.medical, kit.legal, COOKING)
    cast = votes(c={"medical": 0.9}, many={"cooking": 0.8, "medical": 0.1})
    found = rule.conclude(cast, ALL)
    assert (found.adapter, found.classifier, found.threshold, found.provisional) == (
        "cooking",
        "many",
        0.5,
        True,
    )
    assert not rule.settled(cast[:1], ALL)  # sure of medical, but a newcomer may yet be named
    assert rule.settled(cast, ALL)


@pytest.mark.parametrize(
    "many", [{"cooking": 0.4}, {"cooking": 0.55, "medical": 0.5}, {"medical": 0.9, "cooking": 0.2}, {}]
)
def test_else_the_panel_decides_as_though_there_were_none(kit: Any, many: dict[str, float]) -> None:
    with_it, without = rule_of(kit, kit.medical, kit.legal, COOKING), rule_of(kit, kit.medical, kit.legal)
    cast = votes(c={"medical": 0.9}, many=many)
    assert with_it.conclude(cast, ALL) == without.conclude(cast[:1], ALL)
    assert with_it.conclude(cast, ALL).threshold == 0.6
    assert with_it.differences == without.differences == ()


class Comparing(Scaling):
    """Compares newcomers with the others."""

    name = "second"
    compares = True


def comparing_rule(kit: Any, calibration: Calibration | None) -> PlainRule | CalibratedRule:
    in_force = RuleInForce(PlainRule(0.5), calibration)
    in_force.adapters_are((kit.medical, kit.legal, COOKING))
    in_force.classifiers_are([kit.registered(one()) for one in (Fitted, Scaling, Comparing)])
    return in_force.now


SURE = {"cooking": 0.8, "medical": 0.1}


@pytest.mark.parametrize(
    ("many", "second", "candidates", "adapter"),
    [
        (SURE, {"cooking": 0.6, "medical": 0.1}, ALL, "cooking"),
        (SURE, {"cooking": 0.4, "medical": 0.1}, ALL, "cooking"),  # the other one is sure, and it agrees
        (SURE, {"cooking": 0.4, "medical": 0.5}, ALL, "medical"),
        (SURE, {"cooking": 0.2}, ALL, "medical"),
        (SURE, {}, ALL, "cooking"),  # no opinion: the other one decides
        (SURE, None, ALL, "cooking"),  # a lost vote
        ({"cooking": 0.3}, {"cooking": 0.4, "medical": 0.1}, ALL, ""),  # contested by what nothing is sure of
        ({}, {"cooking": 0.9}, ALL - {"cooking"}, "medical"),  # a newcomer that the caller may not see
    ],
)
def test_one_that_compares_names_newcomers_and_contests_the_others(
    kit: Any,
    many: dict[str, float],
    second: dict[str, float] | None,
    candidates: frozenset[str],
    adapter: str,
) -> None:
    lost = Vote("second", error="timeout")
    cast = votes(c={"medical": 0.9}, many=many)
    cast.append(lost if second is None else Vote("second", second))
    rule = comparing_rule(kit, calibration_of(kit))
    assert rule.conclude(cast, candidates).adapter == adapter


def test_without_a_calibration_nothing_is_compared(kit: Any) -> None:
    rule = comparing_rule(kit, None)
    assert isinstance(rule, PlainRule)
    assert not rule.counts("second")
    assert "second" not in rule.learners


def test_where_there_is_no_newcomer_nobody_asks_for_one(kit: Any) -> None:
    rule = rule_of(kit, kit.medical, kit.legal)
    assert rule.counts("c")
    assert not rule.counts("many")
    assert rule.settled(votes(c={"medical": 0.9}), ALL)
    with_one = rule_of(kit, kit.medical, kit.legal, COOKING)
    assert with_one.counts("many")
    assert with_one.settled(votes(c={"medical": 0.9}), ALL - {"cooking"})
    assert with_one.conclude(votes(c={"medical": 0.9}), ALL).adapter == "medical"


def test_a_lost_vote_for_newcomers_costs_the_others_nothing(kit: Any) -> None:
    rule = rule_of(kit, kit.medical, kit.legal, COOKING)
    cast = [*votes(c={"medical": 0.7}), Vote("many", error="timeout")]
    found = rule.conclude(cast, ALL)
    assert (found.adapter, found.threshold) == ("medical", 0.6)


def test_all_votes_conclude_what_those_up_to_the_last_needed_did(kit: Any) -> None:
    rule = rule_of(kit, kit.medical, kit.legal, COOKING)
    for scores in ({"medical": 0.9}, {"medical": 0.3}):
        for many in ({"cooking": 0.9}, {"cooking": 0.3}):
            cast = votes(c=scores, many=many)
            more = [*cast, Vote("late", {"legal": 1.0})]
            if rule.settled(cast, ALL):
                assert rule.conclude(more, ALL) == rule.conclude(cast, ALL)


def test_one_that_changed_is_a_newcomer_and_the_others_keep_what_was_known(kit: Any) -> None:
    changed = replace(kit.medical, version="2", examples=("Something else?",))
    in_force = RuleInForce(PlainRule(0.5), calibration_of(kit))
    in_force.adapters_are([changed, kit.legal])
    in_force.classifiers_are([kit.registered(Fitted()), kit.registered(Scaling())])
    assert in_force.status == FITTED
    assert isinstance(in_force.now, CalibratedRule)
    assert in_force.now.newcomers == {"medical"}
    assert in_force.taught([changed, kit.legal]) == (kit.legal, kit.medical)


def test_one_that_is_gone_leaves_the_others_as_they_were(kit: Any) -> None:
    rule = rule_of(kit, kit.medical)
    assert rule.differences == ()
    found = rule.conclude(votes(c={"legal": 0.9, "medical": 0.1}), frozenset({"medical"}))
    assert found.adapter == ""
    assert rule.conclude(votes(c={"medical": 0.9}), frozenset({"medical"})).adapter == "medical"


def test_a_calibration_of_an_earlier_version_goes_by_what_is_there(kit: Any) -> None:
    assert rule_of(kit, kit.medical, kit.legal, COOKING, kept=False).differences == ()
    assert rule_of(kit, kit.medical, kept=False).differences == ("adapter legal is gone",)


def test_without_a_calibration_all_learn_few_and_only_some_learn_many() -> None:
    in_force = RuleInForce(PlainRule(0.5))
    few = tuple(AdapterProfile(f"a{i}", "1") for i in range(FEW))
    assert in_force.taught(few) == few
    assert in_force.taught((*few, COOKING)) == ()


def test_of_few_adapters_those_that_scale_are_idle_and_of_many_they_are_the_learners(kit: Any) -> None:
    in_force = RuleInForce(PlainRule(0.5))
    in_force.classifiers_are([kit.registered(Fitted(medical=0.8)), kit.registered(Scaling(cooking=0.9))])
    in_force.adapters_are(few := [AdapterProfile(f"a{i}", "1") for i in range(FEW)])
    assert isinstance(in_force.now, PlainRule)
    assert (in_force.now.learners, in_force.now.idle) == ({"c"}, {"many"})
    in_force.adapters_are([*few, COOKING])
    assert (in_force.now.learners, in_force.now.idle) == ({"many"}, frozenset())


async def test_a_router_with_a_newcomer(kit: Any, start: Any, tmp_path: Path) -> None:
    catalog, scaling, fitted = (
        kit.catalog([kit.medical, kit.legal]),
        Scaling(cooking=0.9),
        Fitted(medical=0.8),
    )
    given = kit.registered(fitted, priority=1), kit.registered(scaling, priority=2)
    rule = RuleInForce(PlainRule(0.5), calibration_of(kit))
    router = await start(*given, catalog=catalog, rule=rule, keep=tmp_path)
    decision = await router.route(kit.asking())
    assert decision.adapter is not None
    assert (decision.adapter.name, decision.calibration, scaling.asked) == ("medical", FITTED, 0)
    catalog.become(kit.medical, kit.legal, COOKING)
    await kit.eventually(lambda: isinstance(router.rule.now, CalibratedRule) and router.rule.now.newcomers)
    decision = await router.route(kit.asking())
    assert decision.adapter is not None
    assert (decision.adapter.name, decision.calibration) == ("cooking", PROVISIONAL)
    assert (decision.reason, decision.classifier) == (Reason.CLASSIFIED, "many")
    assert sorted(scaling.fitted[-1]) == ["cooking", "legal", "medical"]
    assert fitted.fitted == [[("legal", "2.1.0"), ("medical", "1.0.0")]]  # once for all requests
    assert scaling.folder == tmp_path / "routing" / "many"
    assert scaling.folder.is_dir()


async def test_ten_thousand_adapters_cost_a_decision_little(kit: Any, start: Any) -> None:
    many = [AdapterProfile(f"a{i:05}", "1", domain=f"d{i % 50}") for i in range(10_000)]
    catalog, scaling = kit.catalog([kit.medical, kit.legal, *many]), Scaling(a00007=0.9)
    given = kit.registered(Fitted(medical=0.2), priority=1), kit.registered(scaling, priority=2)
    router = await start(*given, catalog=catalog, rule=RuleInForce(PlainRule(0.5), calibration_of(kit)))
    async with asyncio.timeout(20):
        for _ in range(100):
            decision = await router.route(kit.asking())
            assert decision.adapter is not None
            assert decision.adapter.name == "a00007"


async def test_who_is_not_asked_yet_learns_after_the_others(kit: Any, start: Any) -> None:
    order: list[str] = []

    class First(Fitted):
        def fit(self, adapters: Sequence[AdapterProfile]) -> None:
            order.append("c")

    class Then(Scaling):
        def fit(self, adapters: Sequence[AdapterProfile]) -> None:
            order.append("many")

    given = kit.registered(Then(), priority=1), kit.registered(First(), priority=2)
    rule = RuleInForce(PlainRule(0.5), calibration_of(kit))
    await start(*given, catalog=kit.catalog([kit.medical, kit.legal]), rule=rule)
    await kit.eventually(lambda: len(order) == 2)
    assert order == ["c", "many"]
