"""A calibration beside sets of adapters and classifiers that change."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from router.calibration.model import Axes, binding_of
from router.classifiers.fake_base import FakeBase
from router.routing import Scores
from router.routing.in_force import RuleInForce, fingerprint
from router.routing.policy import FITTED, PlainRule
from router.routing.router import IN_LANGUAGE, Router
from router.types import LostVote, Reason, Visible, VoteError


@pytest.fixture
def says(kit: Any) -> Any:
    return kit.registered(kit.says("c", Scores({"medical": 0.8})))


def test_without_a_calibration_there_is_nothing_to_say(kit: Any, says: Any) -> None:
    in_force = RuleInForce(PlainRule(0.5))
    in_force.classifiers_are([says])
    in_force.adapters_are([kit.medical])
    assert in_force.status == ""
    assert isinstance(in_force.now, PlainRule)
    assert in_force.now.kinds == {"medical": "domain"}


def test_what_differs_is_said_and_logged_once(kit: Any, says: Any, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    in_force = RuleInForce(PlainRule(0.5), kit.calibration("smol"), base="smol")
    in_force.adapters_are([kit.medical, kit.legal])
    assert in_force.status == ""  # the classifiers are not known yet
    in_force.classifiers_are([says])
    assert in_force.status == FITTED
    in_force.adapters_are([kit.medical])
    in_force.compare()
    assert in_force.status == "stale: adapter legal is gone"
    in_force.adapters_are([kit.medical, kit.legal])
    assert in_force.status == FITTED
    told = [r.message for r in caplog.records]
    assert [t for t in told if "another set" in t] == [
        "the calibration is for another set (adapter legal is gone): 0.90 confidence is needed until "
        "`lora-router route calibrate` was run again"
    ]


def test_another_policy_of_axes_is_another_set(kit: Any, says: Any) -> None:
    in_force = RuleInForce(PlainRule(0.5, axes=Axes(task_first=False)), kit.calibration("smol"))
    in_force.classifiers_are([says])
    in_force.adapters_are([kit.medical, kit.legal])
    assert in_force.status == "stale: task_first or domain_first is set otherwise"


def test_a_classifier_without_a_fingerprint_fits_no_calibration(kit: Any) -> None:
    class Mute(kit.says):  # type: ignore[misc]
        def fingerprint(self) -> str:
            raise RuntimeError("none")

    assert fingerprint(kit.registered(Mute("c"))) == "c/none"


async def test_a_router_with_a_calibration(kit: Any, says: Any) -> None:
    catalog = kit.catalog([kit.medical, kit.legal])
    left_out = kit.says("probe", Scores({"legal": 1.0}))
    host = kit.host(says, kit.registered(left_out, priority=1))
    in_force = RuleInForce(PlainRule(0.5), kit.calibration("smol", left_out=("probe",)))
    router = Router(catalog, host, rule=in_force)
    await router.start()
    try:
        decision = await router.route(kit.asking())
        assert decision.adapter is not None
        assert (decision.adapter.name, decision.reason) == ("medical", Reason.CLASSIFIED)
        assert (decision.threshold, decision.calibration) == (0.6, FITTED)
        assert left_out.batches == []
        catalog.become(kit.medical, kit.translation)
        await kit.eventually(lambda: router.rule.status != FITTED)
        decision = await router.route(kit.asking())
        assert (decision.adapter, decision.reason, decision.threshold) == (None, Reason.ABSTAINED, 0.9)
        assert decision.calibration == "stale: adapter legal is gone"
    finally:
        await router.close()


@pytest.mark.parametrize("sees", ["*", "medical"])
async def test_a_decision_without_a_vote_of_the_calibration_is_not_called_fitted(
    kit: Any, says: Any, sees: str
) -> None:
    bad = kit.registered(kit.says("bad", "nonsense"), priority=1)
    known = {name: f"{name}/0" for name in ("bad", "c")}
    binding = binding_of((kit.legal, kit.medical), known, "smol")
    in_force = RuleInForce(PlainRule(0.5), kit.calibration(binding=binding), base="smol")
    router = Router(kit.catalog([kit.medical, kit.legal]), kit.host(bad, says), rule=in_force)
    await router.start()
    try:
        assert router.rule.status == FITTED
        decision = await router.route(replace(kit.asking(), visible=Visible((sees,))))
        assert decision.calibration == "stale: no vote of bad (invalid)"
        assert decision.votes_lost == (LostVote("bad", VoteError.INVALID),)
        assert decision.threshold == 0.9
    finally:
        await router.close()


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ((), "stale: classifier probe cannot be asked: the engine of this base gives no sight"),
        (("probe",), FITTED),
    ],
)
async def test_a_classifier_that_cannot_work_here_makes_it_stale_in_words(
    kit: Any, says: Any, left_out: tuple[str, ...], said: str
) -> None:
    class Seeing(kit.says):  # type: ignore[misc]
        needs = ("sight",)

        def bind(self, base: Any) -> None:
            raise AssertionError("never asked")

    probe = kit.registered(Seeing("probe", Scores({"medical": 0.8})))
    host = kit.host(says, probe)
    known = {name: f"{name}/0" for name in ("c", "probe") if name not in left_out}
    binding = binding_of((kit.legal, kit.medical), known)
    in_force = RuleInForce(PlainRule(0.5), kit.calibration(left_out=left_out, binding=binding))
    catalog = kit.catalog([kit.medical, kit.legal])
    router = Router(catalog, host, base_for=lambda timeout: FakeBase(), rule=in_force)
    await router.start()
    try:
        assert probe.health.state == "unable"
        assert (await router.route(kit.asking())).calibration == said
    finally:
        await router.close()


# -- classifiers for other languages


def voice(kit: Any) -> Any:
    classifier = kit.says("voice", Scores({"legal": 0.9}))
    classifier.foreign = True
    return kit.registered(classifier, priority=1)


async def test_a_calibration_holds_beside_a_voice_and_says_nothing_of_its_texts(kit: Any, says: Any) -> None:
    examples = ("What does the contract say?", "Is this clause valid?")
    legal = replace(kit.legal, examples=examples)
    of = kit.calibration(binding=binding_of((legal, kit.medical), {"c": "c/0"}))
    router = Router(
        kit.catalog([legal, kit.medical]),
        kit.host(voice(kit), says),
        rule=RuleInForce(PlainRule(0.5), of),
        ready_seconds=1,
    )
    await router.start()
    try:
        assert router.rule.status == FITTED
        assert router.flaws == []
        english = await router.route(kit.asking("What is this about?"))
        assert (english.classifier, english.calibration) == ("c", FITTED)
        german = await router.route(kit.asking("Worum geht es in diesem Vertrag?"))
        assert (german.classifier, german.calibration) == ("voice", IN_LANGUAGE)
        assert german.adapter is not None
        assert german.adapter.name == "legal"
    finally:
        await router.close()


def test_the_setting_switches_voices_off(kit: Any, says: Any) -> None:
    for on in (True, False):
        in_force = RuleInForce(PlainRule(0.5), multilingual=on)
        in_force.classifiers_are([voice(kit), says])
        assert in_force.now.counts("voice") is on
        assert in_force.now.counts("c")
