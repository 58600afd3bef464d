"""Shadow arms: answered beside the user's answer, judged when both are there, and never an exposure."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from router.classifiers.fake_base import FakeBase
from router.classifiers.isolation import FAILURES
from router.engine.base import Delta, EngineStatus, Finished
from router.errors import AdapterNotFound, DeadlineExceeded, EngineFailed, Overloaded, StoreDown
from router.experiments import shadow
from router.experiments.assignment import ArmAssignment, unit_hash
from router.experiments.model import ArmSpec, Mode
from router.experiments.runtime import LiveExperiments
from router.experiments.shadow import CompletedShadow, DroppedShadow, JudgePanel, ShadowAnswers, Shadows
from router.judging import Case, Heard, Judge, Judgement, JudgeRegistration
from router.ports import End, Served
from router.types import (
    AdapterRef,
    AdapterState,
    Decision,
    FinishReason,
    Reason,
    Request,
    Sampling,
    SamplingParams,
    Usage,
)
from tests.experiments.made import NEW, OLD, SPEC, decision, experiment, request, running
from tests.experiments.memory_store import MemoryStore

SHADOW = replace(SPEC, mode=Mode.SHADOW, judge="length")
WHOLE = End(FinishReason.STOP, "an answer", Usage(completion_tokens=2, total_time=0.5))


class FakeAnswers:
    """Answers with the version's name, when told to."""

    def __init__(self) -> None:
        self.asked: list[AdapterRef | None] = []
        self.go = asyncio.Event()
        self.answers: dict[AdapterRef | None, CompletedShadow | DroppedShadow] = {}

    async def answer(self, request, decision):
        self.asked.append(decision.adapter)
        await self.go.wait()
        usual = CompletedShadow(
            f"{decision.arm} by {decision.adapter}", Usage(completion_tokens=5, total_time=0.75)
        )
        return self.answers.get(decision.adapter, usual)


class FakeJudge:
    def __init__(self, heard: Heard) -> None:
        self.heard, self.cases = heard, []

    async def judge(self, name: str, case: Case) -> Heard:
        self.cases.append((name, case))
        return self.heard


class Kit:
    def __init__(self, spec, heard: Heard) -> None:
        self.store = MemoryStore()
        self.store.create(experiment(spec=spec))
        self.live = LiveExperiments(self.store)
        self.live.recorder.start()
        self.answers, self.judge = FakeAnswers(), FakeJudge(heard)
        self.shadows = Shadows(self.live, self.answers, self.judge.judge)

    async def started(self):
        await self.live.refresh()
        return self

    async def settled(self) -> Counter:
        """What came of the shadows, once all is over and written."""
        while self.shadows._tasks:
            await asyncio.wait(tuple(self.shadows._tasks))
        await self.live.recorder.flush()
        return Counter({(arm, result): n for (_, arm, result), n in self.live.counts.shadows.items()})


@pytest.fixture
async def made():
    kits = []

    async def make(spec=SHADOW, heard: Heard | None = None) -> Kit:
        kits.append(Kit(spec, heard or Heard(Judgement(1, {"served": 2.0}))))
        return await kits[-1].started()

    yield make
    for kit in kits:
        await kit.shadows.close()
        kit.store.down = False
        await kit.live.close()


def served(ref: AdapterRef | None = OLD, **fields) -> Served:
    return Served(fields.pop("request", request()), decision(ref), SamplingParams(), **fields)


async def test_a_pair_is_judged_and_kept_and_nobody_is_exposed(made):
    kit = await made()
    watcher = kit.shadows.beside(served(request=request(request_id="r7")))
    await asyncio.sleep(0)
    assert kit.answers.asked == [NEW]  # begun beside the served answer
    watcher.began()
    kit.answers.go.set()
    watcher.ended(WHOLE)
    assert await kit.settled() == {("new", "judged"): 1}
    ((name, case),) = kit.judge.cases
    assert (name, case.served, case.shadow) == ("length", "an answer", "new by medical@1.1.0")
    assert kit.store.paired("trial", 1)["new"] == (1, 0, 0)
    (pair,) = kit.store.rows["trial", 1].pairs.values()
    assert (pair.response_id, pair.arm, pair.result) == ("r7", "new", 1)
    assert pair.numbers == {
        "served": 2.0,
        "served_tokens": 2.0,
        "shadow_tokens": 5.0,
        "served_seconds": 0.5,
        "shadow_seconds": 0.75,
    }
    assert not kit.store.rows["trial", 1].exposures


