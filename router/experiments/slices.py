"""Slices of time, of a switchback: which arm a server has when, and what is wrong with a plan of them.

A phase is cut into slices of one length. Blocks of as many consecutive slices as there are arms have each arm
once, in an order drawn by a hash for each server and block: with two arms these are pairs in random order. So
any program can compute the arm, and the report knows which other orders there could have been.

The unit that is exposed is a part of a slice of a server: its wash-out, and the two halves of what is left. A
request counts to the slice in which it was routed, however long its answer takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from router.errors import FieldViolation
from router.experiments.model import Aggregate, MetricSpec, Mode, Spec
from router.units import fraction

WASH_OUT, FIRST, SECOND = "wash-out", "first", "second"
"""Parts of a slice."""
WASH_OUT_SHARE, WASH_OUT_SECONDS = 0.1, 60.0
SHORTEST, LONGEST = 1.0, 7 * 86_400.0  # seconds of a slice
MOST_SLICES = 100_000
WINDOWS = 2  # slices that a window must have: the last answer of a slice needs time, too


@dataclass(frozen=True, slots=True)
class SlicePart:
    """A part of a slice of a server; as a text it is the unit under which an exposure is kept."""

    server: str
    number: int
    part: str

    def __str__(self) -> str:
        return f"{self.server}/{self.number}/{self.part}"

    @staticmethod
    def parsed(unit: str) -> SlicePart | None:
        """The part that a unit is; None if it is none."""
        server, _, rest = unit.partition("/")
        number, _, part = rest.partition("/")
        if not number.isdecimal() or part not in (WASH_OUT, FIRST, SECOND):
            return None
        return SlicePart(server, int(number), part)


def wash_out_of(spec: Spec) -> float:
    """Seconds at the begin of a slice that are left out, in which answers of the arm before still run."""
    if spec.wash_out is not None:
        return spec.wash_out
    return min(max(WASH_OUT_SHARE * spec.slice_length, WASH_OUT_SECONDS), spec.slice_length / 2)


def part_at(spec: Spec, server: str, elapsed: float) -> SlicePart:
    """Where a server is, so many seconds after the phase began."""
    number = max(0, math.floor(elapsed / spec.slice_length))
    within, skipped = elapsed - number * spec.slice_length, wash_out_of(spec)
    half = skipped + (spec.slice_length - skipped) / 2
    return SlicePart(server, number, WASH_OUT if within < skipped else FIRST if within < half else SECOND)


def arm_at(salt: str, server: str, number: int, arms: Sequence[str]) -> str:
    """The arm of a slice: those of a block in the order of their hashes."""
    block, place = divmod(number, len(arms))
    return sorted(arms, key=lambda arm: fraction(salt, f"{server}/{block}/{arm}"))[place]


def slice_problems(spec: Spec) -> Iterator[FieldViolation]:
    """What is wrong with the plan of a switchback."""
    if spec.mode is not Mode.SWITCHBACK:
        return
    length = spec.slice_length
    if not (math.isfinite(length) and SHORTEST <= length <= LONGEST):
        yield FieldViolation("slice_length", f"must be between a second and a week, got {length:g} s")
    elif spec.wash_out is not None and not 0 <= spec.wash_out <= length / 2:
        text = f"must be between 0 and half of a slice, {length / 2:g} s, got {spec.wash_out:g} s"
        yield FieldViolation("wash_out", text)
    elif spec.window < WINDOWS * length:
        text = (
            f"must be two slices, {WINDOWS * length:g} s, or more: it begins with a slice, and outcomes of"
            f" its last answers must still count; got {spec.window:g} s"
        )
        yield FieldViolation("window", text)
    least = least_slices(spec)
    if not least <= spec.planned_slices <= MOST_SLICES:
        text = f"must be between {least} and {MOST_SLICES:,}, got {spec.planned_slices}"
        yield FieldViolation("planned_slices", f"{text}: with fewer slices nothing can be shown")
    weights = [arm.weight for arm in spec.arms]
    if weights and not math.isclose(min(weights), max(weights), rel_tol=1e-6):
        yield FieldViolation("arms", "of a switchback have equal weights: each has the same time")
    yield from takes_all_problems(spec, "a switchback takes all requests of its route")
    for field, metric in named_metrics(spec):
        yield from _metric_problems(field, metric)


def takes_all_problems(spec: Spec, why: str) -> Iterator[FieldViolation]:
    """Fields that leave requests out, of a plan in which no request may be; `why` follows "must be unset"."""
    for field, there in (
        ("enrolment", spec.enrolment != 1),
        ("namespace", bool(spec.namespace)),
        ("unit_label", bool(spec.unit_label)),
        ("segments", bool(spec.segments)),
    ):
        if there:
            yield FieldViolation(field, f"must be unset: {why}")


def named_metrics(spec: Spec) -> Iterator[tuple[str, MetricSpec]]:
    """Metrics by their fields in the resource."""
    yield "primary", spec.primary
    for name in ("guardrails", "secondary"):
        for i, metric in enumerate(getattr(spec, name)):
            yield f"{name}[{i}]", metric


def _metric_problems(field: str, metric: MetricSpec) -> Iterator[FieldViolation]:
    if metric.covariate:
        yield FieldViolation(f"{field}.covariate", "must be unset: a slice of time has no past of its own")
    if metric.aggregate is Aggregate.LAST:
        text = "must not be last: the value of a slice is a mean over its answers"
        yield FieldViolation(f"{field}.aggregate", text)


FINAL_SHARE = 0.8
"""Part of alpha that the test at the planned size has; the rest stops harm before."""


def least_slices(spec: Spec) -> int:
    """Fewest slices with which the primary metric can be shown to differ, with Holm over arms."""
    arms = max(2, len(spec.arms))
    if not 0 < spec.alpha < 1:
        return arms
    return arms * math.ceil(1 - math.log2(FINAL_SHARE * spec.alpha / (arms - 1)) - 1e-9)
