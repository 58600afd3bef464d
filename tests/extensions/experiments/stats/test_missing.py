"""Missing outcomes: the check of the response, bounds, and when an effect may come from who answers."""

from __future__ import annotations

import numpy as np
import pytest

from router.errors import InvalidRequest
from router.extensions.experiments.model import Kind
from router.extensions.experiments.stats.compare import SequencePlan
from router.extensions.experiments.stats.missing import Missing, Response, missing_outcomes
from router.extensions.experiments.stats.moments import ComparedMetric, Moments
from router.extensions.experiments.stats.planned import Looks

VOTE = ComparedMetric("thumbs_up", Kind.PROPORTION)
PLAN = SequencePlan(units=4000)


def votes(exposed: int, seen: int, ones: int) -> tuple[Response, Moments]:
    return Response(exposed, seen), Moments(seen, (float(ones),), (float(ones),))


def found(control: tuple[int, int, int], treatment: tuple[int, int, int], margin: float = 0.0) -> Missing:
    return missing_outcomes(VOTE, votes(*control), votes(*treatment), PLAN, margin)


def test_the_check_is_of_the_part_by_which_the_response_differs():
    for more in ((2500, 1800), (1800, 2500)):
        first, second = ((50_000, seen, seen // 2) for seen in more)
        assert found(first, second).alarm
    assert not found((50_000, 2000, 1000), (50_000, 2150, 1075)).alarm  # 7.5 %, to be sure
    assert not found((10, 9, 5), (10, 5, 2)).alarm
    assert not found((0, 0, 0), (0, 0, 0)).alarm
    shown = found((50_000, 2000, 1000), (50_000, 2500, 1250))
    assert (shown.control, shown.treatment) == pytest.approx((0.96, 0.95))
    with pytest.raises(InvalidRequest, match="control"):
        found((5, 6, 1), (5, 5, 1))


def test_bounds_are_those_of_the_rows():
    """Of 100 units 40 answer, 20 of them well; in the arm 50, 30 of them well."""
    shown = found((100, 40, 20), (100, 50, 30))
    assert shown.lee == pytest.approx((20 / 40 - 0.5, 30 / 40 - 0.5))  # ten ones, or ten zeros trimmed
    swapped = found((100, 50, 30), (100, 40, 20))
    assert swapped.lee == pytest.approx((-0.25, 0.0))


def test_a_mean_is_bounded_by_its_spread_and_range():
    rng = np.random.default_rng(1)
    scores = [rng.integers(1, 6, n).astype(float) for n in (400, 500)]
    arms = [(Response(1000, len(s)), Moments.of(s)) for s in scores]
    for bounds in (None, (1.0, 5.0)):
        metric = ComparedMetric("score", Kind.MEAN, bounds=bounds)
        shown = missing_outcomes(metric, *arms, PLAN)
        best, worst = np.sort(scores[1])[100:].mean(), np.sort(scores[1])[:400].mean()
        effects = worst - scores[0].mean(), best - scores[0].mean()
        assert shown.lee is not None
        assert shown.lee[0] - 1e-9 <= effects[0] < effects[1] <= shown.lee[1] + 1e-9


def test_an_effect_that_may_come_from_who_answers_is_open():
    assert not found((20_000, 10_000, 5000), (20_000, 10_600, 5600)).settled
    assert found((20_000, 10_000, 5000), (20_000, 10_600, 6100)).settled
    assert found((20_000, 10_000, 5000), (20_000, 10_600, 5500), margin=0.05).settled
    assert found((2000, 2000, 1000), (2000, 2000, 1150)).settled  # all answer


def test_a_ratio_has_no_bounds_and_is_open_where_the_response_differs():
    metric = ComparedMetric("clicks", Kind.RATIO)

    def arm(seen: int) -> tuple[Response, Moments]:
        return Response(10_000, seen), Moments.of([1.0, 0.0] * (seen // 2), [1.0] * seen)

    assert missing_outcomes(metric, arm(5000), arm(5000), PLAN).settled
    shown = missing_outcomes(metric, arm(5000), arm(6000), PLAN)
    assert (shown.lee, shown.settled) == (None, False)


@pytest.mark.parametrize(
    ("shares", "voters"),
    [((0.04, 0.055), (0.5, 0.541)), ((0.2, 0.21), (0.5, 0.524)), ((0.52, 0.5), (0.481, 0.5))],
)
def test_an_arm_is_not_promoted_for_who_answers(shares, voters):
    """Half of the users are satisfied in either arm; those who answer in one arm alone are others."""
    rng, users, promoted = np.random.default_rng(1), 100_000, 0
    for _ in range(60):
        seen = rng.binomial(users, shares)
        ones = rng.binomial(seen, voters)
        shown = found(*((users, int(n), int(k)) for n, k in zip(seen, ones, strict=True)))
        promoted += shown.settled and not shown.alarm and ones[1] / seen[1] > ones[0] / seen[0]
    assert promoted <= 3


def test_the_planned_bound_settles_who_answers_with_fewer_users():
    """A tenth of 4,000 users in each arm votes, 50 and 63 % of them for good."""
    parts = np.array([0.25, 0.5, 0.75, 1.0])
    control, treatment = (
        Moments(400 * parts, (400 * good * parts,), (400 * good * parts,)) for good in (0.5, 0.63)
    )
    looks = Looks(control, treatment, (4000 * parts, 4000 * parts))
    ends = [(Response(4000, 400), Moments(400, (400 * good,), (400 * good,))) for good in (0.5, 0.63)]
    metric, plan = ComparedMetric("votes", Kind.PROPORTION), SequencePlan(units=8000)
    assert not missing_outcomes(metric, *ends, plan).settled
    assert missing_outcomes(metric, *ends, plan, looks=looks).settled
