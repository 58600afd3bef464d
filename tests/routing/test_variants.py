"""Variants of a router: what they change, what they leave, and what their votes cost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from router.calibration.model import Axes, Calibration, Stage, TemperatureScaler, axes_of, binding_of
from router.routing import Scores
from router.routing.policy import CalibratedRule, PlainRule, rule_digest, varied
from router.routing.router import Router
from router.types import AdapterProfile, Reason, RouterVariant, Vote, VotesByClassifier

PROFILES = (
    AdapterProfile("legal", "1", domain="legal"),
    AdapterProfile("summary", "1", task="summarization"),
)
NAMES = tuple(p.name for p in PROFILES)
PLAIN = PlainRule(0.5, kinds=axes_of(PROFILES))
CALIBRATION = Calibration(
    scalers={"cheap": TemperatureScaler(), "dear": TemperatureScaler()},
    stages=(Stage({"cheap": 1.0}), Stage({"cheap": 0.5, "dear": 0.5})),
    threshold=0.7,
    novelty_limit=1.0,
    target=0.05,
    delta=0.05,
    ood_target=0.05,
    axes=Axes(),
    binding=binding_of(PROFILES, {"cheap": "cheap/1", "dear": "dear/1"}),
)
RULE = CalibratedRule(CALIBRATION, PLAIN, strict=0.9)
PRINTS = {"cheap": "cheap/1", "dear": "dear/1"}
Start = Callable[..., Awaitable[Router]]


@pytest.fixture
async def start(kit: Any) -> AsyncIterator[Start]:
    routers: list[Router] = []

    async def start(*registrations: Any) -> Router:
        catalog = kit.catalog([kit.medical, kit.legal, kit.translation])
        routers.append(Router(catalog, kit.host(*registrations)))
        await routers[-1].start()
        return routers[-1]

    yield start
    for router in routers:
        await router.close()


def test_what_a_variant_leaves_open_stays() -> None:
    assert varied(PLAIN, None) is PLAIN
    assert varied(PLAIN, RouterVariant()) == PLAIN
    assert varied(RULE, RouterVariant()) == RULE


def test_threshold_and_axes() -> None:
    vote = Vote("c", {"legal": 0.6, "summary": 0.55})
    assert PLAIN.conclude([vote], NAMES).adapter == "summary"  # the task beats the topic
    topic = varied(PLAIN, RouterVariant(task_first=False, threshold=0.3))
    sure = Vote("c", {"legal": 0.6, "summary": 0.45})
    assert topic.conclude([sure], NAMES).adapter == "legal"
    strict = varied(PLAIN, RouterVariant(threshold=0.8)).conclude([vote], NAMES)
    assert (strict.reason, strict.threshold) == (Reason.ABSTAINED, 0.8)


def test_fewer_classifiers_are_neither_asked_nor_heard() -> None:
    rule = varied(PLAIN, RouterVariant(classifiers=("dear",)))
    assert (rule.counts("dear"), rule.counts("cheap")) == (True, False)
    votes = Vote("cheap", {"legal": 0.9}), Vote("dear", {"summary": 0.9})
    assert rule.conclude(votes, NAMES).adapter == "summary"
    assert rule.conclude([], NAMES).reason is Reason.FALLBACK


def test_a_calibration_needs_the_strict_threshold_where_it_was_not_proven() -> None:
    votes = Vote("cheap", {"legal": 0.8}), Vote("dear", {"legal": 0.8})
    assert RULE.conclude(votes, NAMES).adapter == "legal"
    for variant in (RouterVariant(task_first=False), RouterVariant(classifiers=("cheap",))):
        found = varied(RULE, variant).conclude(votes, NAMES)
        assert (found.adapter, found.threshold) == ("", 0.9)
    both = varied(RULE, RouterVariant(classifiers=("cheap", "dear")))
    assert both.conclude(votes, NAMES).adapter == "legal"


def test_a_threshold_that_is_said_holds_with_a_calibration_too() -> None:
    votes = Vote("cheap", {"legal": 0.6}), Vote("dear", {"legal": 0.6})
    for variant in (RouterVariant(0.5), RouterVariant(0.5, task_first=False)):
        found = varied(RULE, variant).conclude(votes, NAMES)
        assert (found.adapter, found.threshold) == ("legal", 0.5)


@pytest.mark.parametrize("rule", [PLAIN, RULE], ids=["plain", "calibrated"])
def test_digests_are_of_what_decides(rule: PlainRule | CalibratedRule) -> None:
    variants = (
        None,
        RouterVariant(threshold=0.6),
        RouterVariant(task_first=False),
        RouterVariant(domain_first=False),
        RouterVariant(classifiers=("cheap",)),
    )
    found = [rule_digest(varied(rule, variant), PRINTS) for variant in variants]
    assert len(set(found)) == len(variants)
    assert found == [rule_digest(varied(rule, variant), PRINTS) for variant in variants]
    assert rule_digest(rule, {**PRINTS, "dear": "dear/2"}) != found[0]
    assert rule_digest(rule, dict(reversed(PRINTS.items()))) != found[0]
    assert rule_digest(varied(rule, RouterVariant()), PRINTS) == found[0]


def test_a_digest_does_not_change_with_the_adapters_alone() -> None:
    more = replace(PLAIN, kinds=axes_of((*PROFILES, AdapterProfile("new", "1"))))
    assert rule_digest(more, PRINTS) == rule_digest(PLAIN, PRINTS)


async def test_a_second_decision_asks_only_who_was_not_asked(kit: Any, start: Start) -> None:
    cheap, dear = kit.says("cheap", Scores({"medical": 0.6})), kit.says("dear", Scores({"legal": 0.9}))
    router = await start(kit.registered(cheap, priority=1), kit.registered(dear, priority=2))
    heard: VotesByClassifier = {}
    first = await router.decide(kit.asking(), None, heard)
    assert first.adapter is not None
    assert (first.adapter.name, dear.batches) == ("medical", [])
    strict = await router.decide(kit.asking(), RouterVariant(threshold=0.8), heard)
    assert strict.adapter is not None
    assert (strict.adapter.name, strict.threshold) == ("legal", 0.8)
    one = await router.decide(kit.asking(explain=True), RouterVariant(classifiers=("cheap",)), heard)
    assert one.adapter == first.adapter
    assert [v.classifier for v in one.votes] == ["cheap", "dear"]
    assert (cheap.batches, dear.batches) == ([1], [1])


async def test_who_is_named_is_named_to_all(kit: Any, start: Start) -> None:
    router = await start()
    asked = kit.asking(adapter="adapters/legal")
    assert (await router.decide(asked, RouterVariant(threshold=1.0))).reason is Reason.EXPLICIT


async def test_the_routers_digest_follows_its_classifiers(kit: Any, start: Start) -> None:
    host_of = kit.registered(kit.says("a"), priority=1)
    router = await start(host_of)
    before = router.digest()
    assert router.digest() == before != router.digest(RouterVariant(threshold=0.9))
    router._host.become(host_of, kit.registered(kit.says("b"), priority=2))  # type: ignore[attr-defined]
    assert router.digest() != before
