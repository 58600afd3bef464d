"""Stretches of a phase: units are summed by when they were first exposed, in stretches that grow."""

from __future__ import annotations

import math

from router.experiments.model import ExperimentPhase

FIRST_STRETCHES = 512  # stretches of the first width; each doubling of the width adds half as many
HALF_OF_THEM = FIRST_STRETCHES // 2
LEAST_SECONDS, MOST_SECONDS, WINDOW_PARTS = 1.0, 3600.0, 24.0


def first_width(window: float) -> float:
    """Seconds of a phase's first stretches, from its window for outcomes in seconds."""
    return min(MOST_SECONDS, max(LEAST_SECONDS, window / WINDOW_PARTS))


def stretch_number(elapsed: float, width: float) -> int:
    """The stretch that a time is in: seconds since the phase began (0 before that), first width."""
    ordinal = math.floor(max(0.0, elapsed) / width)
    if ordinal < FIRST_STRETCHES:
        return ordinal
    level = (ordinal // HALF_OF_THEM).bit_length() - 1
    return (ordinal >> level) + level * HALF_OF_THEM


def stretch_span(stretch: int, width: float) -> tuple[float, float]:
    """Seconds from the phase's begin to the stretch's, and its length in seconds."""
    level = max(0, stretch // HALF_OF_THEM - 1)
    seconds = width * 2**level
    return (stretch - level * HALF_OF_THEM) * seconds, seconds


def width_of(phase: ExperimentPhase) -> float:
    """Seconds of a phase's first stretches."""
    spec = phase.spec
    deciding = (spec.primary, *spec.guardrails, *phase.early_guardrails)  # secondary metrics may change
    windows = [spec.window_of(metric) for metric in deciding]
    return phase.width or first_width(min(windows))
