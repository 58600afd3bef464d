"""A plan that is moved on from step to step says what one that is made anew says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from router.engine.blocks import Chain
from router.engine.ops import BLOCK
from router.engine.planning import Planner, StepPlan
from router.engine.rows import AnswerRow, Chunk
from router.engine.scheduler import Scheduler
from tests.engine.rows import make, reading, row

CPU = torch.device("cpu")


def said(plan: StepPlan) -> dict[str, object]:
    at = plan.attention
    tensors = {
        "tokens": plan.tokens,
        "scored": plan.scored,
        "cu_q": at.cu_q,
        "context": at.context,
        "block_table": at.block_table,
        "positions": at.positions,
        "slots": at.slots,
    }
    lists = {"sampled": plan.sampled, "most": at.most_queries, "bounds": at.bounds, "contexts": at.contexts}
    return {name: (str(t.dtype), t.tolist()) for name, t in tensors.items()} | lists


def expected(chunks: list[Chunk]) -> dict[str, object]:
    """Token by token, from the rows."""
    places = [(c.row, p) for c in chunks for p in range(c.row.computed, c.row.computed + c.count)]
    ends = [sum(c.count for c in chunks[:i]) for i in range(len(chunks) + 1)]
    contexts = [c.row.computed + c.count for c in chunks]
    width = -(-max(contexts) // BLOCK)

    def blocks(chunk_row: object, count: int = 0) -> list[int]:
        held = chunk_row.allocation.blocks  # type: ignore[attr-defined]
        return [*held[:count], *[0] * (width - count)] if count else held

    sampled = [end - 1 for c, end in zip(chunks, ends[1:], strict=True) if c.samples]
    return {
        "tokens": ("torch.int64", [r.tokens[p] for r, p in places]),
        "scored": ("torch.int64", sampled),
        "cu_q": ("torch.int32", ends),
        "context": ("torch.int32", contexts),
        "block_table": (
            "torch.int32",
            [blocks(c.row, -(-n // BLOCK)) for c, n in zip(chunks, contexts, strict=True)],
        ),
        "positions": ("torch.int32", [p for _, p in places]),
        "slots": ("torch.int32", [blocks(r)[p // BLOCK] * BLOCK + p % BLOCK for r, p in places]),
        "sampled": sampled,
        "most": max(c.count for c in chunks),
        "bounds": ends,
        "contexts": contexts,
    }


def answer(scheduler: Scheduler, chunks: list[Chunk], token: int, forced: int = 0) -> None:
    """Each row that samples gets a token of its own, the first of them some more at once."""
    for place, chunk in enumerate(chunks):
        scheduler.computed(chunk)
        one = chunk.row
        if isinstance(one, AnswerRow) and chunk.samples:
            one.tokens += [token + place] * (1 + (forced if not place else 0))
            if one.length_reached():
                scheduler.finish(one)
        elif not one.remaining:
            scheduler.finish(one)


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 12),  # steps before it
        st.sampled_from(["answer", "reading", "cancel", "forced", "background"]),
        st.integers(1, 40),  # tokens of the prompt
        st.sampled_from([None, "a", "b"]),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(EVENTS, st.integers(16, 40))
def test_whoever_comes_and_goes_a_plan_fits_its_step(
    events: list[tuple[int, str, int, str | None]], blocks: int
) -> None:
    scheduler, planner, turn = make(blocks=blocks, step=48), Planner(CPU), 0
    events = [(0, "answer", 15, None), (0, "answer", 30, "a"), *events, (60, "answer", 3, None)]
    for wait, what, length, adapter in events:
        for _ in range(wait + 1):
            turn += 1
            chunks = scheduler.schedule()
            if chunks:
                assert said(planner.plan(chunks)) == expected(chunks)
                answer(scheduler, chunks, 1000 * turn, 2 * (what == "forced"))
        if what == "cancel" and scheduler.running:
            scheduler.finish(scheduler.running[0])
        elif what == "reading":
            scheduler.add(reading(length))
        elif what in ("answer", "background"):
            scheduler.add(row(length, adapter, new=50, background=what == "background", first=100 * turn))


def test_tensors_stay_while_the_same_rows_decode_and_a_memo_does_not() -> None:
    scheduler, planner = make(), Planner(CPU)
    for first in (0, 100):
        scheduler.add(row(10, new=40, first=first))
    answer(scheduler, scheduler.schedule(), 1)
    plan = planner.plan(chunks := scheduler.schedule())
    kept = (plan.tokens, plan.attention.positions, plan.attention.slots)
    plan.attention.memo["mask"] = torch.zeros(1)
    answer(scheduler, chunks, 2)
    after = planner.plan(scheduler.schedule())
    moved = (after.tokens, after.attention.positions, after.attention.slots)
    assert [t.data_ptr() for t in moved] == [t.data_ptr() for t in kept]
    assert not after.attention.memo
    assert after.attention.contexts == [12, 12]


def test_a_step_that_is_planned_twice_has_the_same_plan() -> None:
    """As when it failed in between, or another planner was asked."""
    scheduler, planner = make(), Planner(CPU)
    scheduler.add(row(10, new=40))
    answer(scheduler, scheduler.schedule(), 1)
    for _ in range(2):
        assert said(planner.plan(scheduler.schedule())) == expected(scheduler.schedule())
    answer(scheduler, scheduler.schedule(), 2)
    answer(scheduler, scheduler.schedule(), 3)
    assert said(planner.plan(scheduler.schedule())) == expected(scheduler.schedule())


def test_the_same_rows_in_other_blocks_get_another_plan() -> None:
    """One is preempted and comes back with all but one token known: it decodes at once, elsewhere."""
    scheduler, planner = make(), Planner(CPU)
    for first in (0, 100):
        scheduler.add(row(BLOCK, new=40, first=first))
    answer(scheduler, scheduler.schedule(), 1)
    planner.plan(before := scheduler.schedule())
    scheduler._preempt(scheduler.running[1])
    scheduler.pool.allocate(Chain(b"another"), [1], 1)  # takes the block that it gave back last
    chunks = scheduler.schedule()
    assert [c.row for c in chunks] == [c.row for c in before]
    assert [c.count for c in chunks] == [1, 1]
    assert said(planner.plan(chunks)) == expected(chunks)


def test_a_row_without_blocks_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="without blocks"):
        Planner(CPU).plan([Chunk(row(3), 3, samples=True)])
