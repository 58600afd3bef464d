"""Router experiments: the unit's router decides, all of them are logged, and votes are shared."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace

import pytest

from router.errors import StoreDown
from router.experiments.model import ArmSpec
from router.experiments.runtime import LiveExperiments
from router.extensions.experiments_routers import make_routers
from router.ports import End, Served, Stage
from router.types import AdapterRef, FinishReason, RouterVariant, SamplingParams, Usage, Vote
from tests.experiments.made import OLD, SPEC, decision, experiment, request
from tests.experiments.memory_store import MemoryStore

pytestmark = pytest.mark.slow

STRICT, BOLD = RouterVariant(threshold=0.9), RouterVariant(threshold=0.2)
LEGAL = AdapterRef("legal", "2.0.0")
ARMS = (ArmSpec("control", 0.4), ArmSpec("strict", 0.3, router=STRICT), ArmSpec("bold", 0.3, router=BOLD))
PLAN = replace(SPEC, route="", arms=ARMS)
WHOLE = End(FinishReason.STOP, "an answer", Usage())
UNSERVED = End(None, "", Usage(), error="OVERLOADED", stage=Stage.PREFILL)


class Router:
    """The router itself chooses medical, the strict one the base; the bold one as told."""

    def __init__(self) -> None:
        self.bold: AdapterRef | None = OLD
        self.asked: list[RouterVariant | None] = []
        self.heard: list[dict[str, Vote]] = []
        self.plain = 0

    async def route(self, request, variant=None, known_votes=None):
        if known_votes is None:
            self.plain += 1
            return decision(OLD)
        self.asked.append(variant)
        known_votes.setdefault("examples", Vote("examples", {"medical": 0.5}))
        self.heard.append(known_votes)
        return decision({None: OLD, STRICT: None, BOLD: self.bold}[variant])

    def digest(self, variant=None):
        return f"digest of {variant}"


class Kit:
    def __init__(self, spec) -> None:
        self.store, self.router = MemoryStore(), Router()
        self.store.create(experiment(spec=spec))
        self.live = LiveExperiments(self.store, base_digest=lambda: "base", router_digest=self.router.digest)
        self.live.recorder.start()
        self.live.use_modes({"routers": make_routers(self.live, self.router)})

    async def choose(self, **fields):
        return await self.live.modes["routers"].choose(request(**fields), self.router, True)

    async def answer(self, unit: str, request_id: str, whole: bool = True) -> str:
        """The arm; a request from decision to answer, as the pipeline has it."""
        asked = request(unit, request_id=request_id)
        found, assignment = await self.live.modes["routers"].choose(asked, self.router, True)
        for watcher in self.live.watchers(Served(asked, found, SamplingParams(), assignment)):
            if whole:
                watcher.began()
            watcher.ended(WHOLE if whole else UNSERVED)
        while tasks := tuple(self.live.modes["routers"]._tasks):
            await asyncio.wait(tasks)
        await self.live.recorder.flush()
        return assignment.arm.name


@pytest.fixture
async def made():
    kits = []

    async def make(spec=PLAN) -> Kit:
        kits.append(Kit(spec))
        await kits[-1].live.refresh()
        return kits[-1]

    yield make
    for kit in kits:
        await kit.live.close()


async def test_the_assigned_router_decides_and_all_are_logged(made):
    kit = await made()
    arms = Counter([await kit.answer(f"user{i}", f"r{i}") for i in range(30)])
    assert set(arms) == {"control", "strict", "bold"}
    rows = kit.store.rows["trial", 1]
    said = {(d.control, d.treatment) for d in rows.disagreements.values()}
    assert said == {(OLD.resource, "base")}  # the strict one always differs
    assert len(rows.disagreements) == len(rows.exposures) == 30
    assert {d.unit for d in rows.disagreements.values()} == {e.unit for e in rows.exposures.values()}
    digests = {e.arm: e.router_digest for e in rows.exposures.values()}
    assert digests == {arm.name: f"digest of {arm.router}" for arm in ARMS}


async def test_votes_are_shared_and_the_assigned_router_goes_first(made):
    kit = await made()
    arm = await kit.answer("ann", "r1")
    assert kit.router.asked[0] == next(a.router for a in ARMS if a.name == arm)
    assert len(kit.router.asked) == 3
    assert all(one is kit.router.heard[0] for one in kit.router.heard)


async def test_agreement_is_logged_too(made):
    kit = await made(replace(PLAN, arms=(ArmSpec("control", 0.5), ArmSpec("bold", 0.5, router=BOLD))))
    await kit.answer("ann", "r1")
    kit.router.bold = LEGAL
    await kit.answer("ann", "r2")
    said = [(d.control, d.treatment) for d in kit.store.rows["trial", 1].disagreements.values()]
    assert said == [(OLD.resource, OLD.resource), (OLD.resource, LEGAL.resource)]
    assert sum(b.exposed for b in kit.store.data("trial", 1, only_differing=True).buckets) == 1


async def test_an_answer_that_never_began_is_compared_too(made):
    kit = await made()
    await kit.answer("ann", "r1", whole=False)
    rows = kit.store.rows["trial", 1]
    assert set(rows.disagreements) == set(rows.exposures) == {"r1"}


@pytest.mark.parametrize(("late", "how"), [(False, "cancelled"), (True, "error")])
async def test_a_router_that_does_not_come_to_a_decision_counts_in_its_arm(made, late, how):
    kit = await made()

    async def hangs(*args):
        await asyncio.sleep(0 if kit.router.asked else 60)
        return decision(OLD)

    kit.router.route, usual = hangs, kit.router.route
    asked = request("ann", request_id="r1")
    if late:
        asked = replace(asked, deadline=time.monotonic())
    choosing = asyncio.create_task(kit.live.modes["routers"].choose(asked, kit.router, True))
    await asyncio.sleep(0)
    kit.router.route = usual
    choosing.cancel()
    await asyncio.wait([choosing])
    while tasks := tuple(kit.live.modes["routers"]._tasks):
        await asyncio.wait(tasks)
    await kit.live.recorder.flush()
    rows = kit.store.rows["trial", 1]
    assert set(rows.disagreements) == set(rows.exposures) == {"r1"}
    assert kit.store.outcomes[f"server:{how}:r1"].outcome.stage == "routing"


async def test_who_takes_no_part_gets_the_servers_router(made):
    kit = await made()
    assert (await kit.choose(adapter="adapters/medical"))[1] is None
    assert (await kit.choose(unit=""))[1] is None
    assert kit.live.counts.unit_missing["trial"] == 1
    kit.live.availability._failed["read"] = StoreDown("gone")
    assert (await kit.choose())[1] is None
    assert (kit.router.plain, kit.router.asked) == (3, [])


async def test_a_decision_alone_counts_for_nothing(made):
    kit = await made()
    asked, nobody = request("ann"), request("")
    found, assignment = await kit.live.modes["routers"].choose(asked, kit.router, False)
    assert assignment is not None
    assert found.adapter == {"control": OLD, "strict": None, "bold": OLD}[assignment.arm.name]
    assert not kit.live.modes["routers"]._pending
    await kit.live.modes["routers"].choose(nobody, kit.router, False)
    assert kit.live.counts.unit_missing["trial"] == 0


async def test_decisions_whose_answers_never_come_are_forgotten(made, monkeypatch):
    monkeypatch.setattr("router.extensions.experiments_routers.routers.MOST_PENDING", 5)
    kit = await made()
    for i in range(20):
        await kit.choose(request_id=f"r{i}")
    assert list(kit.live.modes["routers"]._pending) == [f"r{i}" for i in range(15, 20)]


async def test_a_router_that_fails_for_the_others_is_told_and_harms_nobody(made, caplog):
    kit = await made()
    route = kit.router.route

    async def once(request, variant=None, known_votes=None):
        if kit.router.asked:
            raise RuntimeError("broken")
        return await route(request, variant, known_votes)

    kit.router.route = once
    await kit.answer("ann", "r1")
    assert "what the other routers say is not known" in caplog.text
    assert len(kit.store.rows["trial", 1].exposures) == 1