@pytest.mark.parametrize(
    ("asked", "label", "unit"),
    [
        (request("ann"), "", unit_hash("ann")),
        (request("ann", session="s1"), "session", unit_hash("s1")),
        (request("ann"), "session", ""),
        (request(""), "", ""),
        (request("null"), "", ""),
    ],
    ids=["unit", "label", "no label", "none", "a word for nobody"],
)
async def test_a_pair_has_the_hash_of_the_unit_that_asked(made, asked, label, unit):
    kit = await made(replace(SHADOW, unit_label=label))
    kit.answers.go.set()
    kit.shadows.beside(served(request=asked)).ended(WHOLE)
    assert await kit.settled() == {("new", "judged"): 1}
    (pair,) = kit.store.rows["trial", 1].pairs.values()
    assert pair.unit == unit


async def test_every_arm_but_control_is_a_shadow(made):
    arms = (ArmSpec("control", 0.4, OLD), ArmSpec("new", 0.3, NEW), ArmSpec("none", 0.3))
    kit = await made(replace(SHADOW, arms=arms))
    kit.answers.answers[NEW] = DroppedShadow("load")
    kit.answers.go.set()
    kit.shadows.beside(served()).ended(WHOLE)
    assert await kit.settled() == {("new", "load"): 1, ("none", "judged"): 1}
    assert set(kit.answers.asked) == {NEW, None}


@pytest.mark.parametrize(
    ("heard", "result"),
    [(Heard(), "declined"), (Heard(error="timeout"), "unjudged")],
    ids=["no reference", "late judge"],
)
async def test_what_is_not_judged_is_counted_and_is_no_pair(made, heard, result):
    kit = await made(heard=heard)
    kit.answers.go.set()
    kit.shadows.beside(served()).ended(WHOLE)
    assert await kit.settled() == {("new", result): 1}
    assert kit.store.paired("trial", 1) == {}


async def test_without_a_served_answer_the_shadow_is_dropped(made):
    kit = await made()
    watcher = kit.shadows.beside(served())
    await asyncio.sleep(0)
    watcher.ended(End(None, "half", Usage(), cancelled=True))
    assert await kit.settled() == {("new", "unserved"): 1}
    assert not kit.judge.cases


async def test_an_answers_that_fails_harms_nobody(made, caplog):
    kit = await made()

    async def fail(request, decision):
        raise RuntimeError("broken")

    kit.answers.answer = fail
    kit.shadows.beside(served()).ended(WHOLE)
    assert await kit.settled() == {("new", "failed"): 1}
    assert "a shadow of experiment trial failed" in caplog.text


async def test_only_what_control_answered_is_compared(made):
    kit = await made()
    assert kit.shadows.beside(served(AdapterRef("medical", "0.9.0"))) is None
    assert kit.shadows.beside(served(degraded="ADAPTER_NOT_FOUND")) is None
    assert await kit.settled() == {("new", "other_version"): 2}
    (text,) = kit.live.assigner.warnings("trial")
    assert text.startswith("requests are answered by medical@0.9.0, and control is medical@1.0.0: ")
    assert kit.shadows.beside(served(AdapterRef("legal", "1.0.0"))) is None
    assert kit.shadows.beside(served(request=request(adapter="adapters/medical/versions/1.0.0"))) is None
    assert not kit.answers.asked


async def test_the_route_is_the_one_before_another_experiments_arm(made):
    kit = await made(replace(SHADOW, route="base", arms=(ArmSpec("control", 0.5), ArmSpec("new", 0.5, NEW))))
    other = running("other", replace(SPEC, arms=(ArmSpec("control", 0.5, OLD), ArmSpec("base", 0.5))))
    assignment = ArmAssignment(other, other.arms["base"], 0.5, "u")
    assert kit.shadows.beside(served(None, assignment=assignment)) is None  # the base answers for `medical`
    assert kit.shadows.beside(served(None)) is not None


async def test_the_share_is_of_requests(made):
    kit = await made(replace(SHADOW, shadow_share=0.25))
    kit.answers.go.set()
    found = [kit.shadows.beside(served(request=request(request_id=f"r{i}"))) for i in range(400)]
    assert 70 < sum(one is not None for one in found) < 130
    again = [kit.shadows.beside(served(request=request(request_id=f"r{i}"))) for i in range(400)]
    assert [one is None for one in found] == [one is None for one in again]


