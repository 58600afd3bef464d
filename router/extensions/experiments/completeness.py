"""What a plan leaves to the server: how outcomes are combined, what a missing one is; and windows of metrics,
and times as metrics, that do not fit a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from router.errors import FieldViolation
from router.extensions.experiments.model import MetricSpec, Spec, Unanswered
from router.extensions.experiments.times import TIMES, WORDS, shares_queue


def chosen(spec: Spec, before: Spec | None = None) -> Spec:
    """The plan with what it does not say of its metrics: how outcomes are combined, as is usual for the kind,
    and what a missing one counts as.

    An edited metric keeps what it had. In a new plan what clients record counts as 0, as conversions and
    amounts do, so that a mean is per user; what the server records is left out.
    """
    old = {} if before is None else {metric.name: metric for metric in before.metrics}

    def choose(metric: MetricSpec) -> MetricSpec:
        known = old.get(metric.name)
        usual = Unanswered.EXCLUDED if metric.built_in else Unanswered.ZERO
        if known is not None and known.kind is metric.kind and known.missing is not None:
            usual = known.missing
        return replace(metric, aggregate=metric.combined, missing=metric.missing or usual)

    return _each(spec, choose)


def _each(spec: Spec, choose: Callable[[MetricSpec], MetricSpec]) -> Spec:
    return replace(
        spec,
        primary=choose(spec.primary),
        guardrails=tuple(map(choose, spec.guardrails)),
        secondary=tuple(map(choose, spec.secondary)),
    )


def completeness_problems(spec: Spec) -> Iterator[FieldViolation]:
    """What is wrong with the windows of metrics, each a part of the plan's, which the primary metric has."""
    primary = spec.primary
    if primary.window:
        text = "belongs to other metrics: the primary one has the plan's window"
        yield FieldViolation("primary.window", text)
    for field, metrics in (("guardrails", spec.guardrails), ("secondary", spec.secondary)):
        for i, metric in enumerate(metrics):
            yield from _window_problem(metric, f"{field}[{i}].window", spec.window)


def _window_problem(metric: MetricSpec, field: str, longest: float) -> Iterator[FieldViolation]:
    seconds = metric.window
    if seconds and not (math.isfinite(seconds) and 1 <= seconds <= longest):
        most = f"the plan's window of {longest:g} s"
        yield FieldViolation(field, f"must be between a second and {most}, got {seconds:g} s")


def shared_primary(spec: Spec, before: Spec | None = None) -> Iterator[FieldViolation]:
    """Why a new plan is refused; one that was kept `before` with the same metric and mode may stay."""
    if not shares_queue(spec.primary.name) or spec.equal_arms:
        return
    if before is None or (before.primary.name, before.mode) != (spec.primary.name, spec.mode):
        text = (
            f"{spec.primary.name} cannot decide here: requests of all arms wait in one queue, so a slower arm"
            " slows the others just as much. Make it a guardrail, which stops an arm that is slow by itself"
        )
        yield FieldViolation("primary.name", text)


def shared_warnings(spec: Spec) -> Iterator[str]:
    """What a plan with such a metric deserves a second look for."""
    if shares_queue(spec.primary.name) and not spec.equal_arms:
        yield f"primary metric {spec.primary.name}: {WORDS}"
    for rail in spec.guardrails:
        if rail.name in TIMES and shares_queue(rail.name):
            yield (
                f"guardrail {rail.name}: {WORDS} to learn what a roll-out does; here it stops an arm that is"
                " slow by itself"
            )
