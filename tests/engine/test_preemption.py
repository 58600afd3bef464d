"""Nobody is starved: blocks are taken as rows grow, the youngest give theirs back, and everybody ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.engine.base import Delta, Finished, Job
from router.engine.ops import BLOCK
from router.engine.output import Events
from router.engine.rows import AnswerRow, BatchRow, Chunk
from router.engine.scheduler import POOLING_ROWS, Scheduler
from router.engine.torch_engine import TorchEngine
from router.types import FinishReason, SamplingParams, TokenLogprob
from tests.engine import tiny
from tests.engine.rows import advance, make, pooling, row, step
from tests.server.helpers import until


def long_ones(scheduler: Scheduler, count: int = 4) -> list[AnswerRow]:
    """Requests of 4096 tokens that ask for as many."""
    made = [row(4096, new=4096, first=10_000 * i) for i in range(count)]
    for one in made:
        scheduler.add(one)
    return made


@pytest.mark.parametrize("cache_tokens", [32768, 16384, 8192])
@pytest.mark.parametrize("before", [0, 1, 7, 8, 100, 600])
def test_a_short_request_starts_beside_long_ones_within_two_steps(cache_tokens: int, before: int) -> None:
    scheduler = make(running=32, step=512, blocks=cache_tokens // BLOCK)
    long_ones(scheduler)
    for _ in range(before):
        step(scheduler)
    scheduler.add(short := row(50, new=20, first=-100))
    step(scheduler)
    step(scheduler)
    assert short.computed or short.generated
    for _ in range(21):
        step(scheduler)
    assert short.length_reached()


def test_short_ones_start_beside_long_ones_that_are_all_still_read() -> None:
    """Half of a step's tokens at least go to the oldest prompt; those much shorter get of the rest."""
    scheduler = make(running=32, step=512, blocks=2048)
    oldest, *_ = long_ones(scheduler)
    step(scheduler)
    short = [row(50, new=5, first=-1000 * i) for i in range(1, 5)]
    for one in short:
        scheduler.add(one)
    counts = {chunk.row: chunk.count for chunk in step(scheduler)}
    assert counts == {oldest: 512 - 200} | dict.fromkeys(short, 50)


def test_equal_prompts_are_read_one_after_the_other() -> None:
    scheduler = make(step=32)
    first, second = row(60), row(60, first=100)
    scheduler.add(first)
    scheduler.add(second)
    assert [(c.row, c.count) for c in step(scheduler)] == [(first, 32)]
    assert [(c.row, c.count) for c in step(scheduler)] == [(first, 28), (second, 4)]


def test_a_prompt_is_read_though_rows_that_decode_would_take_the_whole_step() -> None:
    scheduler = make(running=40, step=16, blocks=200)
    for i in range(30):
        scheduler.add(row(1, new=100, first=i))
    step(scheduler)
    step(scheduler)
    scheduler.add(late := row(10, first=1000))
    for _ in range(5):
        step(scheduler)
    assert late.generated


def test_one_that_grows_by_many_tokens_at_once_gets_the_blocks_of_all() -> None:
    """As where a grammar forces them."""
    scheduler = make(blocks=8)
    scheduler.add(grows := row(10, new=90))
    step(scheduler)
    grows.tokens += [1] * 60
    (chunk,) = scheduler.schedule()
    assert grows.allocation is not None
    assert len(grows.allocation.blocks) * BLOCK >= grows.computed + chunk.count


def test_the_youngest_gives_way_and_goes_on_where_it_was() -> None:
    scheduler = make(blocks=6)
    old, young = row(15, new=60), row(15, "a", new=60, first=100)
    scheduler.add(old)
    scheduler.add(young)
    while not young.preempted:
        step(scheduler)
    tokens = list(young.tokens)
    assert (scheduler.waiting, scheduler.running, scheduler.preemptions) == ([young], [old], 1)
    assert (young.computed, young.allocation) == (0, None)
    assert scheduler.slots.has_room("a")
    while scheduler.busy:
        step(scheduler)
    assert young.tokens[: len(tokens)] == tokens
    assert (old.length_reached(), young.length_reached(), old.preempted) == (True, True, 0)
    assert scheduler.pool.free == scheduler.pool.total