async def test_no_shadows_while_the_store_is_down(made):
    kit = await made()
    kit.live.availability._failed["write"] = StoreDown("the disk is full")
    assert kit.shadows.beside(served()) is None


async def test_close_drops_what_is_under_way(made):
    kit = await made()
    kit.shadows.beside(served())
    await kit.shadows.close()
    assert await kit.settled() == {("new", "unserved"): 1}


REF = AdapterRef("medical", "1.1.0")
REQUEST = Request("r", raw_prompt="q")
USAGE = Usage(completion_tokens=2)


class Engine:
    """Gives the events it is told, or raises."""

    def __init__(self, *events: Delta | Finished | Exception) -> None:
        self.events, self.closed = events, False

    async def complete(self, request: Request, decision: Decision) -> AsyncGenerator[Delta | Finished, None]:
        self.sampling = request.sampling
        try:
            for event in self.events:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.closed = True


async def answered(
    engine: Engine,
    ref: AdapterRef | None = REF,
    state: AdapterState | None = AdapterState.READY,
    request: Request = REQUEST,
    **status: int,
) -> CompletedShadow | DroppedShadow:
    def get(name: str, version: str) -> Any:
        if state is None:
            raise AdapterNotFound(name)
        return SimpleNamespace(state=state)

    registry: Any = SimpleNamespace(get=get)
    made = ShadowAnswers(engine.complete, registry, lambda: EngineStatus(**status))
    return await made.answer(request, Decision(ref, Reason.CLASSIFIED))


@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH])
async def test_a_whole_answer(reason: FinishReason) -> None:
    engine = Engine(Delta("two "), Delta("words"), Finished(reason, USAGE))
    assert await answered(engine, running=3, waiting=1) == CompletedShadow("two words", USAGE)
    assert engine.closed


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (Finished(FinishReason.CANCELLED), "load"),
        (Finished(FinishReason.DEADLINE), "deadline"),
        (Finished(FinishReason.ERROR), "failed"),
        (Overloaded("enough runs in the background", bound="engine"), "load"),
        (DeadlineExceeded("late"), "deadline"),
        (EngineFailed("broken"), "failed"),
    ],
)
async def test_why_there_is_none(event: Finished | Exception, why: str) -> None:
    engine = Engine(Delta("half"), event)
    assert await answered(engine) == DroppedShadow(why)
    assert engine.closed


async def test_an_end_that_never_comes_is_a_failure() -> None:
    assert await answered(Engine(Delta("half"))) == DroppedShadow("failed")


async def test_nothing_is_begun_while_requests_wait() -> None:
    engine = Engine(Finished(FinishReason.STOP))
    assert await answered(engine, running=4, waiting=2) == DroppedShadow("load")
    assert not engine.closed


@pytest.mark.parametrize(
    ("state", "why"),
    [(AdapterState.OFFLOADED, "cold"), (AdapterState.LOADING, "cold"), (None, "failed")],
)
async def test_what_is_not_in_memory_is_not_brought_in(state: AdapterState | None, why: str) -> None:
    engine = Engine(Finished(FinishReason.STOP))
    assert await answered(engine, state=state) == DroppedShadow(why)
    assert not engine.closed


async def test_nobody_reads_its_logprobs() -> None:
    engine = Engine(Finished(FinishReason.STOP, USAGE))
    await answered(engine, request=replace(REQUEST, sampling=Sampling(seed=3, logprobs=5)))
    assert engine.sampling == Sampling(seed=3)


async def test_the_base_is_always_there() -> None:
    engine = Engine(Delta("x"), Finished(FinishReason.STOP, USAGE))
    assert await answered(engine, None, state=None) == CompletedShadow("x", USAGE)


CASE = Case(Request("r", raw_prompt="q"), "served", "shadow")
WIN = Judgement(1)


class Does(Judge):
    """Whatever the test says."""

    name = "does"

    def __init__(self, work: Callable[[], Judgement | None]) -> None:
        self.work = work
        self.warmed = 0

    def warmup(self) -> None:
        self.warmed += 1

    def judge(self, case: Case) -> Judgement | None:
        return self.work()


