"""What a server would decide on votes, and whom it would choose if the base were no choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from router.calibration.evaluation import Decide, Decided
    from router.calibration.model import Calibration
    from router.classifiers.axes import Axis
    from router.cli.route.local import Local
    from router.config import Settings
    from router.routing.policy import Calibrated, Policy, RuleInForce
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


def rule_of(settings: Settings) -> RuleInForce:
    """How a server with these settings weighs votes."""
    from router.classifiers.axes import Axes
    from router.routing.policy import Policy, RuleInForce

    axes = Axes(settings.task_first, settings.domain_first)
    policy = Policy(settings.abstain_threshold, axes=axes)
    return RuleInForce(
        policy, load_calibration(settings), base=settings.model, strict=settings.strict_threshold
    )


def load_calibration(settings: Settings) -> Calibration | None:
    """Raises ConfigError if the file is missing, damaged or of another version."""
    from router.calibration.file import read_calibration

    path = find_calibration(settings.calibration, settings.adapters_dir)
    return read_calibration(path) if path else None


def find_calibration(said: str, adapters: Sequence[Path]) -> Path | None:
    """The file that was said; with `auto` the first calibration.json in an adapters folder; none if empty."""
    from router.calibration.file import FILE_NAME

    if said != "auto":
        return Path(said) if said else None
    return next((folder / FILE_NAME for folder in adapters if (folder / FILE_NAME).is_file()), None)


def local_rule(local: Local, calibration: str) -> RuleInForce:
    """The rule of a server that serves this folder."""
    in_force = rule_of(local.settings.model_copy(update={"calibration": calibration}))
    in_force.classifiers_are(local.panel.registrations)
    in_force.adapters_are(local.profiles)
    return in_force


def judge_of(in_force: RuleInForce, local: Local, trusting: bool = False) -> Decide:
    """Judges votes by the rule; `trusting` leaves out the strictness for a set that was not calibrated."""
    from router.routing.policy import Calibrated

    kinds = local.kinds
    rule = in_force.now
    if isinstance(rule, Calibrated):
        return _calibrated(replace(rule, differences=()) if trusting else rule, kinds)
    return _plain(rule, kinds)


def _calibrated(rule: Calibrated, kinds: dict[str, Axis]) -> Decide:
    from router.calibration.evaluation import Decided
    from router.calibration.model import choose

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


def _plain(rule: Policy, kinds: dict[str, Axis]) -> Decide:
    from router.calibration.evaluation import Decided

    def judge(votes: Sequence[Vote]) -> Decided:
        concluded = rule.conclude(votes, kinds.keys())
        best = max((v for v in votes if v.scores), key=lambda v: max(v.scores.values()), default=None)
        preference = rule.axes.prefer(best.scores, kinds) if best else None
        if best is None or preference is None:
            return Decided(concluded.adapter, "", 0.0, 1.0, concluded.classifier)
        sure = best.scores[preference.winner]
        return Decided(concluded.adapter, preference.winner, sure, 1 - sure, concluded.classifier)

    return judge