def test_admission_leaves_some_blocks_to_those_that_run() -> None:
    scheduler = make(blocks=64)
    scheduler.add(first := row(30 * BLOCK - 1, new=200))
    while not first.generated:
        step(scheduler)
    scheduler.add(second := row(31 * BLOCK - 1, new=200, first=5000))
    step(scheduler)
    assert scheduler.waiting == [second]  # three of four blocks would be left
    scheduler.add(smaller := row(30 * BLOCK - 1, new=200, first=9000))
    step(scheduler)
    assert (scheduler.waiting, scheduler.running) == ([second], [first, smaller])


def test_usage_is_that_of_the_first_admission_and_nothing_is_looked_up_twice() -> None:
    scheduler = make(blocks=8)
    scheduler.add(row(33, new=1, first=100))
    step(scheduler)
    step(scheduler)
    old, young = row(15, new=100), row(40, new=60, first=100)
    scheduler.add(old)
    scheduler.add(young)
    step(scheduler)
    admitted, looked_up = young.admitted, (scheduler.pool.hit_tokens, scheduler.pool.query_tokens)
    assert (young.cached, looked_up) == (32, (32, 33 + 15 + 40))
    while not young.length_reached():
        step(scheduler)
    assert young.preempted
    assert (young.cached, young.admitted) == (32, admitted)
    assert (scheduler.pool.hit_tokens, scheduler.pool.query_tokens) == looked_up


def test_what_a_preempted_row_had_computed_is_taken_from_the_cache_where_it_is_still_there() -> None:
    scheduler = make(blocks=8)
    scheduler.add(old := row(15, new=49))
    scheduler.add(young := row(60, new=60, first=100))
    while not young.preempted:
        step(scheduler)
    scheduler.finish(old)
    step(scheduler)
    assert young.allocation is not None
    assert young.allocation.cached_tokens >= 48


def test_priority_decides_before_age() -> None:
    scheduler = make(blocks=6)
    scheduler.add(low := row(15, new=60))
    scheduler.add(high := row(15, new=60, priority=1, first=100))
    while not scheduler.preemptions:
        step(scheduler)
    assert (low.preempted, high.preempted) == (1, 0)


def test_one_that_waits_while_preempted_may_be_cancelled_and_expires() -> None:
    for _ in range(2):
        scheduler = make(blocks=6)
        scheduler.add(row(15, new=60))
        scheduler.add(young := row(15, new=60, first=100))
        while not young.preempted:
            step(scheduler)
        young.deadline = 0.0
        assert list(scheduler.expired()) == [young]
        scheduler.finish(young)
        assert young not in scheduler.waiting
        while scheduler.busy:
            step(scheduler)
        assert scheduler.pool.free == scheduler.pool.total


def test_background_rows_go_before_anybody_is_preempted() -> None:
    scheduler = make(blocks=16, running=8)
    scheduler.add(row(20, new=100))
    scheduler.add(shadow := row(20, new=12, first=100, background=True))
    scheduler.add(row(20, new=100, first=200))
    while not scheduler.preemptions and scheduler.busy:
        shadow.tokens[21:] = []  # it takes its time
        shadow.computed = min(shadow.computed, 20)
        step(scheduler)
    assert scheduler.dropped == [shadow]


