"""The experiments of one server while it runs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from router.errors import Overloaded, StoreDown
from router.extensions.experiments import recorder, runtime
from router.extensions.experiments.assignment import ArmAssignment, unit_hash
from router.extensions.experiments.model import (
    BUILT_IN,
    AuditEntry,
    Exposure,
    Kind,
    Lifecycle,
    MetricSpec,
    SegmentSpec,
    StoredOutcome,
)
from router.extensions.experiments.recorder import built_in_outcomes
from router.extensions.experiments.report.model import ArmNumbers, Report, Ruling
from router.extensions.experiments.runtime import LiveExperiments, StoreThreads, leave_tasks, route_of
from router.ports import End, Exposed, Served, Stage
from router.types import FinishReason, Usage
from tests.extensions.experiments.made import HOLDOUT, SPEC, decision, experiment, exposure, outcome, request
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.test_recorder import until

ERRORS = MetricSpec("error", Kind.PROPORTION, higher_is_better=False, margin=0.02)
GUARDED = replace(SPEC, guardrails=(ERRORS,), window=1.0)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def begin(store, monkeypatch):
    monkeypatch.setattr(recorder, "RETRY", 0.02)
    made = []

    async def start(**options) -> LiveExperiments:
        live = LiveExperiments(store, **{"poll_seconds": 0.02, "look_seconds": 1000.0, **options})
        made.append(live)
        await live.start()
        return live

    yield start
    store.down = False
    for live in made:
        await live.close()


async def test_what_runs_is_known_at_the_start(begin, store):
    store.create(experiment())
    store.create(experiment("draft", state=Lifecycle.DRAFT))
    live = await begin()
    assert [one.name for one in live.assigner.snapshot.all()] == ["trial"]
    assert [one.name for one in live.known] == ["draft", "trial"]
    assert isinstance(live.assign(request(), decision()), ArmAssignment)


async def test_refresh_takes_over_a_change_at_once(begin, store):
    live = await begin(poll_seconds=1000.0)
    assert not live.running
    store.create(experiment())
    await live.refresh()
    assert live.running
    store.replace(
        replace(store.get("trial"), state=Lifecycle.STOPPED), AuditEntry("trial", 0, "ann", "stop", "")
    )
    await live.refresh()
    assert not live.running


async def test_subscribers_hear_of_changes_only(begin, store):
    live, heard = await begin(poll_seconds=1000.0), []
    live.subscribe(heard.append)
    await live.refresh()
    store.create(experiment())
    await live.refresh()
    await live.refresh()
    assert [[one.name for one in found.all()] for found in heard] == [["trial"]]
    live.subscribe(heard.append)
    assert len(heard) == 2


async def test_a_store_that_is_down_at_the_start(begin, store):
    store.create(experiment())
    store.down = True
    live = await begin()
    assert live.assign(request(), decision()) is None
    with pytest.raises(StoreDown):
        await live.refresh()
    store.down = False
    await until(lambda: live.running and live.availability.up)
    assert isinstance(live.assign(request(), decision()), ArmAssignment)


@pytest.mark.slow
async def test_a_store_that_hangs_does_not_hold_up_the_start(store, monkeypatch):
    monkeypatch.setattr("router.extensions.experiments.runtime.START_SECONDS", 0.05)
    go_on = threading.Event()
    monkeypatch.setattr(MemoryStore, "list", lambda self: go_on.wait(60) and ())
    live = LiveExperiments(store)
    await live.start()
    assert not go_on.is_set()
    go_on.set()
    await live.close()


async def test_skipped_requests_are_counted_by_experiment(begin, store):
    store.create(experiment())
    live = await begin()
    store.down = True
    await until(lambda: not live.availability.up)
    assert live.assign(request(), decision()) is None
    assert live.assign(request(), decision(None)) is None
    assert live.assign(request(), decision(), counted=False) is None
    assert live.counts.skipped == {"trial": 1}


async def test_closing_writes_what_is_queued(begin, store):
    store.create(experiment())
    live = await begin()
    live.recorder.expose(exposure(1))
    await live.close()
    assert set(store.rows["trial", 1].exposures) == {"response1"}


def two_hours_old(spec=GUARDED):
    made = experiment(spec=spec)
    return replace(made, phases=(replace(made.phases[0], started=time.time() - 7200),))


def fill(store: MemoryStore, arm: str, units: int, errors: int, begin: float) -> None:
    for number in range(units):
        rid = f"{arm}{number}"
        store.expose([Exposure("trial", 1, rid, arm, begin, rid)])
        store.record(
            [
                StoredOutcome(f"e{rid}", "error", float(number < errors), begin + 0.5, response_id=rid),
                StoredOutcome(f"s{rid}", "success", 1.0, begin + 0.5, response_id=rid),
            ]
        )


async def test_the_guardian_stops_what_does_harm(begin, store):
    store.create(two_hours_old())
    began = time.time() - 7000
    fill(store, "control", 80, 1, began)
    fill(store, "new", 80, 60, began)
    live = await begin(look_seconds=0.02)
    await until(lambda: store.get("trial").state is Lifecycle.STOPPED, 10)
    await until(lambda: not live.running and bool(live.counts.acts))  # counted after it was done
    (act,) = store.trail("trial")
    assert (act.actor, act.act) == ("rule", "stop")
    assert "error" in act.reason
    assert live.counts.acts == {("trial", "stop"): 1}
    assert store.rows["trial", 1].peak is not None


async def test_the_guardian_holds_an_experiment_whose_arms_have_wrong_shares(begin, store):
    store.create(two_hours_old())
    began = time.time() - 7000
    fill(store, "control", 90, 0, began)
    fill(store, "new", 30, 30, began)
    live = await begin()
    await live.guardian.look()
    await live.guardian.look()
    (act,) = store.trail("trial")
    assert (act.actor, act.act, act.detail["rule"]) == ("rule", "hold", "sample-ratio")
    assert act.detail["units"] == {"control": 90, "new": 30}
    assert store.get("trial").state is Lifecycle.RUNNING
    assert store.rows["trial", 1].peak > 6.9


async def test_the_guardian_outlives_what_goes_wrong(begin, store, caplog):
    store.create(experiment())
    asked = []

    def judge(name):
        asked.append(name)
        raise (RuntimeError("boom"), StoreDown("away"), ValueError("again"))[len(asked) % 3]

    live = await begin(look_seconds=0.01, judge=judge)
    await until(lambda: len(asked) > 4)
    assert "experiment trial could not be judged" in caplog.text
    assert live.running


async def test_units_that_never_come_again_are_warned_about(begin, store):
    store.create(experiment())
    numbers = (
        ArmNumbers("control", 600, 0, 0, 601, 600.0, 0.5),
        ArmNumbers("new", 600, 0, 0, 600, 600.0, 0.5),
    )
    open_ = Ruling("undecided", "primary-open", "")
    told = Report(store.get("trial"), 1, open_, None, (), (), numbers, (), (), 0.0)
    live = await begin(judge=lambda name: told)
    assert live.assigner.warnings("trial") == ()
    await live.guardian.look()
    (text,) = live.assigner.warnings("trial")
    assert text == "hardly any unit comes again, as if units were request ids"


async def test_what_cannot_begin_beside_an_answer_is_left_out(begin, store, caplog):
    live = await begin()
    live.beside += [lambda served: 1 / 0, lambda served: None, lambda served: "watcher"]
    served = Served(request(), decision())
    assert live.watchers(served) == ["watcher"]
    assert "could not begin" in caplog.text


def begun(live: LiveExperiments, asked, choice=None) -> Served:
    """An answer that began and ended, of who it is for."""
    found = live.assign(asked, decision())
    served = Served(asked, choice or decision(), found)
    for watcher in live.watchers(served):
        watcher.began()
        watcher.ended(End(FinishReason.STOP, "text", USAGE))
    return served


async def test_the_holdout_is_exposed_beside_what_is_served(begin, store):
    store.create(experiment())
    store.create(experiment("worth", HOLDOUT))
    live = await begin(holdout=0.3, base_digest=lambda: "base", router_digest=lambda: "router")
    for number in range(40):
        begun(live, request(f"user-{number}", request_id=f"r{number}"))
    await live.recorder.flush()
    split, worth = store.rows["trial", 1].exposures, store.rows["worth", 1].exposures
    assert set(worth) == {f"r{number}" for number in range(40)}
    assert 0 < len(split) < 40
    assert {rid for rid, one in worth.items() if one.arm == "in"} == set(split)
    for one in worth.values():
        assert (one.adapter_digest, one.base_digest, one.router_digest) == ("", "base", "router")
    assert live.counts.exposures["worth", "in"] == len(split)
    errors = [k for k in store.outcomes.values() if k.outcome.metric == "error"]
    assert len(errors) == 40  # once for a response, and of both experiments
    assert {len(kept.places) for kept in errors} == {1, 2}


async def test_outcomes_of_a_response_count_in_the_holdout_too(begin, store):
    store.create(experiment("worth", replace(HOLDOUT, window=1e9)))
    store.create(experiment())
    live = await begin(holdout=0.3)
    begun(live, request("ann"))
    await live.recorder.record([StoredOutcome("k", "success", 1.0, time.time(), response_id="r1")])
    assert ("worth", 1) in store.outcomes["k"].places


async def test_the_route_of_the_holdout_is_the_one_before_an_arm(begin, store):
    to_legal = replace(SPEC, arms=(replace(SPEC.arms[0], adapter=None), replace(SPEC.arms[1], adapter=None)))
    store.create(experiment(spec=to_legal))
    store.create(experiment("worth", HOLDOUT))
    live = await begin(holdout=0.3)
    units = [f"user-{number}" for number in range(40)]
    for unit in units:
        served = begun(live, request(unit, request_id=unit), decision(None))  # both arms are the base
        assert route_of(served) == ("medical" if served.assignment else "base")
    await live.recorder.flush()
    exposed = store.rows["worth", 1].exposures
    assert set(exposed) == set(store.rows["trial", 1].exposures)
    assert {one.degraded for one in exposed.values()} == {""}


async def test_a_stand_in_for_an_arm_is_none_of_the_holdout(begin, store):
    store.create(experiment())
    store.create(experiment("worth", HOLDOUT))
    live = await begin(holdout=0.3)
    unit = next(
        u for u in map(str, range(99)) if isinstance(live.assign(request(u), decision()), ArmAssignment)
    )
    told: list[Exposed] = []
    arm = live.assign(request(unit), decision())
    served = Served(request(unit), decision(), arm, "LOST", told.append)
    for watcher in live.watchers(served):
        assert told == []  # nobody was shown anything yet
        watcher.began()
    assert [(one.experiment, one.unit, one.degraded) for one in told] == [
        ("trial", unit_hash(unit), "LOST"),
        ("worth", unit_hash(unit), ""),
    ]
    await live.recorder.flush()
    assert store.rows["trial", 1].exposures["r1"].degraded == "LOST"
    assert store.rows["worth", 1].exposures["r1"].degraded == ""
    assert list(live.counts.degraded) == [("trial", store.rows["trial", 1].exposures["r1"].arm)]


async def test_no_holdout_is_exposed_while_the_store_is_down(begin, store):
    store.create(experiment())
    store.create(experiment("worth", HOLDOUT))
    live = await begin(holdout=0.3)
    live.availability._failed["write"] = StoreDown("the disk is full")
    assert live.watchers(Served(request(), decision())) == []


@pytest.mark.parametrize(
    ("holdout", "told"),
    [(0.0, "the server has no holdout: set experiments.holdout"), (0.1, "the weight of out is 0.3")],
)
async def test_a_holdout_that_does_not_fit_is_warned_about_and_not_served(begin, store, holdout, told):
    store.create(experiment())
    store.create(experiment("worth", HOLDOUT))
    store.create(experiment("draft", HOLDOUT, state=Lifecycle.DRAFT))
    live = await begin(holdout=holdout)
    assert [one.name for one in live.assigner.snapshot.all()] == ["trial"]
    (text,) = live.assigner.warnings("worth")
    assert text.startswith(told)
    assert live.assigner.warnings("draft") == ()


SEGMENTS = (SegmentSpec("country", ("ch",)), SegmentSpec("plan", ("free", "paid")))


async def test_an_exposure_has_the_labels_that_the_plan_names(begin, store):
    store.create(experiment(spec=replace(SPEC, segments=SEGMENTS)))
    live = await begin()
    begun(live, request("ann", country="ch", plan="", other="not told"))
    await live.recorder.flush()
    assert store.rows["trial", 1].exposures["r1"].segments == {"country": "ch"}


async def test_outcomes_of_a_response_just_given_are_counted(begin, store):
    store.create(experiment(spec=replace(SPEC, window=1e9)))
    live = await begin()
    live.recorder.expose(exposure(1))
    found = await asyncio.gather(*(live.recorder.record([outcome(1, key=f"k{n}")]) for n in range(20)))
    assert {str(one) for (one,) in found} == {"counted"}


USAGE = Usage(completion_tokens=7, time_to_first_token=0.25, total_time=1.5)


def values(end: End) -> dict[str, float]:
    return {o.metric: o.value for o in built_in_outcomes("r1", end, 5.0)}


def test_a_whole_answer():
    found = built_in_outcomes("r1", End(FinishReason.LENGTH, "text", USAGE), 5.0)
    assert {o.metric: o.value for o in found} == {
        "time_to_first_token": 0.25,
        "total_time": 1.5,
        "completion_tokens": 7.0,
        "length_stop": 1.0,
        "error": 0.0,
        "cancelled": 0.0,
    }
    assert {o.metric for o in found} == set(BUILT_IN) - {"time_without_token"}
    assert {(o.response_id, o.time) for o in found} == {("r1", 5.0)}
    assert len({o.key for o in found}) == 6


def test_the_same_response_has_the_same_keys():
    end = End(FinishReason.STOP, "", USAGE)
    assert [o.key for o in built_in_outcomes("r1", end, 1.0)] == [
        o.key for o in built_in_outcomes("r1", end, 2.0)
    ]


@pytest.mark.parametrize(
    ("end", "error", "cancelled"),
    [
        (End(FinishReason.STOP, "", USAGE), 0.0, 0.0),
        (End(None, "", USAGE, error="ENGINE_FAILED"), 1.0, 0.0),
        (End(None, "", USAGE, cancelled=True), 0.0, 1.0),
    ],
)
def test_ends(end, error, cancelled):
    found = values(end)
    assert (found["error"], found["cancelled"], found["length_stop"]) == (error, cancelled, 0.0)


def test_a_request_without_a_token_has_how_and_when_it_ended_and_no_more():
    end = End(None, "", Usage(), error="OVERLOADED", stage=Stage.ADMISSION)
    found = built_in_outcomes("r1", end, 5.0, unserved=2.0)
    assert {o.metric: o.value for o in found} == {"error": 1.0, "cancelled": 0.0, "time_without_token": 2.0}


async def test_a_request_that_ends_before_its_first_token_counts_in_its_arm_and_the_holdout(begin, store):
    store.create(experiment())
    store.create(experiment("worth", HOLDOUT))
    live = await begin(holdout=0.3)
    unit = next(
        u for u in map(str, range(99)) if isinstance(live.assign(request(u), decision()), ArmAssignment)
    )
    told: list[Exposed] = []
    arm = live.assign(request(unit), decision())
    served = Served(request(unit), decision(), arm, "LOST", told.append)
    live.unserved(served, End(None, "", USAGE, cancelled=True, stage=Stage.LEASE))
    await live.recorder.flush()
    assert [(one.experiment, one.stage) for one in told] == [("trial", "lease"), ("worth", "lease")]
    kept = store.rows["trial", 1].exposures["r1"]
    assert (kept.adapter_digest, kept.degraded) == ("", "")
    assert set(store.outcomes["server:cancelled:r1"].places) == {("trial", 1), ("worth", 1)}
    assert live.counts.ended["trial", kept.arm, "lease", "cancelled"] == 1
    (note,) = [text for text in live.judged("trial").notes if "before their first token" in text]
    assert f"{kept.arm} 1 of 1" in note


async def test_all_are_gone_afterwards() -> None:
    tasks = {asyncio.create_task(asyncio.sleep(60)) for _ in range(3)}
    await leave_tasks(tasks)
    assert all(task.cancelled() for task in tasks)
    await leave_tasks(())


@pytest.fixture
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreThreads]:
    """One thread, and room for as many calls that wait as the test says."""
    monkeypatch.setattr(runtime, "THREADS", 1)
    monkeypatch.setattr(runtime, "WAITING", request.param)
    found = StoreThreads()
    yield found
    found.close()


@pytest.mark.parametrize("threads", [1], indirect=True)
async def test_calls_run_in_threads_and_too_many_are_refused(threads: StoreThreads) -> None:
    go = threading.Event()

    def work(text: str) -> str:
        go.wait(5)
        return f"{text} {threading.current_thread().name}"

    first, second = (asyncio.ensure_future(threads.run(work, text)) for text in ("a", "b"))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await threads.run(work, "c")
    go.set()
    assert (await first).startswith("a experiments")
    assert (await second).startswith("b experiments")
    assert (await threads.run(work, "d")).startswith("d")


@pytest.mark.parametrize("threads", [0], indirect=True)
async def test_who_gives_up_waiting_keeps_the_place_until_the_work_is_done(threads: StoreThreads) -> None:
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(5)
        done.set()

    waiting = asyncio.ensure_future(threads.run(work))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait({waiting})
    with pytest.raises(Overloaded):
        await threads.run(work)
    go.set()
    assert await asyncio.to_thread(done.wait, 5)
    await asyncio.sleep(0.01)
    await threads.run(work)
