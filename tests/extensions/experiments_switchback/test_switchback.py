"""A switchback judged: slices that a store took in, by the arms that the server had."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from router.errors import InvalidRequest
from router.experiments import report_tables, words
from router.experiments.assignment import running_of
from router.experiments.messages import experiment_message
from router.experiments.model import (
    AuditEntry,
    Experiment,
    ExperimentPhase,
    Exposure,
    Kind,
    Lifecycle,
    MetricSpec,
    Mode,
    SizeQuestion,
    StoredOutcome,
)
from router.experiments.report.build import report
from router.experiments.report_messages import report_message, report_of
from router.experiments.runtime import act_on
from router.experiments.sizing import VisibleHistory
from router.experiments.slice_sizing import slice_size_of
from router.experiments.slices import SlicePart
from router.experiments.store.store import ExperimentStore
from router.extensions.experiments_switchback.switchback import SwitchbackMode
from tests.experiments.plans import plan

START, SLICE = 1_000_000.0, 100.0
SECONDS = MetricSpec("time_to_first_token", Kind.MEAN, higher_is_better=False)
SPEC = plan(
    mode=Mode.SWITCHBACK, primary=SECONDS, slice_length=SLICE, wash_out=10.0, planned_slices=14, window=200.0
)
LATER = 10_000.0


@pytest.fixture
def played(tmp_path):
    """`play` with a store of its own each time, closed at the end."""
    stores = []

    def made(*args, **options):
        stores.append(ExperimentStore(f"sqlite:///{tmp_path}/{len(stores)}.db"))
        return play(stores[-1], *args, **options)

    yield made
    for store in stores:
        store.close()


def play(store, spec=SPEC, slices=16, slower=0.0, servers=("one",), skip=(), noise=0.1, settling=0.0, seed=2):
    """The store with a switchback of so many slices; in the new arm requests take `slower` seconds more, less
    `settling` in the first half of a slice. 10 requests come in a slice; the load differs by slice."""
    dice = random.Random(seed)
    made = Experiment("x", spec, Lifecycle.RUNNING, (ExperimentPhase(1, START, "enrol", "vary", spec),))
    kept = store.create(Experiment("x", spec))
    store.replace(replace(made, etag=kept.etag), AuditEntry("x", START, "me", "start", ""))
    running = running_of(made, str, 0.0)
    exposures, outcomes = [], []
    for server in servers:
        loads = [dice.uniform(1.0, 3.0) for _ in range(slices // 2)]  # neighbours are alike
        for number in (n for n in range(slices) if n not in skip):
            load = loads[number // 2]
            for i in range(10):
                at = number * SLICE + i * SLICE / 10 + 0.5
                drawn = running.drawn(server, "", START + at)
                part, arm = SlicePart.parsed(drawn.unit), drawn.arm
                key = f"{server}-{number}-{i}"
                spent = load + dice.gauss(0, noise)
                if arm.name == "new":
                    spent += slower - (settling if part.part == "first" else 0.0)
                if part.part == "wash-out":
                    spent = 99.0  # what would show if it counted
                exposures.append(
                    Exposure("x", 1, str(part), arm.name, START + at, key, 0.5, arm.name, "base")
                )
                outcomes += [
                    StoredOutcome(f"t-{key}", SECONDS.name, max(0.0, spent), START + at, response_id=key),
                    StoredOutcome(
                        f"e-{key}", "error", float(dice.random() < 0.1), START + at, response_id=key
                    ),
                ]
    store.expose(exposures)
    store.record(outcomes)
    return store


def judged(store, now=LATER):
    mode = SwitchbackMode(store)
    return report(store, "x", now=START + now, judges={"switchback": mode.judge})


def test_a_faster_arm_is_promoted_at_the_planned_size_and_not_before(played):
    store = played(slower=-0.8)
    early = judged(store, now=12 * SLICE + 250.0)
    assert (early.verdict.decision, early.verdict.rule) == ("undecided", "planned-size")
    assert early.arms[0].switchback.slices == 12
    assert not early.arms[0].switchback.complete
    found = judged(store)
    (arm,) = found.arms
    assert (found.verdict.decision, found.verdict.rule, found.arm) == ("promote", "primary-better", "new")
    assert (arm.primary.effect, arm.primary.units) == (pytest.approx(-0.8, abs=0.15), (7, 7))
    assert arm.primary.low < -0.8 < arm.primary.high < 0
    assert max(pair.control for pair in arm.switchback.pairs) < 4  # no wash-out in it
    assert judged(store, now=2 * LATER).arms == found.arms
    assert not found.points
    assert any(note.startswith("switchback:") for note in found.notes)


def test_equal_arms_are_undecided_and_a_slower_one_is_harm(played):
    assert judged(played(slower=0.0)).verdict.rule == "primary-open"
    found = judged(played(slower=0.8))
    assert (found.verdict.decision, found.verdict.rule) == ("stop for harm", "primary-worse")


def test_an_arm_that_is_worse_in_every_pair_is_stopped_before_the_planned_size(played):
    spec = replace(SPEC, planned_slices=200)
    found = judged(played(spec, slices=24, slower=2.0))
    assert (found.verdict.decision, found.verdict.rule) == ("stop for harm", "primary-worse")
    assert act_on(found, START + LATER).experiment.state is Lifecycle.STOPPED
    assert judged(played(spec, slices=12, slower=2.0)).verdict.rule == "planned-size"


@pytest.mark.parametrize(
    ("rail", "slower", "state", "rule"),
    [
        (replace(SECONDS, margin=0.5), 0.0, "within", "primary-open"),
        (replace(SECONDS, margin=0.5), 1.5, "beyond", "guardrail"),
        (replace(SECONDS, margin=0.5, relative=True), 0.1, "within", "primary-open"),
        (replace(SECONDS, margin=0.1, relative=True), 1.0, "beyond", "guardrail"),
        (replace(SECONDS, margin=0.5, cap=4.0), 0.0, "within", "primary-open"),
        (replace(SECONDS, margin=0.2), 0.2, "open", "primary-open"),
    ],
)
def test_a_guardrail_is_read_from_the_same_pairs(played, rail, slower, state, rule):
    spec = replace(SPEC, primary=MetricSpec("error", Kind.PROPORTION, False), guardrails=(rail,))
    found = judged(played(spec, slower=slower))
    (shown,) = found.arms[0].guardrails
    assert (shown.state, found.verdict.rule) == (state, rule)
    assert shown.method == "sign-flip"


def test_servers_are_randomised_each_and_pairs_without_a_slice_are_left_out(played):
    found = judged(played(servers=("one", "two"), slices=8, skip=(3,), slower=-0.8))
    pairs = found.arms[0].switchback.pairs
    assert [(pair.number, pair.server) for pair in pairs] == [
        (block, server) for block in (0, 2, 3) for server in ("one", "two")
    ]
    assert found.verdict.rule == "planned-size"


def test_an_effect_that_takes_time_within_a_slice_is_pointed_out(played):
    carried = judged(played(slower=2.0, settling=1.5)).arms[0].switchback.carry_over
    assert carried.p <= 0.05
    assert carried.second > carried.first
    sound = judged(played(slower=1.0)).arms[0].switchback.carry_over
    assert "no carry-over is shown" in sound.text


def test_a_share_of_slow_answers_is_read_from_the_answers(played):
    slow = MetricSpec("time_to_first_token_over_2s", Kind.PROPORTION, higher_is_better=False)
    (arm,) = judged(played(replace(SPEC, primary=slow), slower=5.0)).arms
    assert arm.primary.values[1] == 1.0
    assert 0.0 < arm.primary.values[0] < 1.0


def test_a_cap_counts_for_each_answer(played):
    metric = replace(SECONDS, name="total_time", cap=2.0)
    spec = replace(
        SPEC, secondary=(replace(SECONDS, name="error"), metric), primary=replace(SECONDS, cap=1.5)
    )
    pairs = judged(played(spec)).arms[0].switchback.pairs
    assert max(max(pair.control, pair.treatment) for pair in pairs) <= 1.5


def test_a_report_comes_to_a_client_as_it_was_made(played):
    found = judged(played(slower=-0.8))
    again = report_of(report_message(found, experiment_message(found.experiment)))
    assert again.arms == found.arms


def test_a_plan_of_slices_knows_from_the_last_ones_how_much_they_differ(played):
    spec = replace(SPEC, planned_slices=40)
    history = VisibleHistory(played(spec, slices=40, slower=0.5, noise=0.5), lambda _: True)
    question = SizeQuestion(SECONDS.name, route="medical", effect=0.3, slice_length=SLICE)
    answer = slice_size_of(question, history)
    assert answer.baseline == pytest.approx(2.0, abs=0.4)
    assert answer.deviation == pytest.approx(0.5 * (2 / 9) ** 0.5, rel=0.5)
    assert "experiments/x, phase 1" in answer.notes[0]
    assert answer.units % 2 == 0
    wider = slice_size_of(replace(question, deviation=1.0), history)
    assert wider.units > answer.units
    again = slice_size_of(replace(question, deviation=1.0, effect=None, units=wider.units))
    assert again.effect == pytest.approx(0.3, rel=0.05)
    with pytest.raises(InvalidRequest, match="deviation"):
        slice_size_of(replace(question, metric="total_time"), history)


def test_a_report_in_words_says_how_many_slices_are_over_and_when_to_give_up(played):
    store = played(slower=0.0)
    early, late = judged(store, now=12 * SLICE + 250.0), judged(store)
    assert words.heading(early) == (
        "WAIT: only 12 of 14 planned slices have had their time, and the verdict comes after the last."
    )
    assert words.heading(late).startswith("GIVE UP: no difference between new and old is shown.")
    table = report_tables.slices(late)
    assert (len(table.rows), len(table.notes)) == (7, 1)
    assert table.rows[0][1] == "one"