class Reads(Judge):
    name = "reads"

    def bind(self, base: object) -> None:
        self.base = base

    def judge(self, case: Case) -> Judgement | None:
        (found,) = self.base.likelihood("q", [case.shadow])  # type: ignore[attr-defined]
        return Judgement(1, {"mean": float(found.mean())})


def seated(judge: Judge, timeout: float = 5.0, **kw: object) -> tuple[JudgePanel, JudgeRegistration]:
    registration = JudgeRegistration(judge, "p", timeout)
    return JudgePanel(lambda: {judge.name: registration}, **kw), registration  # type: ignore[arg-type]


def exits() -> Judgement:
    raise SystemExit(3)


def breaks() -> Judgement:
    raise ValueError("a user's words")


async def test_a_judgement_a_decline_and_a_name_that_nobody_has() -> None:
    judge = Does(lambda: WIN)
    made, registration = seated(judge)
    assert await made.judge("does", CASE) == Heard(WIN)
    judge.work = lambda: None
    assert await made.judge("does", CASE) == Heard()
    assert await made.judge("other", CASE) == Heard(error="unknown")
    status = registration.status()
    assert (status.judged, status.declined, status.errors, judge.warmed) == (1, 1, 0, 1)
    assert made.names() == ("does",)


async def test_faults_are_told_without_text_and_open_the_breaker() -> None:
    judge = Does(breaks)
    made, registration = seated(judge)
    assert await made.judge("does", CASE) == Heard(error="raised")
    assert registration.health.last_error.startswith("raised ValueError at test_shadow.py")
    assert "words" not in registration.health.last_error
    judge.work = exits
    assert await made.judge("does", CASE) == Heard(error="raised")
    judge.work = lambda: Judgement(7)
    for _ in range(FAILURES - 2):
        assert await made.judge("does", CASE) == Heard(error="invalid")
    assert await made.judge("does", CASE) == Heard(error="breaker-open")
    assert registration.status().breaker == "open"


async def test_a_late_one_costs_its_pair_and_three_that_hang_disable_it() -> None:
    go = threading.Event()
    judge = Does(lambda: WIN if go.wait(30) else None)
    made, registration = seated(judge, timeout=0.02)
    made._judges["does"] = asked = shadow._IsolatedJudge(registration, None)
    asked._cold = False
    for _ in range(shadow.MAX_STUCK):
        assert await made.judge("does", CASE) == Heard(error="timeout")
    assert await made.judge("does", CASE) == Heard(error="disabled")
    assert registration.status().stuck == shadow.MAX_STUCK
    go.set()
    end = time.monotonic() + 10
    while registration.health.stuck:
        assert time.monotonic() < end
        await asyncio.sleep(0.005)
    assert await made.judge("does", CASE) == Heard(WIN)


async def test_one_at_a_time_and_not_endlessly_many_wait() -> None:
    go, running = threading.Event(), []

    def work() -> Judgement:
        running.append(1)
        assert len(running) == 1
        go.wait(30)
        running.pop()
        return WIN

    made, _ = seated(Does(work))
    asked = [asyncio.ensure_future(made.judge("does", CASE)) for _ in range(shadow.MOST_WAITING + 3)]
    await asyncio.sleep(0.05)
    go.set()
    found = await asyncio.gather(*asked)
    assert found.count(Heard(error="busy")) == 3
    assert found.count(Heard(WIN)) == shadow.MOST_WAITING


async def test_the_base_where_there_is_one() -> None:
    without, _ = seated(Reads())
    assert await without.judge("reads", CASE) == Heard(error="no-base")
    asked: list[float] = []

    def base_for(timeout: float) -> FakeBase:
        asked.append(timeout)
        return FakeBase()

    made, _ = seated(Reads(), base_for=base_for)
    heard = await made.judge("reads", CASE)
    assert heard.judgement is not None
    assert heard.judgement.numbers["mean"] < 0
    assert asked == [5.0]


async def test_a_reloaded_judge_takes_over_at_once() -> None:
    table = {"does": JudgeRegistration(Does(lambda: WIN), "p", 5.0)}
    made = JudgePanel(lambda: table)
    assert await made.judge("does", CASE) == Heard(WIN)
    table["does"] = JudgeRegistration(Does(lambda: Judgement(-1)), "p", 5.0)
    assert await made.judge("does", CASE) == Heard(Judgement(-1))
    table.clear()
    assert await made.judge("does", CASE) == Heard(error="unknown")
