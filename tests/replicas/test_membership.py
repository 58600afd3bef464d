"""The decisions alone: edges and their replicas are told of, and time is a number."""

from __future__ import annotations

import asyncio

import pytest

from router.errors import InvalidRequest, NotFound
from router.replicas.membership import (
    START_SECONDS,
    STARTS,
    FleetPlan,
    FleetReport,
    Member,
    MemberLoad,
    OwnedMembership,
    Step,
)

ROWS = 4


class Edge:
    """One that has up whatever the fleet plan says, and lets go of what is draining at the next report."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loads: dict[str, MemberLoad] = {}
        self.broken: set[str] = set()  # do not start
        self.keeps: set[str] = set()  # has jobs that do not end
        self.jobs = 0  # at each
        self.waiting = 0

    async def report(self) -> FleetPlan:
        fleet_plan = await self.world.membership.report(FleetReport(dict(self.loads), self.waiting, ROWS))
        members = {member.name: member for member in fleet_plan.members}
        for name, member in members.items():
            if not member.draining and name in self.broken:
                failures = self.loads[name].failures + 1 if name in self.loads else 1
                self.loads[name] = MemberLoad(False, problem="no room", failures=failures)
            elif not member.draining or name in self.keeps:
                running = min(self.jobs, ROWS)
                self.loads[name] = MemberLoad(True, running, self.jobs - running)
        for name in tuple(self.loads):
            member = members.get(name, Member(name, draining=True))
            if member.draining and name not in self.keeps:
                del self.loads[name]
                self.world.ended.append(name)
        return fleet_plan


class World:
    def __init__(self, least: int, most: int | None = None) -> None:
        self.now = 0.0
        self.ended: list[str] = []
        self.membership = OwnedMembership(least, most, clock=lambda: self.now)
        self.edge = Edge(self)
        self.fleet_plan = FleetPlan((), 0, 0)

    async def pass_seconds(self, seconds: int) -> FleetPlan:
        for _ in range(seconds):
            self.now += 1
            self.fleet_plan = await self.edge.report()
        await asyncio.sleep(0)
        return self.fleet_plan

    def names(self, draining: bool = False) -> list[str]:
        return [member.name for member in self.fleet_plan.members if member.draining is draining]

    def steps(self) -> dict[str, Step]:
        return {found.old: found.step for found in self.fleet_plan.replacements}


async def test_the_first_are_there_at_once_and_nothing_changes_without_reason() -> None:
    world = World(2)
    first = await world.pass_seconds(1)
    assert world.names() == ["0", "1"]
    last = await world.pass_seconds(400)
    assert first == last
    assert world.ended == []


async def test_load_brings_more_and_their_end_takes_them_away() -> None:
    world = World(1, 3)
    await world.pass_seconds(5)
    world.edge.jobs = 2 * ROWS
    await world.pass_seconds(60)
    assert world.names() == ["0", "1", "2"]
    world.edge.jobs = 0
    await world.pass_seconds(500)
    assert world.names() == ["0"]
    assert world.ended == ["2", "1"]  # the last that came goes first


async def test_one_is_ended_when_the_edge_has_let_it_go() -> None:
    world = World(2)
    await world.pass_seconds(2)
    world.edge.keeps = {"0"}
    await world.membership.replace(["0"])
    await world.pass_seconds(30)
    assert world.names(draining=True) == ["0"]
    assert world.names() == ["1", "2"]
    assert world.ended == []
    world.edge.keeps = set()
    await world.pass_seconds(3)
    assert world.ended == ["0"]
    assert world.steps() == {"0": Step.DONE}


async def test_one_after_the_other_and_the_old_one_only_when_the_new_one_is_up() -> None:
    world = World(3)
    await world.pass_seconds(2)
    fleet_plan = await world.membership.replace([])
    assert [found.old for found in fleet_plan.replacements] == ["0", "1", "2"]
    seen: list[tuple[int, int]] = []
    for _ in range(30):
        await world.pass_seconds(1)
        up = sum(load.up for load in world.edge.loads.values())
        seen.append((up, len(world.names(draining=True))))
        assert len(world.names()) <= 4
        assert len(world.names(draining=True)) <= 1
    assert min(up for up, _ in seen) >= 3
    assert world.names() == ["3", "4", "5"]
    assert set(world.steps().values()) == {Step.DONE}
    assert [found.new for found in world.fleet_plan.replacements] == ["3", "4", "5"]
    assert world.ended == ["0", "1", "2"]


async def test_the_heir_is_named_to_the_edges() -> None:
    world = World(1)
    await world.pass_seconds(2)
    world.edge.keeps = {"0"}
    await world.membership.replace(["0"])
    await world.pass_seconds(3)
    assert Member("0", draining=True, successor="1") in world.fleet_plan.members


async def test_where_the_new_one_does_not_come_up_the_old_one_stays() -> None:
    world = World(2)
    await world.pass_seconds(2)
    world.edge.broken = {"2"}
    await world.membership.replace([])
    await world.pass_seconds(STARTS + 5)
    assert world.names() == ["0", "1"]
    first, second = world.fleet_plan.replacements
    assert (first.step, first.problem) == (Step.FAILED, "replica 2 did not come up: no room")
    assert (second.step, second.problem) == (Step.FAILED, "not tried, since that of 0 failed")
    assert world.ended == ["2"]
    world.edge.broken = set()  # it may be tried again
    await world.membership.replace(["0"])
    await world.pass_seconds(10)
    assert world.names() == ["1", "3"]


async def test_one_that_is_being_replaced_is_not_replaced_again() -> None:
    world = World(2)
    await world.pass_seconds(2)
    await world.membership.replace(["0", "0"])
    await world.pass_seconds(1)
    await world.membership.replace(["0"])
    await world.membership.replace([])  # 1 only: 0 is under way, 2 is new
    assert await world.pass_seconds(20)
    assert world.names() == ["2", "3"]


async def test_who_is_not_there_is_named() -> None:
    world = World(2)
    await world.pass_seconds(2)
    with pytest.raises(NotFound, match="replica '7' not found: there are 0, 1"):
        await world.membership.replace(["0", "7"])
    await world.pass_seconds(5)
    assert world.names() == ["0", "1"]


@pytest.mark.parametrize(
    ("least", "most", "said"),
    [
        (0, 2, "least: must be from 1 to 1024, not 0"),
        (3, 2, r"most: must be from least \(3\) to 1024, not 2"),
        (2, 9999, "to 1024, not 9999"),
    ],
)
async def test_bounds_that_are_none(least: int, most: int, said: str) -> None:
    world = World(2)
    with pytest.raises(InvalidRequest, match=said):
        await world.membership.resize(least, most)
    with pytest.raises(InvalidRequest, match=said):
        OwnedMembership(least, most)
    await world.pass_seconds(1)
    assert (world.fleet_plan.least, world.fleet_plan.most) == (2, 2)


async def test_one_that_starts_in_the_place_of_another_is_not_counted_for_the_least() -> None:
    world = World(2)
    await world.pass_seconds(2)
    world.edge.broken = {"2"}
    await world.membership.replace(["0"])
    await world.pass_seconds(1)
    fleet_plan = await world.membership.resize(3, 3)
    assert [member.name for member in fleet_plan.members] == ["0", "1", "2", "3"]


async def test_one_that_cannot_be_had_is_let_go_where_enough_are_there() -> None:
    world = World(1, 4)
    world.edge.broken = {"1", "2", "3"}
    world.edge.jobs = 3 * ROWS
    seen = [(world.now, (await world.pass_seconds(1)).members[1:]) for _ in range(100)]
    tried = [(now, rest[0].name) for now, rest in seen if rest]
    assert [name for _, name in tried] == sorted(name for _, name in tried)
    (first, *_), (second, *_) = ([now for now, found in tried if found == name] for name in "12")
    assert second - first >= 60  # a pause, after which another is tried
    assert world.names() == ["0"]
    assert "1" in world.ended


async def test_one_that_takes_too_long_is_let_go_but_not_one_that_is_needed() -> None:
    world = World(1)
    await world.pass_seconds(2)

    async def never() -> FleetPlan:
        fleet_plan = await world.membership.report(FleetReport({"0": MemberLoad(False)}, 0, ROWS))
        world.fleet_plan = fleet_plan
        return fleet_plan

    for _ in range(10):
        world.now += START_SECONDS / 5
        await never()
    assert world.names() == ["0"]
    await world.membership.replace(["0"])
    for _ in range(10):
        world.now += START_SECONDS / 8
        await never()
    assert world.names() == ["0"]
    assert world.fleet_plan.replacements[0].problem.startswith(
        "replica 1 did not come up: it is not up after"
    )
