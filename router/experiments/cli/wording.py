"""An experiment as lines of key and value, its numbers in a few letters: for the terminal and the page."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.experiments.model import ArmSpec, Experiment, MetricSpec, Phase, Spec
    from router.experiments.report.model import ArmNumbers, Measured, Report
    from router.types import RouterVariant

UNKNOWN = "-"
COUNTS = ("ARM", "WEIGHT", "UNITS", "EXPECTED", "MATURE", "DEGRADED", "ANSWERS")
BUILT_IN = (
    ("FIRST TOKEN", "time_to_first_token", "time"),
    ("TOTAL TIME", "total_time", "time"),
    ("TOKENS", "completion_tokens", "count"),
    ("CUT OFF", "length_stop", "share"),
    ("ERRORS", "error", "share"),
    ("CANCELLED", "cancelled", "share"),
)


def at(unix_seconds: float) -> str:
    """A time as people write it.

    >>> at(0.0)
    '1970-01-01 00:00 UTC'
    """
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def pairs_of(experiment: Experiment) -> list[tuple[str, str]]:
    """Everything that is set."""
    spec = experiment.spec
    pairs = [
        ("name", experiment.resource),
        ("state", _state(experiment)),
        ("promoted", experiment.promoted),
        ("hypothesis", spec.hypothesis),
        ("route", spec.route or "the router: all requests that pin no adapter"),
        *((f"arm {arm.name}", arm_line(arm, spec)) for arm in spec.arms),
        ("decides", metric_line(spec.primary)),
        *(("guardrail", metric_line(metric)) for metric in spec.guardrails),
        ("unit", spec.unit + (f", from label {spec.unit_label}" if spec.unit_label else "")),
        *_rules(spec),
        *((f"phase {phase.number}", _phase(phase)) for phase in experiment.phases),
        ("etag", experiment.etag),
        *(("warning", warning) for warning in getattr(experiment, "warnings", ())),
    ]
    return [(key, value) for key, value in pairs if value]


def _state(experiment: Experiment) -> str:
    reason = f": {experiment.stop_reason}" if experiment.stop_reason else ""
    stopped = f" at {at(experiment.stopped)}" if experiment.stopped else ""
    return f"{experiment.state.value}{stopped}{reason}"


def arm_line(arm: ArmSpec, spec: Spec) -> str:
    """What an arm is and its share."""
    if arm.router:
        what = router_line(arm.router)
    elif arm.adapter:
        what = str(arm.adapter)
    else:
        what = "base" if spec.route else "the router as it is"
    return f"{arm.weight:.4g} of units: {what}{' (control)' if arm.name == spec.control else ''}"


def router_line(variant: RouterVariant) -> str:
    """`router with threshold 0.4`."""
    said = {
        "threshold": variant.threshold,
        "classifiers": variant.classifiers and ", ".join(variant.classifiers),
        "task first": variant.task_first,
        "domain first": variant.domain_first,
    }
    return "router with " + "; ".join(f"{key} {value}" for key, value in said.items() if value is not None)


def metric_line(metric: MetricSpec) -> str:
    """`thumbs_up: proportion, more is better`."""
    parts = [metric.kind.value, "more is better" if metric.higher_is_better else "less is better"]
    if metric.kind == "ratio":
        parts.append(f"per {metric.per}")
    elif metric.kind == "mean":
        parts.append(f"{metric.aggregate.value} of a unit's outcomes")
    if metric.missing == "zero":
        parts.append("0 where there is none")
    if metric.covariate:
        parts.append("adjusted by the unit's own past")
    if metric.margin:
        margin = f"{metric.margin:.3g}" if not metric.relative else f"{metric.margin:.1%} of control"
        parts.append(f"margin {margin}")
    return f"{metric.name}: {', '.join(parts)}"


def _rules(spec: Spec) -> list[tuple[str, str]]:
    from router.experiments.report.notes import span

    modes = {
        "shadow": f"shadow: others answer {spec.shadow_share:.0%} of requests unseen, judged by {spec.judge}",
        "bandit": f"bandit: weights follow outcomes every {span(spec.epoch)}, at least {spec.floor:g} each",
    }
    where = f"{spec.namespace}, from {spec.slot[0]:g} to {spec.slot[1]:g}" if spec.namespace else ""
    return [
        ("mode", modes.get(spec.mode.value, "")),
        ("enrolment", f"{spec.enrolment:.1%} of units"),
        ("namespace", where),
        ("window", f"{span(spec.window)} for outcomes"),
        ("level", f"{spec.alpha:g} for all arms together"),
        ("margin", f"{spec.margin:g}" if spec.margin else ""),
        ("planned", f"{spec.planned_units:,} units"),
        (
            "promotes",
            f"from {spec.min_units:,} units in each arm, {spec.min_matured:.0%} of them past their window",
        ),
    ]


def _phase(phase: Phase) -> str:
    ended = f" to {at(phase.ended)}" if phase.ended else ""
    reason = f", {phase.reason}" if phase.reason else ""
    salts = f"salts: enrolment {phase.enrolment_salt}, variant {phase.variant_salt}"
    return f"{at(phase.started)}{ended}{reason}; {salts}"


def plain(value: float) -> str:
    """Four digits; `-` for what is not known.

    >>> plain(0.57501), plain(1234.5), plain(float("nan"))
    ('0.575', '1,234', '-')
    """
    if not math.isfinite(value):
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def signed(value: float) -> str:
    """Three digits with the sign.

    >>> signed(0.07512), signed(-2.0), signed(float("-inf"))
    ('+0.0751', '-2', '-')
    """
    if not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    return f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"


def level(alpha: float) -> str:
    """Head of a column of intervals.

    >>> level(0.05)
    '95% INTERVAL'
    """
    return f"{100 * (1 - alpha):.4g}% INTERVAL"


def interval(low: float, high: float) -> str:
    """`[+0.02, +0.13]`; `-` where there is none yet."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "none yet"
    return f"[{signed(low)}, {signed(high)}]"


