"""The crew, whatever happens in whatever order; at the end all comes to rest."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.replicas.crew import Step
from tests.replicas.test_crew import DRAINING, ROWS, Edge, World


class Anything(RuleBasedStateMachine):
    """Edges that come, go and fall silent, replicas that do not start or are kept busy, operators at work."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World(1, 3)
        self.world.crew._end = self.ends
        self.wrong: list[str] = []
        self.there: set[str] = set()
        self.gone: set[str] = set()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def all_of_it() -> Any:
            found = await work
            if ending := tuple(self.world.crew._ending):
                await asyncio.wait(ending)
            return found

        return self.loop.run_until_complete(all_of_it())

    def ends(self, name: str) -> None:
        for edge in self.world.edges:
            if edge.name in self.world.crew._edges:
                reported = self.world.crew._edges[edge.name].report.loads.get(name)
                if reported is not None and reported.up:
                    self.wrong.append(f"{name} was ended, where {edge.name} may have jobs")
        self.world.ended.append(name)

    def report(self, edge: Edge) -> None:
        self.world.roster = self.run(edge.report())

    @rule(seconds=st.sampled_from([1, 1, 1, 3, 9, 200]))
    def time_passes(self, seconds: int) -> None:
        for _ in range(min(seconds, 12)):
            self.world.now += max(1.0, seconds / 12)
            for edge in self.world.edges:
                self.report(edge)

    @precondition(lambda self: len(self.world.edges) < 3)
    @rule(number=st.integers(0, 99))
    def an_edge_comes(self, number: int) -> None:
        self.world.edges.append(Edge(self.world, f"late-{number}-{self.world.now}"))

    @precondition(lambda self: len(self.world.edges) > 1)
    @rule()
    def an_edge_goes_without_a_word(self) -> None:
        self.world.edges.pop(0)

    @rule(jobs=st.integers(0, 3 * ROWS))
    def load_changes(self, jobs: int) -> None:
        for edge in self.world.edges:
            edge.jobs = jobs

    @rule(data=st.data())
    def some_keep_jobs_and_some_do_not_start(self, data: st.DataObject) -> None:
        names = [str(n) for n in range(self.world.crew._state.following + 2)]
        for edge in self.world.edges:
            edge.keeps = set(data.draw(st.lists(st.sampled_from(names), max_size=2)))
            edge.broken = set(data.draw(st.lists(st.sampled_from(names), max_size=2))) - set(edge.loads)

    @rule(least=st.integers(1, 3), more=st.integers(0, 3))
    def an_operator_resizes(self, least: int, more: int) -> None:
        self.world.roster = self.run(self.world.crew.resize(least, least + more))

    @precondition(lambda self: bool(self.world.names()))
    @rule(data=st.data(), every=st.booleans())
    def an_operator_replaces(self, data: st.DataObject, every: bool) -> None:
        names = [] if every else [data.draw(st.sampled_from(self.world.names()))]
        self.world.roster = self.run(self.world.crew.replace(names))

    @invariant()
    def what_holds(self) -> None:
        roster = self.world.roster
        if not roster.members:
            return
        serving = self.world.names()
        under_way = [found for found in roster.replacements if not found.over]
        assert len(serving) >= roster.least
        assert sum(found.step in (Step.STARTING, Step.DRAINING) for found in under_way) <= 1
        names = {member.name for member in roster.members}
        self.gone |= self.there - names
        self.there = names
        assert not self.gone & names  # nobody comes back
        assert self.wrong == []
        assert not set(self.world.ended) & set(serving)

    def teardown(self) -> None:
        """All comes to rest: what operators asked for is over, and the bounds hold."""
        for edge in self.world.edges:
            edge.keeps, edge.broken, edge.jobs = set(), set(), 0
        if not self.world.edges:
            self.an_edge_comes(0)
        for _ in range(60):
            self.time_passes(200)
        assert all(found.over for found in self.world.roster.replacements)
        assert self.world.roster.least == len(self.world.names())
        assert self.world.names(DRAINING) == []
        self.loop.close()


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=15, stateful_step_count=25)