def test_a_reading_that_gives_way_is_read_anew() -> None:
    scheduler = make(blocks=12, step=16, prefix_cache=False)
    old = [row(20, new=60), row(20, new=60)]
    for one in old:
        scheduler.add(one)
    while min(len(one.tokens) for one in old) < 29:
        step(scheduler)
    young = pooling(112)
    scheduler.add(young)
    step(scheduler)
    assert young.computed
    young.sums = [torch.ones(1)]
    while not young.preempted:
        step(scheduler)
    assert (young.computed, young.sums, scheduler.pooling_queue) == (0, [], [young])
    while scheduler.busy:
        step(scheduler)
    assert [one.preempted for one in old] == [0, 0]
    assert young.remaining == 0


def test_one_that_is_passed_over_for_too_long_gets_the_place_of_the_youngest() -> None:
    scheduler = make(blocks=16, running=3, patience=0.0, prefix_cache=False)
    scheduler.add(first := row(100, new=30))
    step(scheduler)
    scheduler.add(large := row(200, new=1))
    scheduler.add(small := row(10, new=50))
    scheduler.add(smaller := row(10, new=50))
    step(scheduler)
    assert (scheduler.running, scheduler.waiting) == ([first, small, smaller], [large])
    scheduler.finish(first)
    step(scheduler)
    assert large in scheduler.running
    assert (first.preempted, smaller.preempted, large.preempted) == (0, 1, 0)


# -- Whatever comes, in whatever order.


@dataclass(frozen=True)
class Arrival:
    """A row that comes before a step, and after how many steps somebody cancels it or it is too late."""

    kind: str  # answer, background, reading, patient (a reading in the background)
    length: int
    new: int
    adapter: str | None
    priority: int
    first: int  # equal prompts share blocks
    leaves: int
    late: bool

    def make(self) -> BatchRow:
        if self.kind in ("reading", "patient"):
            return pooling(self.length, background=self.kind == "patient")
        background = self.kind == "background"
        return row(self.length, self.adapter, self.new, self.priority, background, first=self.first)


MOST_BLOCKS = 8
ARRIVALS = st.lists(
    st.lists(
        st.builds(
            Arrival,
            st.sampled_from(["answer", "answer", "answer", "background", "reading", "patient"]),
            st.integers(1, 70),
            st.integers(1, 50),
            st.sampled_from([None, "a", "b", "c"]),
            st.sampled_from([0, 0, 0, 1]),
            st.sampled_from([0, 0, 100, 200]),
            st.sampled_from([10_000, 10_000, 10_000, 1, 5, 20]),
            st.booleans(),
        ),
        max_size=4,
    ),
    min_size=1,
    max_size=12,
)


