"""Looks of the guardian: what a report makes the server do, and who gets it."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import pytest

from router.extensions.experiments import runtime as guardian
from router.extensions.experiments.model import ArmSpec, AuditEntry, Experiment, Lifecycle, Mode
from router.extensions.experiments.report.model import ArmReport, MetricReport, Report, Ruling
from router.extensions.experiments.runtime import LiveExperiments, act_on
from router.types import AdapterRef
from tests.extensions.experiments.made import SPEC, experiment
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.test_recorder import until

BETTER = Ruling("promote", "primary-better", "success: 0.6 against 0.5")
HARM = Ruling("stop for harm", "guardrail", "errors: 0.2 against 0.01")


class Bench:
    """Judges by `ruling`, and counts how often."""

    def __init__(self, store: MemoryStore, ruling: Ruling = BETTER) -> None:
        self.store, self.ruling, self.looks = store, ruling, 0
        self.go = threading.Event()
        self.go.set()

    def __call__(self, name: str) -> Report:
        self.looks += 1
        self.go.wait(10)
        of, arm = self.store.get(name), ArmReport("new", self.ruling, None)
        return Report(
            of, len(of.phases), self.ruling, "new", (arm,), (), (), self.store.trail(name), (), 50.0
        )


@pytest.fixture
async def begin():
    made = []

    async def start(bench: Bench) -> LiveExperiments:
        live = LiveExperiments(bench.store, poll_seconds=0.02, look_seconds=0.01, judge=bench)
        made.append((live, bench))
        await live.start()
        return live

    yield start
    for live, bench in made:
        bench.go.set()
        await live.close()


@pytest.fixture
def bench() -> Bench:
    store = MemoryStore()
    store.create(experiment())
    return Bench(store)


async def test_a_look_that_hangs_does_not_hold_up_the_end(begin, bench, monkeypatch):
    monkeypatch.setattr(guardian, "CLOSE_SECONDS", 0.1)
    bench.go.clear()
    live = await begin(bench)
    await until(lambda: bench.looks == 1)
    began = time.monotonic()
    await live.close()
    assert time.monotonic() - began < 2


async def test_who_observes_gets_the_report_with_what_the_look_did(begin, bench):
    bench.ruling, seen = HARM, []
    live = await begin(bench)
    live.guardian.observers.append(seen.append)
    await until(lambda: seen and not live.running)
    assert [entry.act for entry in seen[0].audit] == ["stop"]


async def test_nothing_is_judged_at_rest(begin, bench):
    live = await begin(bench)
    await until(lambda: bench.looks)
    await live.guardian.rest()
    looks = bench.looks
    await asyncio.sleep(0.05)
    assert bench.looks == looks


OPEN = Ruling("undecided", "primary-open", "nothing yet")
BROKEN = Ruling("invalid", "sample-ratio", "units by arm are 10, 90")
ERRORS = MetricReport("error", (100, 100), (0.01, 0.2), 0.19, 0.1, 0.3, 0.001, "exact", state="beyond")
THREE = replace(
    SPEC,
    arms=(
        ArmSpec("control", 0.4, AdapterRef("medical", "1.0.0")),
        ArmSpec("new", 0.35, AdapterRef("medical", "1.1.0")),
        ArmSpec("base", 0.25),
    ),
)
HELD = (ArmSpec("out", 0.1), ArmSpec("in", 0.9))


def arm(name: str, ruling: Ruling = OPEN) -> ArmReport:
    return ArmReport(name, ruling, None, guardrails=(ERRORS,))


def report(of: Experiment, *arms: ArmReport, verdict: Ruling = OPEN, audit=(), phase: int = 1) -> Report:
    return Report(of, phase, verdict, None, arms, (), (), tuple(audit), (), 0.0)


def test_nothing_to_do():
    assert act_on(report(experiment(), arm("new")), 50.0) is None


def test_harm_by_the_only_treatment_stops_the_experiment():
    act = act_on(report(experiment(), arm("new", HARM), verdict=HARM), 50.0)
    assert act is not None
    assert act.experiment is not None
    assert act.experiment.state is Lifecycle.STOPPED
    assert act.experiment.stopped == act.experiment.phases[-1].ended == 50.0
    assert act.experiment.stop_reason == "new: errors: 0.2 against 0.01"
    assert (act.entry.actor, act.entry.act, act.entry.time) == ("rule", "stop", 50.0)
    (numbers,) = act.entry.detail["arms"]
    assert numbers["arm"] == "new"
    assert numbers["rule"] == "guardrail"
    assert numbers["metrics"][0]["values"] == [0.01, 0.2]


def test_harm_by_one_of_two_takes_it_out_and_the_others_begin_a_phase():
    before = experiment(spec=THREE)
    act = act_on(report(before, arm("new", HARM), arm("base")), 50.0)
    assert act is not None
    after = act.experiment
    assert after is not None
    assert after.state is Lifecycle.RUNNING
    first, second = after.phases
    assert (first.ended, second.started) == (50.0, 50.0)
    assert [one.name for one in second.spec.arms] == [one.name for one in THREE.arms if one.name != "new"]
    assert sum(one.weight for one in second.spec.arms) == pytest.approx(1)
    assert second.reason.startswith("taken out: new")
    assert after.spec == second.spec
    assert act.entry.act == "take out"
    assert act_on(report(after, arm("base", HARM)), 60.0) is None  # of the phase before


def test_harm_by_all_stops():
    act = act_on(report(experiment(spec=THREE), arm("new", HARM), arm("base", HARM), verdict=HARM), 50.0)
    assert act is not None
    assert act.experiment is not None
    assert act.experiment.state is Lifecycle.STOPPED


def test_an_invalid_experiment_is_held_once_for_a_rule_and_phase():
    blocked = arm("new", BROKEN)
    act = act_on(report(experiment(), blocked, verdict=BROKEN), 50.0)
    assert act is not None
    assert act.experiment is None
    assert (act.entry.act, act.entry.reason) == ("hold", BROKEN.text)
    again = report(experiment(), blocked, verdict=BROKEN, audit=[act.entry])
    assert act_on(again, 60.0) is None
    other = replace(act.entry, detail={**act.entry.detail, "phase": 7})
    assert act_on(report(experiment(), blocked, verdict=BROKEN, audit=[other]), 60.0) is not None


def test_numbers_beside_a_verdict_stop_nothing():
    beyond = replace(arm("new"), primary=replace(ERRORS, metric="success", low=-0.5, high=-0.1, p=1e-9))
    act = act_on(report(experiment(), beyond), 50.0)
    assert act is None


def test_a_holdout_is_held_and_never_stopped():
    of = experiment(spec=replace(SPEC, route="", mode=Mode.HOLDOUT, arms=HELD))
    assert act_on(report(of, arm("in", HARM), verdict=HARM), 50.0) is None
    act = act_on(report(of, arm("in", BROKEN), verdict=BROKEN), 50.0)
    assert act is not None
    assert (act.experiment, act.entry.act) == (None, "hold")


@pytest.mark.parametrize("state", [Lifecycle.DRAFT, Lifecycle.STOPPED])
def test_what_does_not_run_is_left_alone(state):
    assert act_on(report(experiment(state=state), arm("new", HARM), verdict=HARM), 50.0) is None


def test_a_report_of_an_old_phase_is_left_alone():
    found = report(experiment(phase=2), arm("new", HARM), verdict=HARM, phase=1)
    assert act_on(found, 50.0) is None


def test_entries_of_others_do_not_hide_a_hold():
    said = AuditEntry("trial", 1.0, "ann", "stop", "")
    assert act_on(report(experiment(), arm("new"), verdict=BROKEN, audit=[said]), 50.0) is not None
