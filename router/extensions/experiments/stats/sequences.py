"""Evidence that may be looked at after every unit: mixtures, and exact ones.

Normal mixtures: Robbins 1970 (doi:10.1214/aoms/1177696786) for the two-sided boundary; Howard, Ramdas,
McAuliffe and Sekhon 2021 (arXiv:1810.08240) for the one-sided; Waudby-Smith, Arbour, Sinha, Kennedy and
Ramdas 2024 (arXiv:2103.06476) for why they hold asymptotically with estimated variances. `z` is an effect in
standard errors, `gain` = n rho^2 grows with the units and is `peak_gain` where the boundary is tightest.

Until a planned size: O'Brien and Fleming 1979 (doi:10.2307/2530245), looked at without end. z times the root
of the part that is there is Brownian motion; by the reflection principle the chance that it leaves -c to c by
time 1 is at most 4 (1 - Phi(c)), twice that of either side (closer than 1e-10 for c above 2).

Exact: for each arm the beta-binomial mixture (Robbins 1970; arXiv:1810.08240, section 4),
e(p) = B(a+s, b+f) / (B(a,b) p^s (1-p)^f), a martingale if p is the arm's true rate, and a supermartingale for
any values within 0 and 1 whose mean is p, with s their sum and f what is left to 1 (since x -> u^x v^(1-x) is
convex). Two arms: the product of theirs, least over all pairs of rates on a line, which is tighter than the
difference of two intervals at half the error each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.extensions.experiments.stats.moments import Array

PRIOR = 0.5  # Jeffreys': loses least where rates are near 0 or 1
_LOG_ERFC = np.frompyfunc(lambda x: math.log(math.erfc(x)) if x < 26 else -x * x - math.log(x * 1.7725), 1, 1)
_STEPS, _HALVINGS = 52, 36
_SHIFT = 8
_STIRLING = math.log(2 * math.pi) / 2 - math.lgamma(_SHIFT)


@dataclass(frozen=True, slots=True)
class Line:
    """The claim that treatment equals scale * control + offset."""

    scale: float = 1.0
    offset: float = 0.0


EQUAL = Line()


def peak_gain(alpha: float) -> float:
    """n rho^2 at the planned size: the choice of rho of arXiv:2103.06476 (section on tuning)."""
    level = -2 * math.log(alpha)
    return level + math.log(level + 1)


def log_normal_cdf(x: ArrayLike) -> Array:
    """Log of the standard normal distribution function."""
    found: Array = np.asarray(_LOG_ERFC(-np.asarray(x, np.float64) / math.sqrt(2)), np.float64) - math.log(2)
    return found


def two_sided(z: ArrayLike, gain: ArrayLike) -> Array:
    """Log evidence that the effect is not 0: mixture over effects N(0, rho^2)."""
    z, gain = np.asarray(z, np.float64), np.asarray(gain, np.float64)
    found: Array = gain / (1 + gain) * z * z / 2 - np.log1p(gain) / 2
    return found


def one_sided(z: ArrayLike, gain: ArrayLike) -> Array:
    """Log evidence that the effect is above 0: mixture over the positive half of N(0, rho^2)."""
    z, gain = np.asarray(z, np.float64), np.asarray(gain, np.float64)
    found: Array = two_sided(z, gain) + math.log(2) + log_normal_cdf(z * np.sqrt(gain / (1 + gain)))
    return found


def two_sided_bound(gain: ArrayLike, alpha: float) -> Array:
    """The |z| at which the two-sided evidence is 1/alpha."""
    gain = np.asarray(gain, np.float64)
    found: Array = np.sqrt((1 + gain) / gain * (np.log1p(gain) - 2 * math.log(alpha)))
    return found


def planned_bound(part: ArrayLike, alpha: float) -> Array:
    """The |z| at which an effect is shown when `part` of the planned units is there: continuous
    O'Brien-Fleming, valid at any number of looks until then; infinite without units and past the plan.
    """
    part = np.asarray(part, np.float64)
    level = NormalDist().inv_cdf(1 - alpha / 4)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where((part > 0) & (part <= 1), level / np.sqrt(part), np.inf)
    return found


def planned_evidence(z: ArrayLike, part: ArrayLike) -> Array:
    """Log evidence that the effect is not 0, for looks until the planned size: `planned_bound` is where it
    reaches 1/alpha. Past the plan there is none."""
    z, part = np.asarray(z, np.float64), np.asarray(part, np.float64)
    reached = np.abs(z) * np.sqrt(np.clip(part, 0, 1))
    log_p = math.log(4) + log_normal_cdf(-reached)
    found: Array = np.where(part <= 1, np.maximum(-log_p, 0.0), 0.0)
    return found


def log_gamma(x: ArrayLike) -> Array:
    """Log of the gamma function of numbers above 0, element by element, to some 1e-11: Stirling's series."""
    small = np.asarray(x, np.float64)
    y = small + _SHIFT
    series = (1 / 12 - (1 / 360 - (1 / 1260 - 1 / (1680 * y * y)) / (y * y)) / (y * y)) / y
    product = np.ones(())
    for i in range(_SHIFT):
        product = product * (1 + small / i if i else small)
    found: Array = (y - 0.5) * np.log(y) - y + series - np.log(product) + _STIRLING
    return found


