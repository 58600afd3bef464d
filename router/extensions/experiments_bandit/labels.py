"""Evidence from the labels of events, which may be looked at after every epoch.

Shares of a bandit's units follow outcomes while rates go up and down. Given that a unit had an event, which
arm was it of? It is one of the treatment's with the odds of the shares times the ratio of the rates, whatever
the rates are just then. Every factor has a mean of 1 or less under the null (a test martingale; for
multinomial counts of known shares Lindon and Malek 2022, arXiv:2011.03567).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from router.experiments.stats.moments import Array, invalid

EVENT_RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""By how many times a rate may be larger: the mixture's grid."""
EventsByArm = tuple[float, float, float]
"""Events of control and of the treatment, and the treatment's share of both under equal rates: the share by
which units were divided, or, of an epoch that is over, the treatment's part of its units; then events are
drawn without replacement, which spreads less (Hoeffding 1963, theorem 4)."""


def more_events(epochs: Iterable[EventsByArm], margin: float = 1.0) -> float:
    """Log evidence that the treatment's rate is above `margin` times control's in some epoch.

    Under the null it is at most that in every epoch.
    """
    found = np.array(list(epochs), np.float64).reshape(-1, 3)
    control, treatment, share = found.T
    if ((share <= 0) | (share >= 1)).any():
        raise invalid("share", "must be above 0 and below 1 in every epoch")
    odds = margin * share / (1 - share)
    return _log_mean_exp([_log_label_factor(control, treatment, odds, ratio) for ratio in EVENT_RATIOS])


def fewer_events(epochs: Iterable[EventsByArm], margin: float = 1.0) -> float:
    """Log evidence that the treatment's rate is below `margin` times control's in some epoch."""
    return more_events(((t, c, 1 - share) for c, t, share in epochs), 1 / margin)


def _log_label_factor(control: Array, treatment: Array, odds: Array, ratio: float) -> float:
    """Likelihood of the labels with odds `ratio` times as large, against those of the null."""
    gain = treatment * math.log(ratio) - (treatment + control) * np.log((1 + ratio * odds) / (1 + odds))
    return float(gain.sum())


def _log_mean_exp(logs: Sequence[float]) -> float:
    most = max(logs)
    return most + math.log(math.fsum(math.exp(x - most) for x in logs) / len(logs))
