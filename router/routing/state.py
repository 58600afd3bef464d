"""What decides and how it does, as the console's routing page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from router.ports import CalibrationState, ClassifierState, DecisionShare, RoutingState
from router.routing.drift import BASELINE, CALIBRATION, Seen
from router.routing.policy import Calibrated, Rule, RuleInForce

if TYPE_CHECKING:
    from router.classifiers.registration import ClassifierStatus
    from router.plugins import PluginStatus


def routing_state(rule: RuleInForce, seen: Seen, plugins: Sequence[PluginStatus]) -> RoutingState:
    """The rule in force, its classifiers, and the latest decisions."""
    return RoutingState(
        rule.status,
        tuple(classifier_state(plugin.name, c) for plugin in plugins for c in plugin.classifiers),
        tuple(f"{plugin.name}: {plugin.error}" for plugin in plugins if plugin.error),
        calibration_state(rule.now),
        seen.decisions,
        decision_shares(seen),
    )


def classifier_state(plugin: str, of: ClassifierStatus) -> ClassifierState:
    """A classifier of that plugin."""
    counts = (of.requests, of.errors)
    problem = of.fit_error or of.last_error
    return ClassifierState(of.name, plugin, of.priority, of.state, of.breaker, *counts, problem)


def calibration_state(rule: Rule) -> CalibrationState | None:
    """Of the calibration in force; None without one."""
    if not isinstance(rule, Calibrated):
        return None
    of = rule.calibration
    return CalibrationState(
        created=of.created,
        threshold=of.threshold,
        novelty_limit=of.novelty_limit,
        target=of.target,
        ood_target=of.ood_target,
        delta=of.delta,
        adapters=tuple(of.binding.adapters),
        order=of.order,
        differences=rule.differences,
        newcomers=tuple(sorted(rule.newcomers)),
        report=of.report,
    )


def decision_shares(seen: Seen) -> tuple[DecisionShare, ...]:
    """What the last look at drift found, each share with all that it was compared with."""
    expected: dict[str, dict[str, float]] = {what: {} for what in seen.shares}
    alarms = {one.what for one in seen.compared if one.alarm}
    for one in seen.compared:
        expected.setdefault(one.what, {})[one.against] = one.expected
    return tuple(
        DecisionShare(
            what, seen.shares.get(what, 0.0), there.get(CALIBRATION), there.get(BASELINE), what in alarms
        )
        for what, there in sorted(expected.items())
    )