def log_beta(a: ArrayLike, b: ArrayLike) -> Array:
    """Log of the beta function."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return log_gamma(a) + log_gamma(b) - log_gamma(a + b)


def _mixed(successes: ArrayLike, failures: ArrayLike) -> Array:
    s, f = np.asarray(successes, np.float64), np.asarray(failures, np.float64)
    return log_beta(s + PRIOR, f + PRIOR) - log_beta(PRIOR, PRIOR)


def log_likelihood(s: ArrayLike, f: ArrayLike, p: ArrayLike) -> Array:
    """Of a rate p, from successes and failures; parts of a success where values lie between 0 and 1."""
    s, f, p = (np.asarray(x, np.float64) for x in (s, f, p))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(s > 0, s * np.log(p), 0) + np.where(f > 0, f * np.log1p(-p), 0)
    return found


def outermost(excess: Callable[[Array], Array], inside: ArrayLike, outside: ArrayLike) -> Array:
    """Where `excess`, negative at `inside`, turns positive on the way to `outside`, if it does.

    By bisection: evidence grows from the likeliest value outwards.
    """
    near, far = (np.array(x, np.float64) for x in np.broadcast_arrays(inside, outside))
    never = excess(far) < 0
    start = far.copy()
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        covered = excess(middle) < 0
        near, far = np.where(covered, middle, near), np.where(covered, far, middle)
    found: Array = np.where(never, start, far)
    return found


def both_ends(values: Array) -> Array:
    """-1 and 1 as the first axis, before those of `values`: both ends of intervals are found at once."""
    return np.array([-1.0, 1.0]).reshape(2, *(1,) * np.ndim(values))


Counts = tuple[ArrayLike, ArrayLike]  # successes and failures


@dataclass(frozen=True)
class LineFit:
    """Two rates held against a line: the likeliest pair on it, by how much its log likelihood is less than
    that of the best pair (infinite where no two rates lie on the line), on which side treatment lies, and
    the line's slope."""

    control: Array
    treatment: Array
    lost: Array
    side: Array
    scale: Array


@dataclass(frozen=True)
class TwoRates:
    """Successes and failures of two arms, many experiments at once."""

    control: Counts
    treatment: Counts

    @cached_property
    def _numbers(self) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        (s0, f0), (s1, f1) = (
            tuple(np.asarray(x, np.float64) for x in arm) for arm in (self.control, self.treatment)
        )
        return (s0, f0), (s1, f1)

    @cached_property
    def rates(self) -> tuple[Array, Array]:
        """Both, as they are; one half where there is nothing."""
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = (np.where(s + f > 0, s / (s + f), 0.5) for s, f in self._numbers)
        return first, second

    @cached_property
    def _best(self) -> Array:
        return self._likelihood(*self.rates)

    @cached_property
    def _mixture(self) -> Array:
        """Log likelihood under the mixture, over that of the best pair."""
        (s0, f0), (s1, f1) = self._numbers
        return _mixed(s0, f0) + _mixed(s1, f1) - self._best

    def _likelihood(self, p: Array, q: Array) -> Array:
        (s0, f0), (s1, f1) = self._numbers
        return log_likelihood(s0, f0, p) + log_likelihood(s1, f1, q)

    def against(self, scale: ArrayLike = 1.0, offset: ArrayLike = 0.0) -> LineFit:
        """The line on which treatment = scale * control + offset."""
        p, q, there = on_line(*self._numbers, scale, offset)
        lost = np.where(there, np.maximum(self._best - self._likelihood(p, q), 0), np.inf)
        first, second = self.rates
        side = np.sign(second - np.asarray(scale) * first - np.asarray(offset, np.float64))
        return LineFit(p, q, lost, side, np.asarray(scale, np.float64))

    def deviance(self, line: LineFit) -> Array:
        """Signed root of the likelihood ratio against a line.

        Nearly standard normal on the line, also where one arm is small and has had no event yet, since each
        arm's variance is the one that it has there (Barndorff-Nielsen 1986, doi:10.1093/biomet/73.2.307).
        """
        found: Array = line.side * np.sqrt(2 * line.lost)
        return found

    def exact(self, line: LineFit) -> Array:
        """Log evidence against a line, exact."""
        return self._mixture + line.lost


