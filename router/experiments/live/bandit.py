"""Thompson sampling for a bandit: each epoch's weights are the chances of the arms to be the best.

Sampling from posteriors: Thompson 1933; in batches, with weights instead of single draws: Scott 2010. A
proportion has a uniform Beta prior. A mean has a normal-inverse-gamma prior worth one unit at the pooled mean
with the pooled variance, so that draws of a young arm are Student's t with heavy tails; a ratio is treated
like the mean of its linearised values (delta method). A floor keeps every arm learning.

While weights follow outcomes, plain estimates are biased (Nie et al. 2018, arXiv:1708.01977): exposures keep
their propensities, and reports show no intervals.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from router.experiments.stats import Kind, Metric, Moments
from router.experiments.stats.moments import invalid, linear

DRAWS = 20_000
PRIOR_UNITS = 1.0
PRIOR_SHAPE = 1.0  # half the degrees of freedom of a draw without data
Draws = NDArray[np.float64]


def weights(metric: Metric, arms: Mapping[str, Moments], floor: float, seed: str) -> dict[str, float]:
    """Share of each arm, at least `floor`; they sum to 1. The same for the same sums and seed.

    `arms` are sums over units whose columns are the metric's. Raises InvalidRequest for a floor that does not
    leave every arm more than nothing.
    """
    if not 0 < floor * len(arms) <= 1 + 1e-9:
        raise invalid("floor", f"must be above 0 and at most 1/{len(arms)} for {len(arms)} arms, got {floor}")
    chances = best_chances(metric, arms, seed)
    free = max(0.0, 1 - floor * len(arms))
    found = {arm: floor + free * chance for arm, chance in chances.items()}
    total = math.fsum(found.values())
    return {arm: weight / total for arm, weight in found.items()}


def best_chances(metric: Metric, arms: Mapping[str, Moments], seed: str) -> dict[str, float]:
    """Chance of each arm to be the best, given its sums; ties share."""
    rng = np.random.default_rng(list(hashlib.sha256(seed.encode()).digest()))
    drawn = np.stack(_draws(metric, arms, rng)) * metric.sign
    best = drawn == drawn.max(axis=0)
    shares = (best / best.sum(axis=0)).mean(axis=1)
    return dict(zip(arms, map(float, shares), strict=True))


def seed_of(experiment: str, phase: int, epoch: int) -> str:
    """What the draws of an epoch depend on beside the sums."""
    return f"{experiment}\x1f{phase}\x1f{epoch}"


def _draws(metric: Metric, arms: Mapping[str, Moments], rng: np.random.Generator) -> list[Draws]:
    if metric.kind is Kind.PROPORTION:
        return [
            rng.beta(1 + float(m.sums[0]), 1 + max(0.0, float(m.n - m.sums[0])), DRAWS) for m in arms.values()
        ]
    known = {arm: _values(metric.kind, moments) for arm, moments in arms.items()}
    present = [v for v in known.values() if v is not None]
    units = sum(n for n, _, _ in present)
    if not units:
        return [np.zeros(DRAWS) for _ in arms]  # nothing is known of any
    centre = sum(n * mean for n, mean, _ in present) / units
    spread = sum(squares + n * (mean - centre) ** 2 for n, mean, squares in present) / units
    return [_normal(known[arm] or (0.0, centre, 0.0), centre, spread, rng) for arm in arms]


def _values(kind: Kind, moments: Moments) -> tuple[float, float, float] | None:
    """Units, mean, and sum of squares around it, of the units' (linearised) values; None without any."""
    n = float(moments.n)
    if n < 1 or (kind is Kind.RATIO and not moments.sums[1]):
        return None
    value, gradient = linear(kind, moments)
    squares = float(moments.form(gradient, gradient)) * (n - 1) if n > 1 else 0.0
    return n, float(value), max(0.0, squares)


def _normal(
    values: tuple[float, float, float], centre: float, spread: float, rng: np.random.Generator
) -> Draws:
    """Draws of an arm's mean: Student's t of the conjugate posterior (Gelman et al., BDA3, section 3.3)."""
    n, mean, squares = values
    strength, shape = PRIOR_UNITS + n, PRIOR_SHAPE + n / 2
    located = (PRIOR_UNITS * centre + n * mean) / strength
    scale = PRIOR_SHAPE * spread + (squares + PRIOR_UNITS * n * (mean - centre) ** 2 / strength) / 2
    drawn: Draws = located + math.sqrt(scale / (shape * strength)) * rng.standard_t(2 * shape, DRAWS)
    return drawn
