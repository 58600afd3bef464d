"""The membership, whatever happens in whatever order; at the end all comes to rest."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.replicas.membership import Step
from tests.replicas.test_membership import ROWS, World


class Anything(RuleBasedStateMachine):
    """Replicas that do not start or are kept busy, loads that change, operators at work."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World(1, 3)
        self.there: set[str] = set()
        self.gone: set[str] = set()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def report(self) -> None:
        self.world.fleet_plan = self.run(self.world.edge.report())

    @rule(seconds=st.sampled_from([1, 1, 1, 3, 9, 200]))
    def time_passes(self, seconds: int) -> None:
        for _ in range(min(seconds, 12)):
            self.world.now += max(1.0, seconds / 12)
            self.report()

    @rule(jobs=st.integers(0, 3 * ROWS))
    def load_changes(self, jobs: int) -> None:
        self.world.edge.jobs = jobs

    @rule(data=st.data())
    def some_keep_jobs_and_some_do_not_start(self, data: st.DataObject) -> None:
        names = [str(n) for n in range(len(self.there | self.gone) + 2)]
        edge = self.world.edge
        edge.keeps = set(data.draw(st.lists(st.sampled_from(names), max_size=2)))
        edge.broken = set(data.draw(st.lists(st.sampled_from(names), max_size=2))) - set(edge.loads)

    @rule(least=st.integers(1, 3), more=st.integers(0, 3))
    def an_operator_resizes(self, least: int, more: int) -> None:
        self.world.fleet_plan = self.run(self.world.membership.resize(least, least + more))

    @precondition(lambda self: bool(self.world.names()))
    @rule(data=st.data(), every=st.booleans())
    def an_operator_replaces(self, data: st.DataObject, every: bool) -> None:
        names = [] if every else [data.draw(st.sampled_from(self.world.names()))]
        self.world.fleet_plan = self.run(self.world.membership.replace(names))

    @invariant()
    def what_holds(self) -> None:
        fleet_plan = self.world.fleet_plan
        if not fleet_plan.members:
            return
        serving = self.world.names()
        under_way = [found for found in fleet_plan.replacements if not found.over]
        assert len(serving) >= fleet_plan.least
        assert sum(found.step in (Step.STARTING, Step.DRAINING) for found in under_way) <= 1
        names = {member.name for member in fleet_plan.members}
        self.gone |= self.there - names
        self.there = names
        assert not self.gone & names  # nobody comes back
        assert not set(self.world.ended) & set(serving)

    def teardown(self) -> None:
        """All comes to rest: what operators asked for is over, and the bounds hold."""
        edge = self.world.edge
        edge.keeps, edge.broken, edge.jobs = set(), set(), 0
        for _ in range(60):
            self.time_passes(200)
        assert all(found.over for found in self.world.fleet_plan.replacements)
        assert self.world.fleet_plan.least == len(self.world.names())
        assert self.world.names(draining=True) == []
        self.loop.close()


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=15, stateful_step_count=25)
