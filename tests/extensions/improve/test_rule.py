"""When a version counts as better, and how often the rule errs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import improve_rule
from benchmarks.improve_rule import share
from router.extensions.improve.rule import gains, keeps, level, rows_needed, users_needed
from router.paired import difference

NAMES = ("mean", "low", "high", "p", "rows", "groups")


def compared(changes, chance=None):
    """A comparison on feedback as JSON, of changes of -1, 0 or 1; `chance` against other right answers."""
    found = [difference(one, [0] * len(one), range(len(one))) for one in (changes, chance or changes)]
    gap, by_chance = ({name: getattr(one, name) for name in NAMES} for one in found)
    return {"difference": gap, "by_chance": by_chance}


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (compared([1] * 3 + [0] * 57), "no gain is shown"),
        (compared([-1] * 20 + [0] * 40), "no gain is shown"),
        (compared([1] * 20 + [0] * 40, chance=[1, -1] * 10 + [0] * 40), "contradicts itself"),
    ],
)
def test_gain_that_is_not_shown_is_said(found, why):
    decision = gains(found, 1)
    assert not decision.passes
    assert why in decision.why


def test_gain_that_one_verdict_shows_needs_more_after_others():
    found = compared([1] * 7 + [0] * 50)  # one-sided p is 1/128
    assert gains(found, 1).passes
    assert gains(found, 2).passes
    assert not gains(found, 3).passes


def test_all_verdicts_on_a_version_err_in_five_percent_together():
    assert sum(level(verdict) for verdict in range(1, 100_000)) == pytest.approx(0.05, abs=1e-5)


@pytest.mark.parametrize("verdict", [1, 2, 7, 20])
def test_users_that_are_waited_for_can_show_a_gain(verdict):
    half = users_needed(verdict) // 2
    assert gains(compared([1] * half + [0] * half), verdict).passes


def test_loss_that_is_not_excluded_is_said_with_the_rows_that_it_takes():
    decision = keeps([-1.0] * 6 + [1.0] * 6 + [0.0] * 288, 1, "1.0.0")
    assert not decision.passes
    assert decision.why == (
        "it may forget: 0.0 points (−2.6 points or more) on 300 task rows against 1.0.0, and a loss of 2.0 "
        "points must be excluded; about 900 rows show that nothing is lost, where nothing is"
    )
    assert keeps([-1.0] * 18 + [1.0] * 18 + [0.0] * 864, 1, "1.0.0").passes
    assert improve_rule.keep_power(900, 0.04, 1) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("verdict", [1, 2, 7, 20])
def test_task_rows_that_are_asked_for_can_show_that_nothing_is_lost(verdict):
    rows = rows_needed(verdict)
    assert keeps([0.0] * rows, verdict, "1.0.0").passes
    assert not keeps([0.0] * (rows - 20), verdict, "1.0.0").passes


def test_small_changes_of_graded_scores_are_judged_by_their_size():
    assert keeps([0.02, -0.02] * 150, 1, "1.0.0").passes
    assert not keeps([-0.03, -0.01] * 150, 1, "1.0.0").passes


# -- Simulated: 4,000 draws, so 5 % come out as at most 5.8 %


def test_twenty_nights_without_a_gain_accept_in_at_most_five_percent():
    for row in improve_rule.nights():
        assert share(row["as many right as wrong"]) <= 0.05
        assert share(row["random corrections"]) <= 0.05
        assert share(row["each night at 5 %, as it was"]) > 0.10  # so the simulation can see it


def test_loss_of_two_points_passes_in_at_most_five_percent_of_rounds_and_of_twenty_nights():
    for row in improve_rule.losses(draws=500):
        assert share(row["passes in the first round"]) <= 0.05
        assert share(row["any of 20 nights"]) <= 0.07  # 500 draws
        assert share(row["passes in all rounds"]) <= 0.01


@pytest.mark.parametrize("loss", [0.005, 0.01, 0.02])
def test_losses_do_not_add_up_over_rounds(loss):
    now, before = improve_rule.final_loss(loss)
    assert now <= loss
    assert before > 0.04  # as it was


@pytest.mark.parametrize(
    ("users", "mended", "verdict", "least"), [(24, 0.5, 1, 0.9), (50, 0.35, 1, 0.95), (100, 0.35, 10, 0.95)]
)
def test_real_gain_is_shown(users, mended, verdict, least):
    assert improve_rule.gain_power(users, mended, verdict) >= least


@pytest.mark.parametrize(
    ("rows", "changed", "verdict", "least"),
    [(600, 0.02, 1, 0.85), (1200, 0.04, 1, 0.9), (2400, 0.04, 10, 0.9)],
)
def test_version_that_forgets_nothing_passes(rows, changed, verdict, least):
    assert improve_rule.keep_power(rows, changed, verdict) >= least


def test_simulated_test_is_the_one_that_compares_versions():
    for better, worse in ((0, 0), (3, 0), (9, 4), (4, 9)):
        found = difference(
            [1] * better + [0] * worse + [0], [0] * better + [1] * worse + [0], range(better + worse + 1)
        )
        (simulated,) = improve_rule.p_values(np.array([better]), np.array([worse]))
        assert found.p == pytest.approx(min(1.0, 2 * simulated if better >= worse else found.p))