def two_arms(control: Counts, treatment: Counts, line: Line = EQUAL) -> Array:
    """Log evidence against treatment = scale * control + offset; exact. Infinite where no rates are so."""
    rates = TwoRates(control, treatment)
    return rates.exact(rates.against(line.scale, line.offset))


def on_line(
    control: tuple[Array, Array], treatment: tuple[Array, Array], scale: ArrayLike, offset: ArrayLike
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """The likeliest pair of rates with treatment = scale * control + offset, and whether there is one."""
    (s0, f0), (s1, f1) = control, treatment
    k, shift = np.asarray(scale, np.float64), np.asarray(offset, np.float64)
    if np.all(k == 1) and not shift.any():
        p = (s0 + s1) / np.maximum(s0 + s1 + f0 + f1, 1e-300)
        return p, p, np.ones(np.shape(p), bool)
    least, most = np.maximum(0, -shift / k), np.minimum(1, (1 - shift) / k)
    if np.all(k == 1):
        p = _with_difference(s0, f0, s1, f1, shift)
    elif not shift.any():
        p = _with_ratio(s0, f0, s1, f1, k)
    else:
        p = _with_both(s0, f0, s1, f1, k, shift, least, most)
    p = np.clip(p, least, np.maximum(least, most))
    return p, np.clip(k * p + shift, 0, 1), np.asarray(least <= most) & np.ones(np.shape(p), bool)


def _with_difference(s0: Array, f0: Array, s1: Array, f1: Array, delta: Array) -> Array:
    """Control's rate where treatment = control + delta: a root of a cubic (Miettinen and Nurminen 1985)."""
    n0, n = s0 + f0, np.maximum(s0 + f0 + s1 + f1, 1e-300)
    a = ((n + n0) * delta - n - s0 - s1) / (3 * n)
    b = ((n0 * delta - n - 2 * s0) * delta + s0 + s1) / (3 * n)
    c = s0 * delta * (1 - delta) / (2 * n)
    middle = a**3 - 1.5 * a * b + c
    radius = np.copysign(np.sqrt(np.maximum(a * a - b, 0)), middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.where(radius == 0, 1.0, middle / radius**3)
    found: Array = 2 * radius * np.cos((math.pi + np.arccos(np.clip(cosine, -1, 1))) / 3) - a
    return found


def _with_ratio(s0: Array, f0: Array, s1: Array, f1: Array, k: Array) -> Array:
    """Control's rate where treatment = k * control: a root of a quadratic (Miettinen and Nurminen 1985)."""
    a, c = (s0 + f0 + s1 + f1) * k, s0 + s1
    b = (s1 + f1 + s0) * k + s1 + s0 + f0
    root = np.sqrt(np.maximum(b * b - 4 * a * c, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(b + root > 0, 2 * c / (b + root), 0.0)
    return found


def _with_both(
    s0: Array, f0: Array, s1: Array, f1: Array, k: Array, shift: Array, least: Array, most: Array
) -> Array:
    """The same on any line, by bisection: the log likelihood is concave."""
    low, high, *_ = np.broadcast_arrays(least, most, s0 + f0 + s1 + f1)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(_STEPS):
            p = (low + high) / 2
            q = k * p + shift
            rising = s0 / p - f0 / (1 - p) + k * (s1 / q - f1 / (1 - q)) > 0
            low, high = np.where(rising, p, low), np.where(rising, high, p)
    found: Array = (low + high) / 2
    return found


def difference_bounds(control: Counts, treatment: Counts, alpha: float = 0.05) -> tuple[Array, Array]:
    """All differences treatment - control of two rates with exact evidence below 1/alpha, their two ends."""
    both = TwoRates(control, treatment)

    def excess(offset: Array) -> Array:
        return both.exact(both.against(1.0, offset)) + math.log(alpha)

    first, second = both.rates
    low, high = outermost(excess, second - first, both_ends(second - first))
    return low, high
