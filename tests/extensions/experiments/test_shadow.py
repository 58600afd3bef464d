"""Shadow arms: answered beside the user's answer, logged when both are there, and never an exposure."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from router.engine.base import Delta, EngineStatus, Finished
from router.errors import AdapterNotFound, DeadlineExceeded, EngineFailed, Overloaded, StoreDown
from router.extensions.experiments.assignment import ArmAssignment
from router.extensions.experiments.model import ArmSpec, Mode
from router.extensions.experiments.runtime import LiveExperiments
from router.extensions.experiments.shadow import CompletedShadow, DroppedShadow, ShadowAnswers, Shadows
from router.ports import End, Served
from router.types import (
    AdapterRef,
    AdapterState,
    Decision,
    FinishReason,
    Reason,
    Request,
    Sampling,
    Usage,
)
from tests.extensions.experiments.made import NEW, OLD, SPEC, decision, experiment, request, running
from tests.extensions.experiments.memory_store import MemoryStore

SHADOW = replace(SPEC, mode=Mode.SHADOW)
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


class Kit:
    def __init__(self, spec) -> None:
        self.store = MemoryStore()
        self.store.create(experiment(spec=spec))
        self.live = LiveExperiments(self.store)
        self.live.recorder.start()
        self.answers = FakeAnswers()
        self.shadows = Shadows(self.live, self.answers)

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

    async def make(spec=SHADOW) -> Kit:
        kits.append(Kit(spec))
        return await kits[-1].started()

    yield make
    for kit in kits:
        await kit.shadows.close()
        kit.store.down = False
        await kit.live.close()


def served(ref: AdapterRef | None = OLD, **fields) -> Served:
    return Served(fields.pop("request", request()), decision(ref), **fields)


async def test_a_pair_is_logged_and_nobody_is_exposed(made, caplog):
    caplog.set_level("INFO")
    kit = await made()
    watcher = kit.shadows.beside(served(request=request(request_id="r7")))
    await asyncio.sleep(0)
    assert kit.answers.asked == [NEW]  # begun beside the served answer
    watcher.began()
    kit.answers.go.set()
    watcher.ended(WHOLE)
    assert await kit.settled() == {("new", "different"): 1}
    (told,) = [record.fields for record in caplog.records if record.message == "shadow answer"]
    assert told == {
        "experiment": "trial",
        "phase": 1,
        "arm": "new",
        "response_id": "r7",
        "same": False,
        "served_tokens": 2,
        "shadow_tokens": 5,
        "served_seconds": 0.5,
        "shadow_seconds": 0.75,
    }
    assert not kit.store.rows["trial", 1].exposures


async def test_an_equal_text_is_counted(made):
    kit = await made()
    kit.answers.answers[NEW] = CompletedShadow("an answer\n", Usage(completion_tokens=3))
    kit.answers.go.set()
    kit.shadows.beside(served()).ended(WHOLE)
    assert await kit.settled() == {("new", "same"): 1}


async def test_every_arm_but_control_is_a_shadow(made):
    arms = (ArmSpec("control", 0.4, OLD), ArmSpec("new", 0.3, NEW), ArmSpec("none", 0.3))
    kit = await made(replace(SHADOW, arms=arms))
    kit.answers.answers[NEW] = DroppedShadow("load")
    kit.answers.go.set()
    kit.shadows.beside(served()).ended(WHOLE)
    assert await kit.settled() == {("new", "load"): 1, ("none", "different"): 1}
    assert set(kit.answers.asked) == {NEW, None}


async def test_without_a_served_answer_the_shadow_is_dropped(made):
    kit = await made()
    watcher = kit.shadows.beside(served())
    await asyncio.sleep(0)
    watcher.ended(End(None, "half", Usage(), cancelled=True))
    assert await kit.settled() == {("new", "unserved"): 1}


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
