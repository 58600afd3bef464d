"""What decides and how it does, as the console's routing page shows it."""

from __future__ import annotations

from router.ports import CalibrationState, DecisionShare
from router.routing.drift import BASELINE, CALIBRATION, Seen
from router.routing.policy import Calibrated, Rule


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
