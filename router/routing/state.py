"""What decides and how it does, as the console's routing page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from router.routing.drift import BASELINE, CALIBRATION, DriftReport
from router.routing.in_force import RuleInForce
from router.routing.policy import CalibratedRule, Rule

if TYPE_CHECKING:
    from router.classifiers.contract import ClassifierStatus
    from router.plugins.host import PluginStatus


@dataclass(frozen=True, slots=True)
class ClassifierState:
    """How a classifier does, for operators."""

    name: str
    plugin: str
    priority: int
    state: str  # starting, ready, failed, disabled, off
    breaker: str  # closed, open, half-open
    requests: int
    errors: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class CalibrationState:
    """What routing was calibrated for. `report` is what its file tells of how it was made: of any form."""

    created: str
    threshold: float
    novelty_limit: float
    target: float
    ood_target: float
    delta: float
    adapters: tuple[str, ...]
    order: tuple[str, ...]  # classifiers, as they are asked
    differences: tuple[str, ...]  # what is not as it was, in words
    newcomers: tuple[str, ...]  # adapters that it does not know
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DecisionShare:
    """The share of an outcome lately: `abstained`, `unfamiliar` or adapters/NAME. Its share where the
    calibration was proven and at first here, and whether it has moved."""

    what: str
    share: float
    proven: float | None = None
    first: float | None = None
    alarm: bool = False


@dataclass(frozen=True, slots=True)
class RoutingState:
    """What decides. `calibration` is empty without one, `fitted`, or says what does not fit; `problems` are
    plugins that do not work, each in a line."""

    calibration: str = ""
    classifiers: tuple[ClassifierState, ...] = ()
    problems: tuple[str, ...] = ()
    fitted: CalibrationState | None = None
    decisions: int = 0  # the latest ones, of which `shares` are
    shares: tuple[DecisionShare, ...] = ()


def routing_state(rule: RuleInForce, seen: DriftReport, plugins: Sequence[PluginStatus]) -> RoutingState:
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
    if not isinstance(rule, CalibratedRule):
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


def decision_shares(seen: DriftReport) -> tuple[DecisionShare, ...]:
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
