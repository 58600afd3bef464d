"""Kinds of metrics: apart from the statistics, so that a client names them without numpy."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """How a metric comes from units' rows."""

    PROPORTION = "proportion"
    """One 0 or 1 for each unit."""
    MEAN = "mean"
    """One number for each unit."""
    RATIO = "ratio"
    """Sum over all units divided by another sum: outcomes per request, tokens per answer."""
