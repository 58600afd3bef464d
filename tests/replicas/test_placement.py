from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from benchmarks.fleet_model import Costs, Policy, Shape, Simulation
from benchmarks.fleet_policies import Ours, RoundRobin
from router.replicas.placement import MEMORY, Gauge, Move, Placement

SIZE = 8


def of(*replicas: str, seed: int = 1) -> Placement:
    placement = Placement(random.Random(seed))
    for replica in replicas:
        placement.join(replica)
    return placement


def settled(placement: Placement, adapters: int) -> list[str]:
    names = [f"adapter-{i}" for i in range(adapters)]
    for name in names:
        placement.settle(name, placement.new_home(name, 0.0))
    return names


def carry(placement: Placement, moves: list[Move], size: int = 0) -> None:
    for move in moves:
        if move.to:
            placement.settle(move.digest, move.to, size)
        if move.away:
            placement.unsettle(move.digest, move.away)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0.01, 100))))
def test_a_gauge_is_a_mean_of_what_was_there(steps: list[tuple[int, float]]) -> None:
    gauge, now = Gauge(), 0.0
    for count, seconds in steps:
        gauge.change(count - gauge.count, now)
        now += seconds
        assert 0 <= gauge.look(now) <= 5
    gauge.change(3 - gauge.count, now)
    assert gauge.look(now + 50 * MEMORY) == pytest.approx(3)


def test_adapters_without_load_are_spread_evenly() -> None:
    placement = of("a", "b", "c", "d")
    settled(placement, 400)
    counts = Counter(home for i in range(400) for home in placement.homes(f"adapter-{i}"))
    assert set(counts.values()) == {100}
    again = of("d", "c", "b", "a", seed=2)
    settled(again, 400)
    assert [placement.homes(f"adapter-{i}") for i in range(400)] == [
        again.homes(f"adapter-{i}") for i in range(400)
    ]  # edges choose alike


def test_the_shorter_of_two_queues_is_chosen() -> None:
    placement = of("a", "b", "c")
    placement.held.update({"a": 5, "b": 1, "c": 9})
    drawn = Counter(placement.choose(["a", "b", "c"]) for _ in range(300))
    assert set(drawn) == {"a", "b"}  # c is never the shorter one
    assert placement.choose(["c"]) == "c"
    assert placement.choose(["a", "c"]) == "a"


def test_two_choices_keep_queues_short() -> None:
    """The longest queue of n with n requests: log n / log log n by chance, log log n with two choices."""
    names = [str(i) for i in range(200)]
    two, one = of(*names), random.Random(1)
    for _ in range(2000):
        two.begin(None, two.choose(names), 0.0)
    chance = Counter(one.choice(names) for _ in range(2000))
    assert max(two.held.values()) <= 13 < max(chance.values())


def test_the_hot_one_gets_homes_and_loses_them_when_it_cools() -> None:
    placement = of("a", "b", "c", "d")
    hot, *_ = settled(placement, 50)
    now = 0.0
    for _ in range(20):
        placement.begin(hot, placement.choose(placement.homes(hot)), now)
    for _ in range(60):
        now += 1.0
        carry(placement, placement.plan(now))
    assert len(placement.homes(hot)) == 4
    for name in "abcd":
        for _ in range(placement.held[name]):
            placement.end(hot, name, now)
    for _ in range(120):
        now += 1.0
        carry(placement, placement.plan(now))
    assert len(placement.homes(hot)) == 1
    assert placement.plan(now) == []


def test_two_that_grow_in_one_look_do_not_grow_on_the_same_replica() -> None:
    placement = of(*map(str, range(8)))
    hot = settled(placement, 2)
    for name in hot:
        for _ in range(20):
            placement.begin(name, placement.homes(name)[0], 0.0)
    moves = placement.plan(60.0)
    assert {move.digest for move in moves} == set(hot)
    assert len({move.to for move in moves}) == 2
    assert not {move.to for move in moves} & {placement.homes(name)[0] for name in hot}


