"""Admission: read slots, places, memory and deadlines; what is refused, and what is not."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import pytest

from router.access.clients import ANYONE, Client
from router.errors import Overloaded
from router.server import admission
from router.server.admission import (
    SAMPLES,
    TOLERANCE,
    Admission,
    Memory,
    ReadSlot,
    ReadSlots,
    WaitForecast,
    size_of,
)
from router.server.call import Call
from router.server.policy import ROWS as POLICIES
from router.types import Request, Sampling, Turn, Usage
from tests.server.engine_model import GENERATE, Server, SimulatedRequest, mixed
from tests.server.helpers import call_of, until

# -- Places in flight.


def call(
    tenant: str = "", method: str = "/router.v1.InferenceService/Route", deadline: float = 600.0
) -> Call:
    client = Client("c", (), (), tenant=tenant) if tenant else ANYONE
    return call_of(method, POLICIES[method], client=client, deadline=deadline)


def test_places_are_given_back() -> None:
    places = Admission(1, 0)
    with places.admitted(call()), pytest.raises(Overloaded, match="1 requests"), places.admitted(call()):
        pytest.fail("admitted one too many")
    with pytest.raises(KeyError), places.admitted(call()):
        raise KeyError
    assert places.in_flight == 0


def held_by(places: Admission, stack: ExitStack, *tenants: str) -> Counter[str]:
    """Places that each gets, asking by turns until all are refused."""
    found: Counter[str] = Counter()
    wanting = list(tenants)
    while wanting:
        for tenant in tuple(wanting):
            try:
                stack.enter_context(places.admitted(call(tenant)))
                found[tenant] += 1
            except Overloaded:
                wanting.remove(tenant)
    return found


def test_no_tenant_takes_all_places() -> None:
    places = Admission(32, 248)
    with ExitStack() as stack:
        assert held_by(places, stack, "a") == {"a": 210}
        assert held_by(places, stack, "b") == {"b": 53}
        assert held_by(places, stack, "c") == {"c": 13}
        assert held_by(places, stack, "a", "b", "c") == {}
    with ExitStack() as stack:
        assert held_by(places, stack, "a", "b") == {"a": 120, "b": 120}
        assert held_by(places, stack, "") == {"": 40}, "without a tenant only the places bound it"
    assert (places.in_flight, +places._held) == (0, Counter())


@pytest.mark.parametrize(("running", "queue", "most"), [(32, 0, 32), (32, 1, 32), (1, 0, 1), (2, 6, 6)])
def test_a_tenant_may_have_every_row(running: int, queue: int, most: int) -> None:
    with ExitStack() as stack:
        assert held_by(Admission(running, queue), stack, "a") == {"a": most}


def test_fewer_places_leave_the_requests_that_hold_one() -> None:
    places = Admission(4, 0)
    with places.admitted(call()), places.admitted(call()):
        places.resize(2, 1)
        with pytest.raises(Overloaded, match="2 requests are running"), places.admitted(call()):
            pass
        places.resize(3, 1)
        with places.admitted(call()):
            assert places.in_flight == 3


# -- Memory of bodies.


async def test_memory_is_given_in_order() -> None:
    memory, order = Memory(10), []

    async def take(size: int, name: str) -> None:
        await memory.take(size)
        order.append(name)

    await take(8, "first")
    large, small = asyncio.ensure_future(take(9, "large")), asyncio.ensure_future(take(1, "small"))
    await asyncio.sleep(0)
    assert order == ["first"]
    memory.give(8)
    await asyncio.gather(large, small)
    assert (order, memory.free) == (["first", "large", "small"], 0)


async def test_a_call_that_leaves_takes_no_memory_and_lets_others_pass() -> None:
    memory = Memory(10)
    await memory.take(8)
    large, small = asyncio.ensure_future(memory.take(9)), asyncio.ensure_future(memory.take(2))
    await asyncio.sleep(0)
    large.cancel()
    assert await asyncio.wait_for(small, 1) == 2
    waiting = asyncio.ensure_future(memory.take(5))
    await asyncio.sleep(0)
    memory.give(10)
    waiting.cancel()  # just after it was given its bytes
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert memory.free == 10
    assert await memory.take(11) == 10  # all there is


# -- Deadlines.

ROWS = 4


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Queue:
    """Generations of one admission; an answer takes one second in a row."""

    def __init__(self, rows: int = ROWS) -> None:
        self.clock, self.held = Clock(), ExitStack()
        self.places = Admission(rows, 200, clock=self.clock)

    def ask(self, seconds: float = 600.0, tenant: str = "", most: int = 16, text: str = "one") -> Call:
        """One more; its body is read at once. Raises Overloaded."""
        one = call(tenant, GENERATE, self.clock.now + seconds)
        self.held.enter_context(self.places.admitted(one))
        one.answer.request = Request("id", turns=(Turn("user", text),), sampling=Sampling(max_tokens=most))
        self.places.request_known(one)
        return one

    def answered(self, number: int = 1, took: float = 1.0, most: int = 16) -> None:
        """So many answers by themselves, to learn from."""
        for _ in range(number):
            one = call("", GENERATE, self.clock.now + 600)
            with self.places.admitted(one):
                one.answer.request = Request(
                    "id", turns=(Turn("user", "one"),), sampling=Sampling(max_tokens=most)
                )
                self.places.request_known(one)
                one.answer.usage = Usage(completion_tokens=5, queue_time=3.0, total_time=3.0 + took)


def test_while_a_row_is_free_no_deadline_is_too_short() -> None:
    queue = Queue()
    queue.answered(took=30.0)
    for _ in range(ROWS):
        queue.ask(seconds=0.01)


def test_before_the_first_answer_no_deadline_is_too_short() -> None:
    queue = Queue()
    for _ in range(50):
        queue.ask(seconds=0.01)


def test_a_request_is_refused_where_even_the_least_wait_is_too_long() -> None:
    queue = Queue()
    queue.answered()
    for _ in range(ROWS + 8):
        queue.ask()
    assert queue.places.least_wait("") == pytest.approx(8 / ROWS * TOLERANCE)
    with pytest.raises(Overloaded, match=r"1\.8 s of requests wait") as refused:
        queue.ask(seconds=1.7)
    assert refused.value.metadata["bound"] == "deadline"
    assert refused.value.retry_after == pytest.approx(0.9)
    queue.ask(seconds=1.9)


def test_requests_that_have_their_first_token_are_not_waited_for() -> None:
    queue = Queue()
    queue.answered()
    running = [queue.ask() for _ in range(ROWS + 8)][:ROWS]
    for one in running:
        one.answer.first_token = queue.clock.now
    assert queue.places.least_wait("") == pytest.approx(8 / ROWS * TOLERANCE)


def test_requests_that_will_be_late_themselves_are_waited_for_up_to_their_deadline() -> None:
    queue = Queue()
    queue.answered()
    for _ in range(ROWS):
        queue.ask()
    for one in [queue.ask() for _ in range(20)]:
        one.deadline = queue.clock.now + 0.25
    assert queue.places.least_wait("") <= 0.25


def test_a_tenant_waits_for_its_own_and_as_much_of_others() -> None:
    queue = Queue()
    queue.answered()
    for tenant, number in (("crowd", ROWS + 40), ("few", 3)):
        for _ in range(number):
            queue.ask(tenant=tenant)
    assert queue.places.least_wait("crowd") == pytest.approx(43 / ROWS * TOLERANCE)
    assert queue.places.least_wait("few") == pytest.approx(6 / ROWS * TOLERANCE)
    assert queue.places.least_wait("new") == 0


def test_long_answers_say_nothing_of_short_ones() -> None:
    queue = Queue()
    queue.answered(20, took=60.0, most=512)
    for _ in range(100):
        queue.ask(seconds=0.5, most=1)
    assert queue.places.least_wait("") == 0


def test_an_unknown_size_takes_at_least_what_smaller_ones_take() -> None:
    forecast = WaitForecast(Clock())
    forecast._took = {(2, 5): 1.0, (8, 5): 3.0, (2, 9): 4.0}
    assert forecast.seconds((8, 5)) == 3.0
    assert forecast.seconds((9, 6)) == 3.0
    assert forecast.seconds((9, 9)) == 4.0
    assert forecast.seconds((2, 4)) == 0.0


def test_a_size_is_of_prompt_and_tokens_asked_for() -> None:
    request = Request("id", turns=(Turn("user", "x" * 100),), sampling=Sampling(max_tokens=64))
    assert size_of(request) == (7, 7)
    assert size_of(replace(request, sampling=Sampling())) > (7, 30)


def test_a_late_answer_in_a_queue_that_lasts_makes_the_estimate_likely() -> None:
    """Let in up to the least wait, every request of a lasting queue would be late by its own time."""
    queue = Queue()
    queue.answered(SAMPLES)
    waiting = [queue.ask(seconds=300) for _ in range(ROWS + 40)]
    queue.clock.now += 30  # three times what the last of them expected
    for one in waiting[:-1]:
        one.answer.usage = Usage(completion_tokens=5, queue_time=29.0, total_time=30.0)
    waiting[-1].deadline = queue.clock.now - 1
    held, queue.held = queue.held, ExitStack()
    for _ in range(ROWS + 8):
        queue.ask(seconds=60)
    held.close()
    assert queue.places.least_wait("") == pytest.approx(2 * TOLERANCE)
    with pytest.raises(Overloaded):
        queue.ask(seconds=5)
    queue.held.close()
    queue.clock.now += 10  # the queue has ended
    for _ in range(ROWS + 8):
        queue.ask(seconds=60)
    queue.ask(seconds=2.9)


# -- Deadlines, against what then happens. 20 bursts of each size in the model, with its own counterfactual.

CAPACITY = 47  # answers of 16 tokens that the model gives a second


def burst(kind: str, number: int, chance: random.Random) -> list[SimulatedRequest]:
    deadlines = (0.5, 1, 2, 4, 8)
    if kind == "mixed":
        return mixed(chance, number, 0.3, deadlines)
    most, tokens = {"one token": (1, 1), "16 tokens": (16, 16)}[kind]
    return [
        SimulatedRequest(chance.uniform(0, 0.3), 40, tokens, most, chance.choice(deadlines))
        for _ in range(number)
    ]


def before(kind: str, chance: random.Random) -> list[SimulatedRequest]:
    """What the server answered earlier."""
    return {
        "nothing": lambda: [],
        "long answers": lambda: [SimulatedRequest(i, 4000, 250) for i in range(20)],
        "short answers": lambda: [SimulatedRequest(i / 2, 40, 16, 16) for i in range(40)],
        "load": lambda: mixed(chance, 300, 12, (600,)),
    }[kind]()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixed", "one token", "16 tokens"])
@pytest.mark.parametrize("number", [150, 250])
def test_at_most_2_percent_of_refusals_of_a_burst_would_have_been_in_time(kind: str, number: int) -> None:
    refused = wrong = answered = without = 0
    for seed in range(20):
        chance = random.Random(seed)
        earlier = before(("nothing", "long answers", "short answers", "load")[seed % 4], chance)
        asked = sorted(burst(kind, number, chance), key=lambda one: one.at)
        outcomes = []
        for by_deadline in (True, False):
            server, requests = Server(by_deadline=by_deadline), list(map(replace, asked))
            server.simulate(list(map(replace, earlier)))
            server.now += 30
            server.simulate(requests)
            outcomes.append([one.outcome for one in requests])
        refused += outcomes[0].count("deadline")
        wrong += sum(one == "deadline" and other == "answered" for one, other in zip(*outcomes, strict=True))
        answered += outcomes[0].count("answered")
        without += outcomes[1].count("answered")
    assert wrong <= 0.02 * refused, (wrong, refused)
    assert answered >= 0.99 * without
    assert refused >= (0 if kind == "one token" else 100), "otherwise the test shows nothing"


@pytest.mark.slow
@pytest.mark.parametrize("deadlines", [(2,), (1, 2, 4, 8)])
def test_under_twice_the_load_goodput_stays(deadlines: Sequence[float]) -> None:
    chance, at, asked = random.Random(1), 0.0, list[SimulatedRequest]()
    while (at := at + chance.expovariate(2 * CAPACITY)) < 40:
        asked.append(SimulatedRequest(at, 40, 16, 16, chance.choice(deadlines)))
    server = Server()
    server.simulate(asked)
    counted = Counter(one.outcome for one in asked if one.at > 5)
    assert counted["answered"] / 35 > 0.93 * CAPACITY, counted
    assert counted["late"] < 0.05 * counted["answered"], counted


def test_without_the_rule_hardly_an_answer_is_in_time() -> None:
    """That the model shows what the rule is for."""
    asked = [SimulatedRequest(i / (2 * CAPACITY), 40, 16, 16, 2.0) for i in range(2000)]
    Server(by_deadline=False, queue=2000).simulate(asked)
    assert sum(one.outcome == "answered" for one in asked) < 500


# -- Read slots.

FIRST, SECOND = "ipv4:10.0.0.1:1", "ipv4:10.0.0.1:2"
FAR = "ipv4:10.0.0.9:1"


class Calls:
    """Calls that take a slot and keep it until `end`."""

    def __init__(self, slots: ReadSlots) -> None:
        self.slots, self.held = slots, list[ReadSlot]()
        self._events: list[asyncio.Event] = []

    async def call(self, peer: str) -> str:
        try:
            async with self.slots.slot(peer) as slot:
                event = asyncio.Event()
                self.held.append(slot)
                self._events.append(event)
                await event.wait()
                slot.end()
        except Overloaded as error:
            return error.metadata["bound"]
        return "read"

    def begin(self, peer: str, number: int = 1) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self.call(peer)) for _ in range(number)]

    def end(self) -> None:
        """All calls that have a slot now."""
        for event in self._events:
            event.set()


async def ended(calls: Calls, *tasks: asyncio.Task[str]) -> list[str]:
    """Their outcomes, while all calls that have a slot end it."""
    for _ in range(2000):
        calls.end()
        await asyncio.sleep(0.001)
        if all(task.done() for task in tasks):
            break
    return [task.result() for task in tasks]


async def test_a_connection_has_a_part_of_the_slots_and_others_find_one() -> None:
    calls = Calls(ReadSlots(8, 10))
    tasks = calls.begin(FIRST, 20)
    await until(lambda: calls.slots.given == 2)
    tasks += calls.begin(SECOND)
    await until(lambda: calls.slots.given == 3)
    assert [slot.peer for slot in calls.held] == [FIRST, FIRST, SECOND]
    assert await ended(calls, *tasks) == ["read"] * 21
    assert calls.slots.given == 0


async def test_the_last_slots_are_for_connections_that_have_none() -> None:
    calls = Calls(ReadSlots(8, 10))
    tasks = [task for host in range(6) for task in calls.begin(f"ipv4:10.0.0.{host}:1", 3)]
    await until(lambda: calls.slots.given == 8)
    assert sorted(Counter(slot.peer for slot in calls.held).values()) == [1, 1, 2, 2, 2]
    assert await ended(calls, *tasks) == ["read"] * 18


async def test_an_address_with_many_connections_leaves_slots_to_others() -> None:
    calls = Calls(ReadSlots(8, 10))
    tasks = [task for port in range(20) for task in calls.begin(f"ipv4:10.0.0.1:{port}")]
    await until(lambda: calls.slots.given == 6)
    tasks += calls.begin(FAR)
    await until(lambda: calls.slots.given == 7)
    assert await ended(calls, *tasks) == ["read"] * 21


async def test_a_slot_without_a_body_is_reclaimed_where_others_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "GRACE_SECONDS", 0.05)
    calls = Calls(ReadSlots(4, 30))
    lazy = [*calls.begin(FIRST), *calls.begin("ipv4:10.0.0.2:1"), *calls.begin(SECOND)]
    lazy += calls.begin("ipv4:10.0.0.3:1")
    await until(lambda: calls.slots.given == 4)
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in lazy), "no other call waits"
    waiting = calls.begin(FAR)
    await until(lambda: calls.held[-1].peer == FAR)
    assert await lazy[0] == "no_body", "the oldest of the address that has most"
    assert await ended(calls, *lazy[1:], *waiting) == ["read"] * 4


async def test_callers_that_share_a_connection_wait_for_each_other_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "GRACE_SECONDS", 0.05)
    calls = Calls(ReadSlots(4, 30))
    lazy, other = calls.begin(FIRST, 2)
    assert await lazy == "no_body"
    assert await ended(calls, other) == ["read"]


async def test_a_call_that_waits_too_long_for_a_slot_is_refused() -> None:
    calls = Calls(ReadSlots(4, 0.05))
    first, second = calls.begin(FIRST, 2)
    assert await second == "turns"
    assert await ended(calls, first) == ["read"]


async def test_of_too_many_that_wait_the_address_with_most_loses_its_last() -> None:
    calls = Calls(ReadSlots(4, 10, most_waiting=5))
    tasks = calls.begin(FIRST, 6)
    await until(lambda: calls.slots.given == 1)
    await asyncio.sleep(0)
    far = calls.begin(FAR, 2)  # one gets a slot, the other waits as the sixth
    assert await tasks[-1] == "turns"
    assert await ended(calls, *tasks[:-1], *far) == ["read"] * 7


async def test_a_call_that_leaves_takes_no_slot() -> None:
    calls = Calls(ReadSlots(4, 10))
    first, second, third = calls.begin(FIRST, 3)
    await until(lambda: calls.slots.given == 1)
    second.cancel()
    calls.end()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    third.cancel()  # just as it gets the slot
    assert await first == "read"
    await asyncio.wait((second, third))
    assert calls.slots.given == 0
    assert await ended(calls, *calls.begin(FIRST, 3)) == ["read"] * 3


async def test_another_timeout_inside_a_slot_is_its_own() -> None:
    with pytest.raises(TimeoutError):
        async with ReadSlots(4, 10).slot(FIRST), asyncio.timeout(0.01):
            await asyncio.sleep(1)


async def test_a_pause_of_the_event_loop_reclaims_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies that came during the pause are read before a slot is reclaimed."""
    monkeypatch.setattr(admission, "GRACE_SECONDS", 0.05)
    calls = Calls(ReadSlots(4, 30))
    first, second = calls.begin(FIRST, 2)
    await until(lambda: calls.slots.given == 1)
    asyncio.get_running_loop().call_soon(time.sleep, 0.2)
    await asyncio.sleep(0)
    assert await ended(calls, first, second) == ["read"] * 2