class World:
    """A scheduler with everything that must hold of it after each step."""

    def __init__(self, blocks: int, patience: float, prefix_cache: bool) -> None:
        self.scheduler = make(
            slots=2, running=4, step=32, blocks=blocks, patience=patience, prefix_cache=prefix_cache
        )
        self.leaving: list[tuple[int, BatchRow, bool]] = []
        self.turn = 0

    def add(self, arrival: Arrival) -> None:
        made = self.prepared(arrival.make())
        self.leaving.append((self.turn + arrival.leaves, made, arrival.late))
        self.scheduler.add(made)

    def prepared(self, made: BatchRow) -> BatchRow:
        return made

    def run(self, arrivals: list[list[Arrival]]) -> Iterator[int]:
        """Step by step until nothing is left."""
        for coming in arrivals:
            for arrival in coming:
                self.add(arrival)
            self.play()
            yield self.turn
        while self.scheduler.busy:
            self.play()
            yield self.turn

    def play(self) -> None:
        scheduler = self.scheduler
        for turn, one, late in self.leaving:
            if turn == self.turn and late:
                one.deadline = 0.0
            elif turn == self.turn:
                scheduler.finish(one)
        for one in list(scheduler.expired()):
            scheduler.finish(one)
        self.turn += 1
        before, times = list(scheduler.running), {r: r.preempted for r in scheduler.running}
        chunks = scheduler.schedule()
        self.check_chunks(chunks)
        self.check_blocks()
        self.check_places()
        self.check_order(before, times, chunks)
        advance(scheduler, chunks)

    def check_chunks(self, chunks: list[Chunk]) -> None:
        assert sum(chunk.count for chunk in chunks) <= 32
        assert len({chunk.row for chunk in chunks}) == len(chunks)
        assert len({chunk.row.adapter for chunk in chunks} - {None}) <= 2
        for chunk in chunks:
            one = chunk.row
            assert 1 <= chunk.count <= one.remaining
            assert chunk.samples is (one.samples and chunk.count == one.remaining)
            assert one.allocation is not None
            assert len(one.allocation.blocks) * BLOCK >= one.computed + chunk.count

    def check_blocks(self) -> None:
        """None is lost, none has two owners that write."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        holders = [*scheduler.running, *scheduler.pooling, *scheduler.background]
        users = Counter(block for r in holders if r.allocation for block in r.allocation.blocks)
        assert pool._users == [users[block] for block in range(pool.total)]
        idle = [*pool._free, *pool._idle]
        assert sorted([*idle, *users]) == list(range(pool.total))
        written = [b for r in holders if r.allocation for b in r.allocation.blocks[r.computed // BLOCK :]]
        assert len(written) == len(set(written))
        assert all(users[block] == 1 for block in written)

    def check_places(self) -> None:
        scheduler = self.scheduler
        assert len(scheduler.running) + len(scheduler.background) <= 4
        assert len(scheduler.pooling) <= POOLING_ROWS
        assert not scheduler.offered
        for one in (*scheduler.running, *scheduler.pooling, *scheduler.background):
            assert one.allocation is not None
        for one in (*scheduler.waiting, *scheduler.pooling_queue, *scheduler.dropped):
            assert one.allocation is None
        held = Counter(r.adapter for r in (*scheduler.running, *scheduler.background) if r.adapter)
        assert scheduler.slots._users == held
        for queue in (scheduler.waiting, scheduler.pooling_queue):
            assert queue == sorted(queue, key=lambda r: r.rank)

    def check_order(self, before: list[BatchRow], times: dict[BatchRow, int], chunks: list[Chunk]) -> None:
        scheduler = self.scheduler
        for one in before:
            if one.preempted > times[one]:
                stayed = [r for r in scheduler.running if r in before and r.preempted == times[r]]
                assert not [r for r in stayed if r.rank > one.rank], "an older one was preempted"
                assert not scheduler.background
        everybody = [*scheduler.running, *scheduler.waiting, *scheduler.pooling, *scheduler.pooling_queue]
        if everybody:
            first = min(everybody, key=lambda r: r.rank)
            assert first.preempted == times.get(first, first.preempted)
            working = {chunk.row for chunk in chunks}
            assert first in working or first in scheduler.waiting or first in scheduler.pooling_queue


@pytest.mark.slow
@given(ARRIVALS, st.integers(MOST_BLOCKS, 24), st.sampled_from([0.0, 1e9]), st.booleans())
def test_everybody_ends_and_nothing_is_lost(
    arrivals: list[list[Arrival]], blocks: int, patience: float, prefix_cache: bool
) -> None:
    world = World(blocks, patience, prefix_cache)
    work = sum(a.length + a.new + 2 for coming in arrivals for a in coming)
    for turn in world.run(arrivals):
        assert turn <= len(arrivals) + work, "somebody waits for ever"
    assert world.scheduler.pool.free == world.scheduler.pool.total
    assert not world.scheduler.slots._users


@pytest.mark.slow
def test_the_oldest_goes_on_at_every_step_however_many_short_ones_come() -> None:
    """A stream of short requests that never ends: a long one is admitted, and never stands still again."""
    scheduler = make(blocks=24, running=8, step=64, patience=0.0, prefix_cache=False)
    for i in range(8):
        scheduler.add(row(20, new=5 + i))
    step(scheduler)
    scheduler.add(long := row(200, new=150))
    admitted = 0
    for turn in range(1000):
        for _ in range(3):
            if len(scheduler.waiting) < 20:
                scheduler.add(row(20, new=10))
        working = {chunk.row for chunk in step(scheduler)}
        admitted = admitted or (turn if long in working else 0)
        if long.length_reached():
            break
        if admitted and scheduler.running and min(scheduler.running, key=lambda r: r.rank) is long:
            assert long in working
    assert long.length_reached()
    assert long.preempted == 0


# -- Answers of an engine whose cache is too small for all of them.

NEW = 90
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 0.9, "seed": 7, "top_p": 0.95},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    "logprobs": {"logprobs": 3, "temperature": 0.7, "seed": 3},
}
Answer = tuple[str, tuple[TokenLogprob, ...], Finished]


async def answer(made: TorchEngine, job: Job) -> Answer:
    text, entries, tokens = "", (), 0
    async for event in made.submit(job):
        if isinstance(event, Finished):
            assert tokens <= event.usage.completion_tokens
            return text, entries, event
        text, entries, tokens = text + event.text, entries + event.logprobs, tokens + event.tokens
    raise AssertionError("no Finished")


def jobs(adapter: str | None, new: int) -> list[Job]:
    """One of each kind, none with the tokens of another."""
    found = []
    for i, params in enumerate(KINDS.values()):
        wanted = SamplingParams(max_tokens=new, min_tokens=new, **params)
        found.append(Job(str(i), [i + 1, *range(20, 42)], wanted, adapter if i % 2 else None))
    return found


async def alone_and_together(made: TorchEngine, work: list[Job]) -> tuple[list[Answer], list[Answer], int]:
    alone = [await answer(made, job) for job in work]
    before = made.status().preemptions
    together = list(await asyncio.gather(*(answer(made, job) for job in work)))
    return alone, together, made.status().preemptions - before


def check_equal(alone: list[Answer], together: list[Answer], close: float) -> None:
    for (text, entries, end), (found, theirs, last) in zip(alone, together, strict=True):
        assert found == text
        assert [e.token_id for e in theirs] == [e.token_id for e in entries]
        assert [e.logprob for e in theirs] == pytest.approx([e.logprob for e in entries], abs=close)
        assert (last.reason, last.usage.completion_tokens) == (end.reason, end.usage.completion_tokens)
        assert last.usage.prompt_tokens == end.usage.prompt_tokens
        assert 0 <= last.usage.queue_time <= last.usage.time_to_first_token <= last.usage.total_time


@pytest.fixture
def made(tmp_path: Path) -> Iterator[TorchEngine]:
    """A cache that holds two of four answers."""
    engine = tiny.engine("llama", cache_tokens=256, prefix_cache=False)
    yield engine
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("native", [False, True])
async def test_the_same_token_for_token(native: bool, prefix_cache: bool, tmp_path: Path) -> None:
    made = tiny.engine("llama", cache_tokens=256, native=native, prefix_cache=prefix_cache)
    try:
        tiny.save_adapter("llama", tmp_path / "a")
        artifact = tiny.artifact(tmp_path / "a", made)
        await made.load(artifact)
        work = jobs(artifact.digest, NEW)
        alone, together, preemptions = await alone_and_together(made, work)
        assert preemptions >= 2
        check_equal(alone, together, close=1e-4)
    finally:
        made.close()


@pytest.mark.slow
async def test_another_tenants_short_one_goes_before_and_changes_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two places, taken by long ones of one tenant, and more of them in the queue."""
    made = tiny.engine("llama", cache_tokens=2048, max_running=2, native=True, slots=1)
    try:
        tiny.save_adapter("llama", tmp_path / "a")
        artifact = tiny.artifact(tmp_path / "a", made)
        await made.load(artifact)
        work = [replace(job, tenant="flood") for job in jobs(None, 200)]
        params = SamplingParams(max_tokens=5, min_tokens=5)
        short = Job("short", [7] * 20, params, artifact.digest, tenant="light")
        alone = [await answer(made, job) for job in (*work, short)]
        loop = made._loop
        assert loop is not None
        loop._scheduler._patience = 0.0
        came, ended, step, finish = threading.Event(), list[str](), loop.step, loop._finish

        def held(chunks: Sequence[Chunk]) -> Events:
            if made.status().waiting == 2:  # so the long ones are not over before the short one comes
                assert came.wait(60)
            return step(chunks)

        def noted(row: BatchRow) -> None:
            assert isinstance(row, AnswerRow)
            ended.append(row.job.request_id)
            finish(row)

        monkeypatch.setattr(loop, "step", held)
        monkeypatch.setattr(loop, "_finish", noted)
        answers = [asyncio.create_task(answer(made, job)) for job in work]
        await until(lambda: made.status().running == 2 and made.status().waiting == 2)
        answers.append(asyncio.create_task(answer(made, short)))
        await asyncio.sleep(0)
        came.set()
        together = await asyncio.gather(*answers)
        assert ended[0] == "short"
        assert made.status().preemptions >= 1
        check_equal(alone, together, close=1e-4)
    finally:
        made.close()