def test_in_a_fleet_of_many_the_hot_one_grows_by_halves_and_all_become_even() -> None:
    names = [str(i) for i in range(128)]
    placement = of(*names)
    hot, *others = settled(placement, 300)
    for _ in range(500):
        placement.begin(hot, placement.homes(hot)[0], 0.0)
    for rank, name in enumerate(others, 1):
        for _ in range(40 // rank + 3):
            placement.begin(name, placement.homes(name)[0], 0.0)
    for now in range(1, 31):
        moves = placement.plan(float(now))
        assert len(moves) <= 128 // 8 + 128 // 32
        assert len({(move.digest, move.to) for move in moves}) == len(moves)
        carry(placement, moves)
    assert len(placement.homes(hot)) > 50
    expected = placement._loads(placement.replicas, 30.0)
    assert max(expected.values()) < 4 * sum(expected.values()) / 128


def test_one_request_needs_one_home() -> None:
    placement = of("a", "b", "c", "d")
    (only,) = settled(placement, 1)
    placement.begin(only, placement.homes(only)[0], 0.0)
    assert placement.wanted(only, 100.0) == 1
    assert placement.plan(100.0) == []


def test_loads_become_even() -> None:
    """All adapters with load happen to live on one replica."""
    placement = of("a", "b", "c")
    names = [f"adapter-{i}" for i in range(30)]
    for name in names:
        placement.settle(name, "a")
        for _ in range(2):
            placement.begin(name, "a", 0.0)
    for now in range(1, 200):
        carry(placement, placement.plan(float(now)))
    counts = Counter(home for name in names for home in placement.homes(name))
    assert max(counts.values()) - min(counts.values()) <= 4


def test_steady_load_comes_to_rest() -> None:
    placement = of("a", "b", "c", "d")
    names = settled(placement, 100)
    for rank, name in enumerate(names, 1):
        for _ in range(60 // rank):
            placement.begin(name, placement.homes(name)[0], 0.0)
    for now in range(1, 300):
        carry(placement, placement.plan(float(now)))
    moved = [placement.plan(float(now)) for now in range(300, 330)]
    assert not any(moved)


def test_what_was_only_on_a_lost_replica_is_named() -> None:
    placement = of("a", "b")
    placement.settle("one", "a")
    for home in "ab":
        placement.settle("both", home)
    assert placement.leave("a") == ("one",)
    assert (placement.homes("one"), placement.homes("both")) == ((), ("b",))
    assert placement.new_home("one", 0.0) == "b"
    placement.settle("one", "gone")  # a load that ended after its replica did
    assert placement.homes("one") == ()


def test_where_steps_cost_the_same_whatever_is_in_them_no_row_is_left_free() -> None:
    """Memory is full, and loads cost nothing but waiting: then round robin is the best there is."""
    shape = Shape(adapters=400, replicas=4, rows=16, memory=80, prompt=1, answer=16)

    def tokens(policy: Policy) -> int:
        simulation = Simulation([policy], shape, Costs(0.02, 0.0, 0.0, 0.0, 0.0335), 1)
        simulation.run(80, 5.0, 20.0)
        return sum(machine.tokens for machine in simulation.machines.values())

    assert tokens(Ours(1, shape)) > 0.98 * tokens(RoundRobin())


def test_a_free_row_is_looked_for_where_requests_wait_at_all_homes() -> None:
    placement = of("a", "b", "c")
    placement.rows = 2
    placement.held.update({"a": 3, "b": 1, "c": 2})
    assert placement.overflow(["a"]) == "b"
    assert placement.overflow(["a", "b"]) == placement.overflow(["c"]) == ""  # nobody waits at a home
    placement.close("b")
    assert placement.overflow(["a"]) == ""
    placement.rows = 0  # not known
    assert placement.overflow(["a"]) == ""


class Anything(RuleBasedStateMachine):
    """Replicas, adapters and requests that come and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.placement = of("r0", "r1")
        self.names = itertools.count(2)
        self.now = 0.0
        self.adapters: set[str] = set()
        self.running: list[tuple[str | None, str]] = []
        self.draw = random.Random(1)

    @rule()
    def comes(self) -> None:
        if len(self.placement.replicas) < 5:
            self.placement.join(f"r{next(self.names)}")

    @precondition(lambda self: len(self.placement.replicas) > 1)
    @rule(data=st.data())
    def goes(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.placement.replicas))
        homeless = self.placement.leave(name)
        for digest in homeless:
            assert self.placement.homes(digest) == ()
            self.placement.settle(digest, self.placement.new_home(digest, self.now), SIZE)
        for ended, at in [entry for entry in self.running if entry[1] == name]:
            self.placement.end(ended, at, self.now)
        self.running = [entry for entry in self.running if entry[1] != name]

    @rule(name=st.sampled_from("abcdefgh"))
    def is_loaded(self, name: str) -> None:
        if name not in self.adapters:
            self.adapters.add(name)
            self.placement.settle(name, self.placement.new_home(name, self.now), SIZE)

    @precondition(lambda self: self.adapters)
    @rule(data=st.data(), many=st.integers(1, 20))
    def is_asked(self, data: st.DataObject, many: int) -> None:
        digest = data.draw(st.sampled_from([None, *sorted(self.adapters)]))
        for _ in range(many):
            homes = self.placement.replicas if digest is None else self.placement.homes(digest)
            at = self.placement.choose(homes)
            assert at in homes
            self.placement.begin(digest, at, self.now)
            self.running.append((digest, at))

    @precondition(lambda self: self.running)
    @rule(many=st.integers(1, 30))
    def ends(self, many: int) -> None:
        for _ in range(min(many, len(self.running))):
            digest, at = self.running.pop(self.draw.randrange(len(self.running)))
            self.placement.end(digest, at, self.now)

    @rule(seconds=st.floats(0.1, 30))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for move in self.placement.plan(self.now):
            homes = self.placement.homes(move.digest)
            assert move.to or move.away
            assert move.to not in homes
            assert not move.away or move.away in homes
            assert not move.away or move.to or len(homes) > 1  # nobody becomes homeless
            carry(self.placement, [move], SIZE)

    @precondition(lambda self: self.adapters)
    @rule(data=st.data())
    def is_unloaded(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.adapters)))
        if not any(digest == name for digest, _ in self.running):
            self.adapters.discard(name)
            self.placement.forget(name)

    @invariant()
    def adapters_live_where_replicas_are(self) -> None:
        for name in self.adapters:
            homes = self.placement.homes(name)
            assert homes
            assert len(set(homes)) == len(homes)
            assert set(homes) <= set(self.placement.replicas)
            assert 1 <= self.placement.wanted(name, self.now) <= len(self.placement.replicas)
        counts = Counter(home for name in self.adapters for home in self.placement.homes(name))
        assert {r: counts[r] for r in self.placement.replicas} == self.placement._count
        for replica in self.placement.replicas:
            assert self.placement.used[replica] == SIZE * counts[replica]
            spare = set(self.placement.spare(replica))
            several = [name for name in self.adapters if len(self.placement.homes(name)) > 1]
            assert spare == {name for name in several if replica in self.placement.homes(name)}

    @invariant()
    def what_replicas_expect_is_the_load_of_their_adapters(self) -> None:
        expected = dict.fromkeys(self.placement.replicas, 0.0)
        for name in self.adapters:
            homes = self.placement.homes(name)
            for home in homes:
                expected[home] += self.placement.load(name, self.now) / len(homes)
        found = {name: self.placement._expected[name].look(self.now) for name in expected}
        assert found == pytest.approx(expected, abs=1e-6)

    @invariant()
    def nobody_is_counted_twice(self) -> None:
        held = Counter(at for _, at in self.running)
        assert {r: self.placement.held[r] for r in self.placement.replicas} == {
            r: held[r] for r in self.placement.replicas
        }


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=30, stateful_step_count=30)
