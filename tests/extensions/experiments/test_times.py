"""Metrics of a shared queue: refused as what decides in a split, and marked in reports."""

from __future__ import annotations

from dataclasses import replace

from router.extensions.experiments import words
from router.extensions.experiments.document import document
from router.extensions.experiments.model import Kind, MetricSpec
from router.extensions.experiments.plans import plan_problems, plan_warnings
from router.extensions.experiments.report.build import report
from router.extensions.experiments.stats.moments import Moments
from tests.extensions.experiments.plans import plan
from tests.extensions.experiments.report.sums import LONG_AFTER, SPEC, SumsStore, both, running
from tests.extensions.experiments.test_plans import KNOWN

FIRST = MetricSpec("time_to_first_token", Kind.MEAN, higher_is_better=False, cap=10.0)


def test_a_time_decides_nothing_in_a_split():
    assert [v.field for v in plan_problems(plan(primary=FIRST), KNOWN)] == ["primary.name"]
    assert plan_problems(plan(primary=FIRST, equal_arms=True), KNOWN) == []
    guarded = plan(guardrails=(replace(FIRST, margin=0.1),))
    assert plan_problems(guarded, KNOWN) == []
    assert any("compares little" in text for text in plan_warnings(guarded))


def test_a_guardrail_within_its_margin_is_marked_and_still_stops_harm():
    for slower, state, read in (
        (0.0, "within", "✓ within what is allowed, in one queue"),
        (2.0, "beyond", "✗ worse than allowed"),
    ):
        rail = replace(FIRST, margin=0.5)
        buckets = [
            replace(b, moments={**b.moments, rail.name: times(slower if b.arm == "new" else 0.0)})
            for b in both(1000, 1150)
        ]
        store = SumsStore(buckets, running(replace(SPEC, guardrails=(rail,))))
        found = report(store, "medical-v2", now=LONG_AFTER)
        (shown,) = found.arms[0].guardrails
        assert (shown.state, words.guarded(found, shown)) == (state, read)
        assert found.verdict.decision == ("promote" if state == "within" else "stop for harm")
        assert found.arms[0].primary is not None
        assert any("this compares little" in note for note in document(found).compared.notes)


def times(slower: float) -> Moments:
    return Moments.of([1.0 + slower + i % 5 / 5 for i in range(2000)])
