"""The keeper of a fleet that several edges share, without Ray: actors are names, and time is short."""

from __future__ import annotations

import asyncio

import pytest

from router.errors import ConfigError, InvalidRequest, NotFound
from router.fleet.crew import MemberLoad, MemberState, Report, Roster
from router.fleet.ray_crew import Actors, Keeper, refusal
from tests.engine.contract import until

SPEC = {"version": "1", "slots": 4}


class Named(Actors):
    """Actors of a fleet, by name; what a ping says of each."""

    def __init__(self, *names: str) -> None:
        self.there, self.problems, self.left = list(names), dict[str, str](), ""

    def names(self) -> list[str]:
        return list(self.there)

    def end(self, member: str, actor: str = "") -> None:
        if member in self.there:
            self.there.remove(member)

    async def ping(self, member: str, actor: str, patience: float) -> str:
        return self.problems.get(member, "")

    def leave(self, keeper: str) -> None:
        self.left = keeper


def keeper(actors: Named, forsaken: float = 60.0, bounds: tuple[int, int] = (2, 2)) -> Keeper:
    return Keeper("f", SPEC, bounds, forsaken, actors)


async def report(of: Keeper, edge: str, *names: str, known: tuple[int, int] | None = None) -> Roster:
    """As an edge that has these up."""
    said = await of.report(Report(edge, {name: MemberLoad(True) for name in names}, 0, 8), SPEC, known)
    assert isinstance(said, Roster)
    return said


def members(roster: Roster) -> list[str]:
    return [member.name for member in roster.members if member.state is MemberState.SERVING]


async def test_an_edge_that_differs_is_refused_by_name_and_difference() -> None:
    said = await keeper(Named()).report(Report("a", {}, 0, 8), {"version": "2", "slots": 4, "more": 1}, None)
    assert isinstance(said, ConfigError)
    assert said.message == (
        "this edge cannot be one of the fleet f: its more is 1, that of the fleet None; "
        "its version is '2', that of the fleet '1'. Make them the same, or name another fleet"
    )
    assert refusal("f", SPEC, dict(SPEC)) == ""


async def test_one_that_ray_restarts_knows_members_and_bounds() -> None:
    again = keeper(Named("10", "2", "9"), bounds=(1, 1))
    roster = await report(again, "a", "2", "9", "10", known=(3, 4))
    assert (members(roster), roster.least, roster.most) == (["2", "9", "10"], 3, 4)
    late = await report(again, "b", "2", "9", "10", known=(1, 1))
    assert (late.least, late.most) == (3, 4)
    first = await report(keeper(Named()), "a", known=(7, 7))  # the first of a fleet goes by what it was told
    assert (members(first), first.least) == (["0", "1"], 2)


async def test_a_draining_member_is_ended_when_the_last_edge_has_let_it_go() -> None:
    actors = Named("0", "1")
    of = keeper(actors)
    await report(of, "a", "0", "1")
    await report(of, "b", "0", "1")
    await of.resize(1, 1)
    await report(of, "a", "0")
    roster = await report(of, "b", "0", "1")
    assert (members(roster), actors.there) == (["0"], ["0", "1"])
    await report(of, "b", "0")
    await until(lambda: actors.there == ["0"])


async def test_who_is_called_silent_is_ended_only_if_it_is() -> None:
    actors = Named("0", "1")
    of = keeper(actors)
    assert "it lives" in await of.check("0", "id", 3.0)
    assert actors.there == ["0", "1"]
    actors.problems["1"] = "it does not answer within 5 s"
    assert await of.check("1", "id", 3.0) == "ended: it does not answer within 5 s"
    assert actors.there == ["0"]


async def test_what_is_asked_wrongly_is_told_as_a_value() -> None:
    of = keeper(Named("0", "1"))
    assert isinstance(await of.resize(3, 2), InvalidRequest)
    assert isinstance(await of.replace(["7"]), NotFound)
    roster = await of.replace(["0"])
    assert isinstance(roster, Roster)


@pytest.mark.parametrize("starting", [False, True])
async def test_a_fleet_that_no_edge_speaks_to_ends(starting: bool) -> None:
    actors = Named("0", "1")
    of = keeper(actors, forsaken=0.2)
    await report(of, "a", "0", "1")
    if starting:  # it loads the base, and says no more than that it is there
        for _ in range(8):
            await asyncio.sleep(0.05)
            await of.hear()
        assert actors.there == ["0", "1"]
    await until(lambda: not actors.there and bool(actors.left))
    assert actors.left == "f/keeper"


async def test_one_that_an_edge_cannot_reach_is_left_to_those_that_can() -> None:
    actors = Named("0", "1", "2")
    of = keeper(actors, bounds=(1, 3))
    for _ in range(3):
        await report(of, "a", "0", "1", "2")
        cut = {
            "0": MemberLoad(True),
            "1": MemberLoad(True),
            "2": MemberLoad(False, problem="cut", failures=9),
        }
        roster = await of.report(Report("b", cut, 0, 8), SPEC, None)
        assert isinstance(roster, Roster)
        assert members(roster) == ["0", "1", "2"]
    cut = dict.fromkeys("01", MemberLoad(True)) | {"2": MemberLoad(False, problem="no room", failures=9)}
    await of.report(Report("a", cut, 0, 8), SPEC, None)
    assert members(await report(of, "a", "0", "1")) == ["0", "1"]  # nobody reaches it
    await until(lambda: actors.there == ["0", "1"])
