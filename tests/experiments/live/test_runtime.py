"""The running experiments follow the store, and act on what it says; what is kept of one answer."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

import pytest

from router.errors import StoreDown
from router.experiments.live import recorder
from router.experiments.live.assigner import Assignment
from router.experiments.live.runtime import Experiments, built_in, leave_tasks, sampling_json
from router.experiments.model import BUILT_IN, AuditEntry, Exposure, Kind, Lifecycle, MetricSpec, Outcome
from router.experiments.report.model import ArmNumbers, Report, Ruling
from router.ports import End, Served
from router.types import FinishReason, SamplingParams, Usage
from tests.experiments.live.made import SPEC, decision, experiment, exposure, outcome, request
from tests.experiments.live.test_recorder import until
from tests.experiments.memory_store import MemoryStore

ERRORS = MetricSpec("error", Kind.PROPORTION, higher_is_better=False, margin=0.02)
GUARDED = replace(SPEC, guardrails=(ERRORS,), window=1.0)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def begin(store, monkeypatch):
    monkeypatch.setattr(recorder, "RETRY", 0.02)
    made = []

    async def start(**options) -> Experiments:
        live = Experiments(store, **{"poll_seconds": 0.02, "look_seconds": 1000.0, **options})
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
    assert isinstance(live.assign(request(), decision()), Assignment)


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
    assert isinstance(live.assign(request(), decision()), Assignment)


async def test_a_store_that_hangs_does_not_hold_up_the_start(store, monkeypatch):
    monkeypatch.setattr("router.experiments.live.runtime.START_SECONDS", 0.05)
    monkeypatch.setattr(MemoryStore, "list", lambda self: time.sleep(0.3) or ())
    live, started = Experiments(store), time.perf_counter()
    await live.start()
    assert time.perf_counter() - started < 0.25
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
        store.expose([Exposure("trial", 1, rid, arm, begin, rid, 0.5)])
        store.record(
            [
                Outcome(f"e{rid}", "error", float(number < errors), begin + 0.5, response_id=rid),
                Outcome(f"s{rid}", "success", 1.0, begin + 0.5, response_id=rid),
            ]
        )


async def test_the_guardian_stops_what_does_harm(begin, store):
    store.create(two_hours_old())
    began = time.time() - 7000
    fill(store, "control", 80, 1, began)
    fill(store, "new", 80, 60, began)
    live = await begin(look_seconds=0.02)
    await until(lambda: store.get("trial").state is Lifecycle.STOPPED, 10)
    await until(lambda: not live.running)
    act, notice = store.trail("trial")
    assert (act.actor, act.act) == ("rule", "stop")
    assert "error" in act.reason
    assert (notice.act, notice.detail["event"], notice.detail["arm"]) == ("notice", "stopped-for-harm", "new")
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
    act, notice = sorted(store.trail("trial"), key=lambda entry: entry.act)
    assert (act.actor, act.act, act.detail["rule"]) == ("rule", "hold", "sample-ratio")
    assert (notice.act, notice.detail["event"]) == ("notice", "sample-ratio-broken")
    assert live.notifier.told == {("trial", "sample-ratio-broken"): 1}
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
    told = Report(store.get("trial"), 1, open_, None, (), (), numbers, (), (), (), 0.0)
    live = await begin(judge=lambda name: told)
    assert live.assigner.warnings("trial") == ()
    await live.guardian.look()
    (text,) = live.assigner.warnings("trial")
    assert text == "hardly any unit comes again, as if units were request ids"


async def test_what_cannot_begin_beside_an_answer_is_left_out(begin, store, caplog):
    live = await begin()
    live.beside += [lambda served: 1 / 0, lambda served: None, lambda served: "watcher"]
    served = Served(request(), decision(), SamplingParams())
    assert live.watchers(served) == ["watcher"]
    assert "could not begin" in caplog.text


async def test_outcomes_of_a_response_just_given_are_counted(begin, store):
    store.create(experiment(spec=replace(SPEC, window=1e9)))
    live = await begin()
    live.recorder.expose(exposure(1))
    found = await asyncio.gather(*(live.recorder.record([outcome(1, key=f"k{n}")]) for n in range(20)))
    assert {str(one) for (one,) in found} == {"counted"}


USAGE = Usage(completion_tokens=7, time_to_first_token=0.25, total_time=1.5)


def values(end: End) -> dict[str, float]:
    return {o.metric: o.value for o in built_in("r1", end, 5.0)}


def test_a_whole_answer():
    found = built_in("r1", End(FinishReason.LENGTH, "text", USAGE), 5.0)
    assert {o.metric: o.value for o in found} == {
        "time_to_first_token": 0.25,
        "total_time": 1.5,
        "completion_tokens": 7.0,
        "length_stop": 1.0,
        "error": 0.0,
        "cancelled": 0.0,
    }
    assert {o.metric for o in found} == set(BUILT_IN)
    assert {(o.response_id, o.time) for o in found} == {("r1", 5.0)}
    assert len({o.key for o in found}) == 6


def test_the_same_response_has_the_same_keys():
    end = End(FinishReason.STOP, "", USAGE)
    assert [o.key for o in built_in("r1", end, 1.0)] == [o.key for o in built_in("r1", end, 2.0)]


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


def test_without_a_token_there_is_no_time_to_one():
    assert "time_to_first_token" not in values(End(None, "", Usage(total_time=1.0), error="ENGINE_FAILED"))


def test_sampling_is_json_with_sorted_keys_and_without_what_is_off():
    text = sampling_json(SamplingParams(max_tokens=8, seed=3, stop=("end",)))
    assert json.loads(text) == {
        "max_tokens": 8,
        "repetition_penalty": 1.0,
        "seed": 3,
        "stop": ["end"],
        "top_p": 1.0,
    }
    assert list(json.loads(text)) == sorted(json.loads(text))


async def test_all_are_gone_afterwards() -> None:
    tasks = {asyncio.create_task(asyncio.sleep(60)) for _ in range(3)}
    await leave_tasks(tasks)
    assert all(task.cancelled() for task in tasks)
    await leave_tasks(())
