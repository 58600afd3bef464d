"""The effect by days since a unit's first exposure: does it wear off, or grow as people learn?

For display only. Units that are still there after a week are others than those of the first day, and the
ranges are those of a single look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from router.experiments.model import Mode
from router.experiments.report.model import MetricReport
from router.experiments.report.source import PhaseEvidence

if TYPE_CHECKING:
    from router.experiments.store.store import ExperimentStore, UnitsByAge

DAYS = ((1.0, "day 0"), (2.0, "day 1"), (4.0, "days 2 to 3"), (8.0, "days 4 to 7"), (math.inf, "day 8 on"))
"""Until how many days after the first exposure, and its name."""
MOST_ANSWERS = 500_000  # outcomes are read one by one, so larger experiments have no such table
FEWEST = 30  # units of each arm for a range
REACH = 1.96


def by_days(store: ExperimentStore, source: PhaseEvidence, arm: str) -> Mapping[str, MetricReport]:
    """The primary metric of an arm against control by days; empty where only one of them has units. Blocks;
    raises StoreDown."""
    spec = source.spec
    plain = spec.mode is Mode.SPLIT and not spec.primary.kind.rules.has_denominator
    if not plain or sum(source.data.responses.values()) > MOST_ANSWERS:
        return {}
    bounds = tuple(86_400 * until for until, _ in DAYS[:-1])
    found = store.values_by_age(source.experiment.name, source.phase.number, spec.primary, bounds)
    rows = {
        name: _compared(source, found[spec.control, place], found[arm, place])
        for place, (_, name) in enumerate(DAYS)
        if (spec.control, place) in found and (arm, place) in found
    }
    return rows if len(rows) > 1 else {}


def _compared(source: PhaseEvidence, control: UnitsByAge, treatment: UnitsByAge) -> MetricReport:
    metric = source.spec.primary
    effect, reach = treatment.mean - control.mean, math.inf
    if min(control.units, treatment.units) >= FEWEST:
        reach = REACH * math.sqrt(control.variance / control.units + treatment.variance / treatment.units)
    return MetricReport(
        metric.name,
        (control.units, treatment.units),
        (control.mean, treatment.mean),
        effect,
        effect - reach,
        effect + reach,
        1.0,
        "one-look",
        metric.higher_is_better,
        anytime=False,
        cap=metric.cap,
    )
