"""Outcomes that are missing, as a report shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from router.experiments.report.model import MissingReport
from router.experiments.stats.missing import Missing


def missing_reports(found: Mapping[str, Missing]) -> Iterator[MissingReport]:
    """By arm; none where no outcome is missing in it or in control."""
    for arm, one in found.items():
        if one.control or one.treatment:
            bounds = (*(one.lee or (None, None)), *(one.manski or (None, None)))
            shares = (one.control, one.treatment, one.relative, one.low, one.high, one.p)
            yield MissingReport(arm, *shares, one.alarm, one.settled, *bounds)
