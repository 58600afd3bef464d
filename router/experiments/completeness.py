"""What a plan says of outcomes that come late or never: windows of metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator

from router.errors import FieldViolation
from router.experiments.model import MetricSpec, Spec


def window_problems(spec: Spec) -> Iterator[FieldViolation]:
    """What is wrong with the windows of metrics: each is a part of the plan's, which the primary one has."""
    if spec.primary.window:
        yield FieldViolation(
            "primary.window", "belongs to other metrics: the primary one has the plan's window"
        )
    for field, metrics in (("guardrails", spec.guardrails), ("secondary", spec.secondary)):
        for i, metric in enumerate(metrics):
            yield from _window_problem(metric, f"{field}[{i}].window", spec.window)


def _window_problem(metric: MetricSpec, field: str, longest: float) -> Iterator[FieldViolation]:
    seconds = metric.window
    if seconds and not (math.isfinite(seconds) and 1 <= seconds <= longest):
        most = f"the plan's window of {longest:g} s"
        yield FieldViolation(field, f"must be between a second and {most}, got {seconds:g} s")