def chance(p: float) -> str:
    """A p-value.

    >>> chance(0.0312), chance(1e-9)
    ('0.031', '< 0.0001')
    """
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def relative(found: Measured) -> str:
    """`+15 % [+4 %, +26 %]`; empty where control may be 0."""
    if found.relative is None or found.relative_low is None or found.relative_high is None:
        return ""
    return f"{found.relative:+.1%} [{found.relative_low:+.1%}, {found.relative_high:+.1%}]"


def margin(found: Measured) -> str:
    """A guardrail's margin."""
    return f"{found.margin:.3g}" if not found.margin_relative else f"{found.margin:.1%} of control"


def length(found: Measured) -> str:
    """The effect at equal answer length, in words; empty where lengths are not known."""
    if found.length is None:
        return ""
    adjusted = f"{signed(found.length.adjusted)} ± {plain(found.length.half)}"
    tokens = f"{found.length.treatment:.4g} tokens an answer against {found.length.control:.4g}"
    return f"{adjusted} at equal answer length ({tokens})"


def built_in(numbers: ArmNumbers, name: str, kind: str) -> str:
    """A built-in metric's mean over answers."""
    from router.cli import units

    value = numbers.built_in.get(name)
    if value is None:
        return UNKNOWN
    if kind == "time":
        return units.duration(value)
    return f"{value:.1%}" if kind == "share" else plain(value)


def cells(report: Report, arm: ArmNumbers) -> tuple[str, ...]:
    """An arm's row under `COUNTS` and `BUILT_IN`. Only a split has units that can be expected."""
    expected = f"{arm.expected:,.0f}" if report.experiment.spec.mode == "split" else UNKNOWN
    return (
        arm.arm,
        f"{arm.weight:.3g}",
        f"{arm.units:,}",
        expected,
        f"{arm.matured:,}",
        f"{arm.degraded:,}",
        f"{arm.responses:,}",
        *(built_in(arm, name, kind) for _, name, kind in BUILT_IN),
    )
