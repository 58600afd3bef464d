"""What a server would decide on votes, and whom it would choose if the base were no choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.settings import rule_of

if TYPE_CHECKING:
    from router.calibration.model import Axis
    from router.extensions.calibration.commands.local import LocalRouting
    from router.extensions.calibration.evaluation import Decide, Decided
    from router.routing.in_force import RuleInForce
    from router.routing.policy import CalibratedRule, PlainRule
    from router.types import Vote

CalibrationFile = Annotated[
    str,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Calibration file; '' for none. Default: calibration.json in the adapters folder.",
        show_default=False,
    ),
]


def local_rule(local: LocalRouting, calibration: str) -> RuleInForce:
    """The rule of a server that serves this folder."""
    in_force = rule_of(local.settings.model_copy(update={"calibration": calibration}))
    in_force.classifiers_are(local.fitted.registrations)
    in_force.adapters_are(local.profiles)
    return in_force


def judge_of(in_force: RuleInForce, local: LocalRouting, trusting: bool = False) -> Decide:
    """Judges votes by the rule; `trusting`: as though a calibration had been made with the adapters here."""
    from router.routing.policy import CalibratedRule

    kinds = local.kinds
    rule = in_force.now
    if isinstance(rule, CalibratedRule):
        if trusting:
            rule = replace(rule, differences=(), newcomers=frozenset(), kinds=None)
        return _calibrated(rule, kinds)
    return _plain(rule, kinds)


def _calibrated(rule: CalibratedRule, kinds: dict[str, Axis]) -> Decide:
    from router.calibration.model import choose
    from router.extensions.calibration.evaluation import Decided

    of = rule.calibration

    def judge(votes: Sequence[Vote]) -> Decided:
        concluded = rule.conclude(votes, kinds.keys())
        if of.stage_of(votes) < 0:
            return Decided(
                concluded.adapter, concluded.adapter, concluded.confidence, 1.0, concluded.classifier
            )
        opinion = of.opinion(votes, kinds)
        chosen = choose(opinion, rule.plain.axes, kinds, tuple(kinds))
        forced, confidence = (chosen.adapter, chosen.confidence) if chosen else ("", 0.0)
        return Decided(concluded.adapter, forced, confidence, opinion.novelty, concluded.classifier)

    return judge


def _plain(rule: PlainRule, kinds: dict[str, Axis]) -> Decide:
    from router.extensions.calibration.evaluation import Decided

    def judge(votes: Sequence[Vote]) -> Decided:
        concluded = rule.conclude(votes, kinds.keys())
        best = max((v for v in votes if v.scores), key=lambda v: max(v.scores.values()), default=None)
        preference = rule.axes.prefer(best.scores, kinds) if best else None
        if best is None or preference is None:
            return Decided(concluded.adapter, "", 0.0, 1.0, concluded.classifier)
        sure = best.scores[preference.winner]
        return Decided(concluded.adapter, preference.winner, sure, 1 - sure, concluded.classifier)

    return judge
