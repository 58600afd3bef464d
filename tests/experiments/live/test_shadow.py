"""Shadow arms: answered beside the user's answer, judged when both are there, and never an exposure."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from router.experiments.assignment import unit_hash
from router.experiments.live.assigner import Assignment
from router.experiments.live.runtime import Experiments
from router.experiments.live.shadow import Answered, NotAnswered, Shadows
from router.experiments.model import ArmSpec, Mode
from router.judging import Case, Heard, Judgement
from router.ports import End, Served
from router.types import AdapterRef, FinishReason, SamplingParams, Usage
from tests.experiments.live.made import NEW, OLD, SPEC, decision, experiment, request, running
from tests.experiments.memory_store import MemoryStore

SHADOW = replace(SPEC, mode=Mode.SHADOW, judge="length")
WHOLE = End(FinishReason.STOP, "an answer", Usage(completion_tokens=2, total_time=0.5))


class Understudy:
    """Answers with the version's name, when told to."""

    def __init__(self) -> None:
        self.asked: list[AdapterRef | None] = []
        self.go = asyncio.Event()
        self.answers: dict[AdapterRef | None, Answered | NotAnswered] = {}

    async def answer(self, request, decision):
        self.asked.append(decision.adapter)
        await self.go.wait()
        usual = Answered(f"{decision.arm} by {decision.adapter}", Usage(completion_tokens=5, total_time=0.75))
        return self.answers.get(decision.adapter, usual)


class Court:
    def __init__(self, heard: Heard) -> None:
        self.heard, self.cases = heard, []

    async def judge(self, name: str, case: Case) -> Heard:
        self.cases.append((name, case))
        return self.heard


class Kit:
    def __init__(self, spec, heard: Heard) -> None:
        self.store = MemoryStore()
        self.store.create(experiment(spec=spec))
        self.live = Experiments(self.store)
        self.live.recorder.start()
        self.understudy, self.court = Understudy(), Court(heard)
        self.shadows = Shadows(self.live, self.understudy, self.court.judge)

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
    watcher = kit.shadows(served(request=request(request_id="r7")))
    await asyncio.sleep(0)
    assert kit.understudy.asked == [NEW]  # begun beside the served answer
    watcher.began()
    kit.understudy.go.set()
    watcher.ended(WHOLE)
    assert await kit.settled() == {("new", "judged"): 1}
    ((name, case),) = kit.court.cases
    assert (name, case.served, case.shadow) == ("length", "an answer", "new by medical@1.1.0")
    assert kit.store.paired("trial", 1)["new"][:3] == (1, 0, 0)
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
    kit.understudy.go.set()
    kit.shadows(served(request=asked)).ended(WHOLE)
    assert await kit.settled() == {("new", "judged"): 1}
    (pair,) = kit.store.rows["trial", 1].pairs.values()
    assert pair.unit == unit


async def test_every_arm_but_control_is_a_shadow(made):
    arms = (ArmSpec("control", 0.4, OLD), ArmSpec("new", 0.3, NEW), ArmSpec("none", 0.3))
    kit = await made(replace(SHADOW, arms=arms))
    kit.understudy.answers[NEW] = NotAnswered("load")
    kit.understudy.go.set()
    kit.shadows(served()).ended(WHOLE)
    assert await kit.settled() == {("new", "load"): 1, ("none", "judged"): 1}
    assert set(kit.understudy.asked) == {NEW, None}


@pytest.mark.parametrize(
    ("heard", "result"),
    [(Heard(), "declined"), (Heard(error="timeout"), "unjudged")],
    ids=["no reference", "late judge"],
)
async def test_what_is_not_judged_is_counted_and_is_no_pair(made, heard, result):
    kit = await made(heard=heard)
    kit.understudy.go.set()
    kit.shadows(served()).ended(WHOLE)
    assert await kit.settled() == {("new", result): 1}
    assert kit.store.paired("trial", 1) == {}


async def test_without_a_served_answer_the_shadow_is_dropped(made):
    kit = await made()
    watcher = kit.shadows(served())
    await asyncio.sleep(0)
    watcher.ended(End(None, "half", Usage(), cancelled=True))
    assert await kit.settled() == {("new", "unserved"): 1}
    assert not kit.court.cases


async def test_an_understudy_that_fails_harms_nobody(made, caplog):
    kit = await made()

    async def fail(request, decision):
        raise RuntimeError("broken")

    kit.understudy.answer = fail
    kit.shadows(served()).ended(WHOLE)
    assert await kit.settled() == {("new", "failed"): 1}
    assert "a shadow of experiment trial failed" in caplog.text


async def test_only_what_control_answered_is_compared(made):
    kit = await made()
    assert kit.shadows(served(AdapterRef("medical", "0.9.0"))) is None
    assert kit.shadows(served(degraded="ADAPTER_NOT_FOUND")) is None
    assert await kit.settled() == {("new", "other_version"): 2}
    (text,) = kit.live.assigner.warnings("trial")
    assert text.startswith("requests are answered by medical@0.9.0, and control is medical@1.0.0: ")
    assert kit.shadows(served(AdapterRef("legal", "1.0.0"))) is None
    assert kit.shadows(served(request=request(adapter="adapters/medical/versions/1.0.0"))) is None
    assert not kit.understudy.asked


async def test_the_route_is_the_one_before_another_experiments_arm(made):
    kit = await made(replace(SHADOW, route="base", arms=(ArmSpec("control", 0.5), ArmSpec("new", 0.5, NEW))))
    other = running("other", replace(SPEC, arms=(ArmSpec("control", 0.5, OLD), ArmSpec("base", 0.5))))
    assignment = Assignment(other, other.arms["base"], 0.5, "u")
    assert kit.shadows(served(None, assignment=assignment)) is None  # the base answers for `medical`
    assert kit.shadows(served(None)) is not None


async def test_the_share_is_of_requests(made):
    kit = await made(replace(SHADOW, shadow_share=0.25))
    kit.understudy.go.set()
    found = [kit.shadows(served(request=request(request_id=f"r{i}"))) for i in range(400)]
    assert 70 < sum(one is not None for one in found) < 130
    again = [kit.shadows(served(request=request(request_id=f"r{i}"))) for i in range(400)]
    assert [one is None for one in found] == [one is None for one in again]


async def test_no_shadows_while_the_store_is_down(made):
    kit = await made()
    kit.live.availability._failed["write"] = "the disk is full"
    assert kit.shadows(served()) is None


async def test_close_drops_what_is_under_way(made):
    kit = await made()
    kit.shadows(served())
    await kit.shadows.close()
    assert await kit.settled() == {("new", "unserved"): 1}
