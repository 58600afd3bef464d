"""Stretches of time by which units are counted: short at first, longer as a phase gets older.

A stretch is never longer than a 24th of the window or a 256th of the phase's age, whichever is longer
(and at most an hour before the phase's age asks for more). So there are at most some thousands of them
in years, and a unit waits little longer than its window to be mature.
"""

from __future__ import annotations

import math

FIRST = 512  # stretches of the first width; each doubling of the width adds half as many
HALF = FIRST // 2
LEAST, MOST, PARTS = 1.0, 3600.0, 24.0


def first_width(window: float) -> float:
    """Seconds of a phase's first stretches, from its window for outcomes in seconds."""
    return min(MOST, max(LEAST, window / PARTS))


def number(elapsed: float, width: float) -> int:
    """The stretch that a time is in: seconds since the phase began (0 before that), first width."""
    ordinal = math.floor(max(0.0, elapsed) / width)
    if ordinal < FIRST:
        return ordinal
    level = (ordinal // HALF).bit_length() - 1
    return (ordinal >> level) + level * HALF


def span(stretch: int, width: float) -> tuple[float, float]:
    """Seconds from the phase's begin to the stretch's, and its length in seconds."""
    level = max(0, stretch // HALF - 1)
    seconds = width * 2**level
    return (stretch - level * HALF) * seconds, seconds
