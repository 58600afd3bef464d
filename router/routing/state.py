"""What decides and how it does, as the console's routing page shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from router.routing.calibration import Calibration
from router.routing.in_force import RuleInForce
from router.types import AdapterProfile

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
    findings: Mapping[str, str] = field(default_factory=dict)  # of the last fit, by adapter: a line each


@dataclass(frozen=True, slots=True)
class RoutingState:
    """What decides: the threshold, and the calibration that it is from, if there is one; `newcomers` are
    adapters that the calibration does not cover, `problems` plugins that do not work, each in a line."""

    threshold: float = 0.5
    calibration: Calibration | None = None
    newcomers: tuple[str, ...] = ()
    classifiers: tuple[ClassifierState, ...] = ()
    problems: tuple[str, ...] = ()


def routing_state(
    rule: RuleInForce, adapters: Iterable[AdapterProfile], plugins: Sequence[PluginStatus]
) -> RoutingState:
    """The rule in force and its classifiers."""
    of = rule.calibration
    return RoutingState(
        rule.now.threshold,
        of,
        () if of is None else tuple(sorted({one.name for one in adapters} - set(of.adapters))),
        tuple(classifier_state(plugin.name, c) for plugin in plugins for c in plugin.classifiers),
        tuple(f"{plugin.name}: {plugin.error}" for plugin in plugins if plugin.error),
    )


def classifier_state(plugin: str, of: ClassifierStatus) -> ClassifierState:
    """A classifier of that plugin."""
    counts = (of.requests, of.errors)
    problem = of.fit_error or of.last_error
    return ClassifierState(of.name, plugin, of.priority, of.state, of.breaker, *counts, problem, of.findings)