@pytest.mark.slow
async def test_a_stop_string_ends_it_where_it_did(made: TorchEngine) -> None:
    work = jobs(None, NEW)
    text, _, _ = await answer(made, work[-1])
    stop = text[-6:-2]
    params = SamplingParams(max_tokens=NEW, min_tokens=NEW - 20, stop=(stop,), temperature=0.7, seed=3)
    asked = Job("stop", work[-1].tokens, params)
    alone = await answer(made, asked)
    assert alone[2].stop == stop
    before = made.status().preemptions
    *_, found = await asyncio.gather(*(answer(made, job) for job in work[:-1]), answer(made, asked))
    assert made.status().preemptions > before
    assert (found[0], found[2].reason, found[2].stop) == (alone[0], FinishReason.STOP, stop)
    assert found[2].usage.completion_tokens == alone[2].usage.completion_tokens
    assert text.startswith(found[0])


@pytest.mark.slow
async def test_one_that_waits_for_its_blocks_ends_at_its_deadline_or_when_it_is_cancelled(
    made: TorchEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "router.engine.scheduler")
    work = jobs(None, 200)[:2]
    first, second = (made.submit(job) for job in work)
    deltas = aiter(second)
    assert isinstance(await anext(deltas), Delta)
    await until(lambda: made.status().preemptions > 0)
    second.cancel()
    *_, end = [event async for event in deltas]
    assert isinstance(end, Finished)
    assert end.reason is FinishReason.CANCELLED
    assert "preempted" in caplog.text
    *_, whole = [event async for event in first]
    assert isinstance(whole, Finished)
    assert whole.usage.completion_tokens == 200


@pytest.mark.slow
async def test_a_short_request_is_answered_beside_long_ones_that_could_fill_the_cache() -> None:
    """Four of 250 + 250 tokens in a cache of 1,024: two as a whole would fill it."""
    made = tiny.engine("llama-long", cache_tokens=1024, max_step_tokens=128, prefix_cache=False)
    try:
        params = SamplingParams(max_tokens=250, min_tokens=250)
        long_ones = [made.submit(Job(str(i), [i + 1] * 250, params)) for i in range(4)]
        first = aiter(long_ones[0])
        await anext(first)
        before = made.status().steps
        short = Job("short", list(range(50)), SamplingParams(max_tokens=5, min_tokens=5))
        _, _, end = await answer(made, short)
        assert (end.reason, end.usage.completion_tokens) == (FinishReason.LENGTH, 5)
        assert made.status().steps - before < 15
        ends = [[event async for event in stream][-1] for stream in (first, *long_ones[1:])]
        assert [e.usage.completion_tokens for e in ends if isinstance(e, Finished)] == [250] * 4
    finally:
        made.close()
