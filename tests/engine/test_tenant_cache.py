"""What one tenant asked is in nobody else's cache, but for what a template begins with for everybody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.engine.base import Finished, Job, Prompt
from router.engine.blocks import Chain, Salts, chain_root
from router.engine.ops import BLOCK
from router.engine.rows import AnswerRow, Row
from router.engine.torch_engine import TorchEngine
from router.types import PromptTemplate, SamplingParams, Turn
from tests.engine import tiny
from tests.engine.rows import make, row, step

LONG = 5 * BLOCK + 3


def asked(tenant: str, shared: int = 0, length: int = LONG, **fields: Any) -> AnswerRow:
    """The same tokens from every tenant."""
    return row(length, tenant=tenant, shared=shared, **fields)


def played(*rows: AnswerRow) -> list[int]:
    """Cached tokens of each, one after the other."""
    scheduler = make()
    for one in rows:
        scheduler.add(one)
        while scheduler.busy:
            step(scheduler)
    return [one.cached for one in rows]


def test_ones_own_is_found_and_nobody_elses() -> None:
    assert played(asked("a"), asked("b"), asked(""), asked("a"), asked("b"), asked("")) == [0] * 3 + [80] * 3


@pytest.mark.parametrize(("shared", "found"), [(0, 0), (15, 0), (16, 16), (40, 32), (47, 32), (48, 48)])
def test_only_blocks_that_lie_wholly_in_the_templates_beginning_are_everybodys(
    shared: int, found: int
) -> None:
    assert played(asked("a", shared), asked("b", shared), asked("b", shared)) == [0, found, 80]


def test_blocks_of_another_adapter_are_found_by_nobody() -> None:
    assert played(asked("a", 48, adapter="a"), asked("a", 48, adapter="b"), asked("a", 48)) == [0, 0, 0]


@pytest.mark.parametrize(("tenant", "told"), [("b", [0, 32]), ("", [48, 80])])
def test_usage_tells_of_ones_own_only(tenant: str, told: list[int]) -> None:
    """Where callers are told apart, not even whether others use the same adapter."""
    rows = [asked("a", 48), asked(tenant, 48), asked(tenant, 48)]
    assert played(*rows)[1:] == [48, 80]
    assert [one.usage().cached_tokens for one in rows[1:]] == told


def test_what_is_generated_is_ones_own_too() -> None:
    first = asked("a", 64, length=64, new=40)
    later = [asked(tenant, 64, length=100) for tenant in ("b", "a")]
    for one in later:
        one.tokens[64:] = [0] * 36
    assert played(first, *later) == [0, 64, 96]


def test_salts_differ_by_owner_and_by_process() -> None:
    salts, others = Salts(), Salts()
    assert salts.of("tenant a") == salts.of("tenant a")
    assert (
        len({salts.of("tenant a"), salts.of("tenant b"), salts.of("reading a"), others.of("tenant a")}) == 4
    )
    root, tokens = chain_root("base", None), list(range(32))

    def hashes(owner: str, shared: int) -> list[bytes]:
        chain = Chain(root, salts.of(owner), shared)
        return [chain.at(tokens, place) for place in range(2)]

    assert hashes("a", 32) == hashes("b", 32)
    one, other = hashes("a", 31), hashes("b", 31)
    assert one[0] == other[0]
    assert one[1] != other[1]
    assert set(hashes("a", 0)).isdisjoint(hashes("b", 0))


ASKED = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", ""]),
        st.integers(1, 90),  # length
        st.integers(1, 30),  # new
        st.sampled_from([0, 100]),  # first token
        st.sampled_from([None, "a"]),  # adapter
        st.sampled_from([0, 0, 1, 6]),  # steps before the next comes
        st.integers(0, 90),  # tokens before the adapter acts
    ),
    max_size=25,
)


class World:
    """A scheduler, and who wrote each block."""

    def __init__(self, blocks: int) -> None:
        self.scheduler = make(blocks=blocks, running=4)
        self.wrote: dict[int, str] = {}
        self.times: dict[Row, int] = {}  # preempted when it was last looked at

    def play(self) -> None:
        for chunk in self.scheduler.schedule():
            one = chunk.row
            assert isinstance(one, AnswerRow)
            self.look(one, one.computed + chunk.count)
            self.scheduler.computed(chunk)
            if chunk.samples:
                one.tokens.append(0)
                if one.length_reached():
                    self.scheduler.finish(one)

    def look(self, one: AnswerRow, end: int) -> None:
        """What it found was its tenant's or the template's; what it computes is its tenant's now."""
        assert one.allocation is not None
        blocks, tenant = one.allocation.blocks, one.job.tenant
        if self.times.get(one) != one.preempted:
            self.times[one] = one.preempted
            for place in range(one.computed // BLOCK):
                assert (place + 1) * BLOCK <= one.shared or self.wrote[blocks[place]] == tenant
        for place in range(one.computed // BLOCK, -(-end // BLOCK)):
            self.wrote[blocks[place]] = tenant


@given(ASKED, st.integers(0, 50), st.integers(8, 40))
def test_no_block_is_ever_given_to_another_tenant(
    asking: Sequence[tuple[str, int, int, int, str | None, int, int]], shared: int, blocks: int
) -> None:
    world = World(blocks)
    for tenant, length, new, first, adapter, steps, inactive in asking:
        late = 0 if adapter is None else min(inactive, length - 1)
        common = min(shared, length)
        world.scheduler.add(
            row(length, adapter, new, first=first, tenant=tenant, shared=common, inactive=late)
        )
        for _ in range(steps):
            world.play()
    while world.scheduler.busy:
        world.play()


# -- With a model.


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    made = tiny.engine("llama", cache_tokens=4096)
    yield made
    made.close()


async def ids_of(engine: TorchEngine, job: Job) -> tuple[list[int], Finished]:
    ids: list[int] = []
    async for event in engine.submit(job):
        if isinstance(event, Finished):
            return ids, event
        ids += [entry.token_id for entry in event.logprobs]
    raise AssertionError("no Finished")


async def test_answers_are_the_same_whoever_asked_before(engine: TorchEngine) -> None:
    template = PromptTemplate("You know all about the law of the sea and of harbours.", "Q: {prompt}")
    prompt = Prompt((Turn("user", "May a ship that is in need enter any harbour it sees?"),), None, template)
    tokens = engine.encode(prompt)
    shared = engine.shared(prompt, tokens)
    assert BLOCK <= shared < len(tokens) - 2 * BLOCK
    params = SamplingParams(max_tokens=12, min_tokens=12, logprobs=1)
    found, told, hits = [], [], [engine.status().prefix_hit_tokens]
    for tenant in ("a", "b", "b", "a", ""):
        answer, end = await ids_of(engine, Job("r", tokens, params, tenant=tenant, shared=shared))
        found.append(answer)
        told.append(end.usage.cached_tokens)
        hits.append(engine.status().prefix_hit_tokens)
    everybodys, own = shared // BLOCK * BLOCK, (len(tokens) - 1) // BLOCK * BLOCK
    assert found == [found[0]] * 5
    assert told == [0, 0, own - everybodys, own - everybodys, everybodys]
    assert [after - before for before, after in pairwise(hits)] == [0, everybodys, own, own, everybodys]
