"""From what an operator says to what the statistics need. Raises InvalidRequest naming every wrong field."""

from __future__ import annotations

from router.experiments.design import Design
from router.experiments.model import MetricSpec, Mode, Spec
from router.experiments.stats import Guardrail, Metric, Plan

NEVER = 10**12
"""Burn-in that no experiment reaches: only exact sequences are used."""


def metric_of(spec: MetricSpec) -> Metric:
    """The metric of the statistics."""
    return Metric(spec.name, spec.kind, spec.higher_is_better, spec.covariate)


def plan_of(spec: Spec) -> Plan:
    """Error rate and size. A bandit's weights follow its outcomes, which breaks the asymptotic sequences;
    an exact one is a martingale arm by arm, whoever chooses when the arm is played, so it alone is left.
    """
    if spec.mode is Mode.BANDIT:
        return Plan(
            alpha=spec.alpha, units=2 * NEVER, burn_in_units=NEVER, unbounded_units=NEVER, exact_share=0.999
        )
    return Plan(alpha=spec.alpha, units=spec.planned_units)


def design_of(spec: Spec) -> Design:
    """The design by which an experiment is judged."""
    return Design(
        control=spec.control,
        weights={arm.name: arm.weight for arm in spec.arms},
        primary=metric_of(spec.primary),
        guardrails=tuple(Guardrail(metric_of(g), g.margin, g.relative) for g in spec.guardrails),
        margin=spec.margin,
        plan=plan_of(spec),
        min_units=spec.min_units,
        min_matured=spec.min_matured,
    )
