"""Numbers of a report in a few letters, for the table and the page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.experiments.report.model import ArmNumbers, Measured, Report

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
