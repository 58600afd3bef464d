"""What is asked of a plan before it is made, how long it will take, and what is answered: plain values."""

from __future__ import annotations

from dataclasses import dataclass

from router.experiments.model import Kind


@dataclass(frozen=True, slots=True)
class SizeQuestion:
    """How long does an experiment on `metric` take? What is None is taken from history.

    `route` is an adapter's name or `base`; empty: whatever experiment had the metric. `kind` None: as history
    has it, else a proportion. `weights` of the arms, control first, to any sum; empty: two equal ones.
    `baseline` is control's value, `deviation` a unit's standard deviation, `effect` treatment minus control;
    without one the smallest is told that `days` or `units` (of all arms) find. `units_per_day` come to the
    route, of which `enrolment` takes part.
    """

    metric: str
    kind: Kind | None = None
    higher_is_better: bool = True
    cap: float | None = None
    least: float = 0.0
    route: str = ""
    baseline: float | None = None
    deviation: float | None = None
    effect: float | None = None
    weights: tuple[float, ...] = ()
    units_per_day: float | None = None
    enrolment: float = 1.0
    days: float | None = None
    units: int | None = None
    alpha: float = 0.05
    power: float = 0.8


@dataclass(frozen=True, slots=True)
class SizeAnswer:
    """How large an effect, and units of all arms until `power` of such experiments have their verdict.

    `fixed_units` is what one look at the end would take, `factor` what looking all the time costs beside it;
    `half_units` is where half of them have it, and before `least_units` nothing is said. `effect` None: no
    effect is found in the units that there are. `days` None: traffic is not known.
    """

    baseline: float
    deviation: float
    effect: float | None
    fixed_units: int
    units: int
    half_units: int
    factor: float
    least_units: int
    days: float | None = None
    units_per_day: float | None = None
    notes: tuple[str, ...] = ()
