"""All layers in one call against the same operations one by one, to the bit; and the team that does it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.engine.native import NativeOps
from router.engine.native.ops import NativeStack
from router.engine.ops import (
    BLOCK,
    AttentionPlan,
    Experts,
    GatedUnit,
    Layer,
    LoraPlan,
    LoraStep,
    PackedModel,
    SiteGroup,
)
from router.engine.torch_ops import OneByOne, TorchOps
from tests.engine.ops_cases import attention_case, compiled, dtypes

pytestmark = compiled
examples = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VOCABULARY, POSITIONS, BLOCKS = 101, 300, 120


@dataclass(frozen=True)
class Shape:
    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    hidden: int = 96
    inner: int = 128
    layers: int = 2
    bias: bool = False
    qk_norm: bool = False
    turned: int = 0  # numbers of a head that are rotated, 0: all
    windows: tuple[int, ...] = (0,)  # of layers in turn
    fused: bool = False  # q, k and v are one linear layer, gate and up another
    gemma: bool = False  # norms of outputs, gelu, scaled embeddings, caps
    experts: int = 0
    top: int = 0  # of them for a token

    @property
    def outs(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Inputs and outputs of a layer's four site groups."""
        q, kv = self.heads * self.dim, self.kv_heads * self.dim
        unit = () if self.experts else (self.inner,)
        return (
            (self.hidden, (q + 2 * kv,) if self.fused else (q, kv, kv)),
            (q, (self.hidden,)),
            (self.hidden, (2 * self.inner,) if self.fused else (*unit, *unit)),
            (self.inner, (self.hidden,) if unit else ()),
        )


def model_of(ops: Any, shape: Shape, dtype: torch.dtype, seed: int = 0) -> PackedModel:
    rng = torch.Generator().manual_seed(seed)

    def random(*sizes: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*sizes, generator=rng) * scale).to(dtype)

    def linear(inputs: int, outputs: int) -> Any:
        bias = random(outputs, scale=0.1) if shape.bias else None
        return ops.pack_linear(random(outputs, inputs, scale=inputs**-0.5), bias)

    def norm(width: int) -> torch.Tensor:
        return torch.randn(width, generator=rng)

    cos, sin = torch.randn(2, POSITIONS, shape.turned or shape.dim, generator=rng)
    cache = (BLOCKS, shape.kv_heads, BLOCK, shape.dim)
    layers, groups = [], []
    for index in range(shape.layers):
        qkv, o = (linear(inputs, sum(outs)) for inputs, outs in shape.outs[:2])
        units = [
            GatedUnit(linear(shape.hidden, 2 * shape.inner), linear(shape.inner, shape.hidden))
            for _ in range(shape.experts or 1)
        ]
        unit: GatedUnit | Experts = units[0]
        if shape.experts:
            unit = Experts(linear(shape.hidden, shape.experts), units, shape.top, shares=True)
        caches = torch.full(cache, torch.nan, dtype=dtype), torch.full(cache, torch.nan, dtype=dtype)
        layers.append(
            Layer(
                norm1=norm(shape.hidden),
                norm2=norm(shape.hidden),
                out_norms=(norm(shape.hidden), norm(shape.hidden)) if shape.gemma else None,
                qk_norm=(norm(shape.dim), norm(shape.dim)) if shape.qk_norm else None,
                cos=cos,
                sin=sin,
                window=shape.windows[index % len(shape.windows)],
                qkv=qkv,
                o=o,
                unit=unit,
                k_cache=caches[0],
                v_cache=caches[1],
            )
        )
        for inputs, outs in shape.outs:
            names = tuple(f"{index}.{i}" for i in range(len(outs)))
            groups.append(SiteGroup(names, inputs, (0, *accumulate(outs))))
    return PackedModel(
        embed=random(VOCABULARY, shape.hidden),
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.dim,
        eps=1e-5,
        scale=shape.dim**-0.5,
        norm=norm(shape.hidden),
        head=linear(shape.hidden, VOCABULARY),
        layers=layers,
        groups=groups,
        inner=shape.inner,
        gelu=shape.gemma,
        embed_scale=2.5 if shape.gemma else 1.0,
        score_cap=2.0 if shape.gemma else 0.0,
        logit_cap=1.5 if shape.gemma else 0.0,
    )


def fill(model: PackedModel, seed: int = 0) -> None:
    """The caches hold numbers everywhere, as if prompts had been read."""
    rng = torch.Generator().manual_seed(seed)
    for layer in model.layers:
        for cache in (layer.k_cache, layer.v_cache):
            cache.copy_(torch.randn(cache.shape, generator=rng))


def plan_of(rows: list[tuple[int, int]]) -> AttentionPlan:
    """rows: (queries, context)."""
    plan = attention_case(rows, 1, 1, 16, torch.float32).plan
    assert int(plan.block_table.max()) < BLOCKS
    return plan


def lora_of(
    ops: Any, model: PackedModel, bounds: list[int], ranks: list[list[int]], dtype: torch.dtype, seed: int = 0
) -> LoraStep:
    """ranks[site][adapter]; rank 0: that adapter has nothing there."""
    rng = torch.Generator().manual_seed(seed)
    starts = torch.tensor(bounds, dtype=torch.int32)
    rows, sites = [], []
    for group, wanted in zip(model.groups, ranks, strict=True):
        weights: list[tuple[torch.Tensor, torch.Tensor] | None] = []
        wanted = wanted if group.names else [0] * len(wanted)
        for rank in wanted:
            a = torch.randn(len(group.names) * rank, group.in_features, generator=rng) * 0.1
            b = torch.randn(group.out_offsets[-1], rank, generator=rng) * 0.1
            weights.append((ops.pack_a(a.to(dtype)), ops.pack_b(b.to(dtype))) if rank else None)
        table = [
            (w[0].data_ptr(), w[1].data_ptr(), r) if w else (0, 0, 0)
            for w, r in zip(weights, wanted, strict=True)
        ]
        rows.append(torch.tensor(table, dtype=torch.int64).reshape(-1, 3))
        sites.append(LoraPlan(starts, rows[-1], weights, bounds) if any(weights) else None)
    return LoraStep(starts, torch.stack(rows), sites)


@dataclass
class Work:
    model: PackedModel
    tokens: torch.Tensor
    plan: AttentionPlan
    lora: LoraStep | None
    scored: torch.Tensor

    def run(self, stack: Any) -> tuple[torch.Tensor, ...]:
        """Logits, hidden states and all caches, which are filled anew before."""
        fill(self.model)
        hidden = self.model.embed.new_empty(len(self.tokens), self.model.embed.shape[1])
        layers = (0, len(self.model.layers))
        logits = stack.run(hidden, self.tokens, layers, self.plan, self.lora, self.scored)
        return (logits, hidden, *(c.clone() for n in self.model.layers for c in (n.k_cache, n.v_cache)))


def work_of(
    ops: Any,
    shape: Shape,
    rows: list[tuple[int, int]],
    base_rows: int,
    ranks: list[int],
    dtype: torch.dtype,
    seed: int = 0,
) -> Work:
    """The first `base_rows` rows are the base's, the others are dealt to adapters in order."""
    torch.manual_seed(seed)
    model, plan = model_of(ops, shape, dtype, seed), plan_of(rows)
    ends = plan.cu_q.tolist()
    lora = None
    if ranks:
        adapted = range(base_rows, len(rows))
        firsts = (
            sorted({adapted[len(adapted) * g // len(ranks)] for g in range(len(ranks))}) if adapted else []
        )
        bounds = [ends[row] for row in firsts] + [ends[-1]]
        used = ranks[: len(firsts)]
        wanted = [
            [0 if (site + g) % 5 == 4 else r for g, r in enumerate(used)] for site in range(len(model.groups))
        ]
        lora = lora_of(ops, model, bounds, wanted, dtype, seed) if used else None
    tokens = torch.randint(0, VOCABULARY, (ends[-1],))
    scored = torch.tensor([end - 1 for start, end in pairwise(ends) if end > start], dtype=torch.int64)
    return Work(model, tokens, plan, lora, scored)


def same(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def agree(native: NativeOps, work: Work, threads: tuple[int, ...] = (1, 2, 5)) -> None:
    stack = NativeStack(native._native, work.model)
    native.threads = 1
    expected = work.run(OneByOne(work.model, native))
    assert torch.isfinite(expected[0]).all()
    for number in threads:
        native.threads = number
        assert same(work.run(stack), expected), f"{number} threads"


shapes = st.sampled_from(
    [
        Shape(),
        Shape(heads=9, kv_heads=3, hidden=576, inner=1536),
        Shape(heads=6, kv_heads=1, dim=32, hidden=64, inner=100),
        Shape(dim=128, bias=True, inner=96),
        Shape(qk_norm=True, bias=True, dim=16, layers=3),
        Shape(heads=3, kv_heads=3, dim=80, hidden=34, inner=34, layers=1),
        Shape(fused=True, turned=48, windows=(9,)),
        Shape(gemma=True, qk_norm=True, windows=(20, 0), layers=3),
    ]
)
some_rows = st.lists(
    st.tuples(st.sampled_from([1, 1, 1, 2, 5, 17, 40]), st.integers(0, 60)).map(lambda r: (r[0], sum(r))),
    min_size=1,
    max_size=9,
)


@examples
@dtypes
@given(
    shape=shapes,
    rows=some_rows,
    base_rows=st.integers(0, 3),
    ranks=st.lists(st.sampled_from([2, 4, 6, 8, 16, 64]), max_size=8),
    seed=st.integers(0, 99),
)
def test_one_call_is_what_the_operations_are_one_by_one(native, dtype, shape, rows, base_rows, ranks, seed):
    agree(native, work_of(native, shape, rows, base_rows, ranks, dtype, seed))


@dtypes
@pytest.mark.parametrize(
    ("rows", "ranks"),
    [
        ([(1, 30)] * 32, [2, 4, 8, 16, 32, 64, 6, 10] * 4),
        ([(1, 20)], [512]),
        ([(30, 30), (20, 50)], [2, 512]),
        ([(70, 70)], [8]),
        ([(1, 200)] * 2, []),
    ],
    ids=["32 adapters", "rank 512", "prompts only", "one prompt", "no adapter"],
)
def test_ranks_and_rows_at_the_edges(native, dtype, rows, ranks):
    agree(native, work_of(native, Shape(), rows, 0, ranks, dtype))


@dtypes
def test_it_agrees_with_plain_torch(native, dtype):
    """Other kernels and another cache: close, not equal."""
    rows = [(20, 20), (3, 3), (7, 7)]
    ours, theirs = (work_of(ops, Shape(qk_norm=True), rows, 1, [8, 4], dtype) for ops in (native, TorchOps()))
    found = ours.run(NativeStack(native._native, ours.model))[0]
    expected = theirs.run(TorchOps().stack(theirs.model))[0]
    limit = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=limit * float(expected.abs().max()))


@dtypes
@pytest.mark.parametrize(("experts", "top"), [(4, 4), (40, 6)])
def test_a_mixture_of_experts_is_the_same_to_the_bit_alone_and_on_any_threads(native, dtype, experts, top):
    shape = Shape(experts=experts, top=top, inner=64)
    work = work_of(native, shape, [(20, 20), (3, 3), (1, 30)], 1, [8, 4], dtype)
    expected = work.run(OneByOne(work.model, native))[0]
    together = work.run(NativeStack(native._native, work.model))[0]
    limit = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(together, expected, rtol=0, atol=limit * float(expected.abs().max()))
    alone = work_of(native, shape, [(20, 20)], 1, [], dtype)
    alone.tokens = work.tokens[:20]
    for number in (1, 2, 5):
        native.threads = number
        assert torch.equal(work.run(NativeStack(native._native, work.model))[0], together)
        assert torch.equal(alone.run(NativeStack(native._native, alone.model))[0][0], together[0])


@dtypes
def test_layers_may_be_run_in_stretches(native, dtype):
    work = work_of(native, Shape(layers=3), [(5, 9), (1, 30)], 1, [4], dtype)
    stack = NativeStack(native._native, work.model)
    logits, hidden, *_ = work.run(stack)
    fill(work.model)
    parts = torch.empty_like(hidden)
    nothing = stack.run(parts, work.tokens, (0, 0), work.plan, work.lora, work.scored[:0])
    assert nothing.shape == (0, VOCABULARY)
    assert torch.equal(parts, work.model.embed[work.tokens])
    for layer in range(3):
        stack.run(parts, None, (layer, layer + 1), work.plan, work.lora, work.scored[:0])
    assert torch.equal(parts, hidden)
    assert torch.equal(stack.run(parts, None, (3, 3), work.plan, None, work.scored), logits)


def test_it_says_where_the_time_goes(native):
    work = work_of(native, Shape(), [(1, 30)] * 4, 0, [8, 8], torch.float32)
    stack = NativeStack(native._native, work.model)
    work.run(stack)
    spent, steps = stack.spent()
    assert steps == 1
    assert stack.spent(decode=False)[1] == 0
    assert {"attention", "gate, up", "head"} < set(spent)
    assert all(seconds > 0 for seconds in spent.values())
    assert stack.spent() == (dict.fromkeys(spent, 0.0), 0)


def test_reading_all_weights(native):
    model = model_of(native, Shape(), torch.bfloat16)
    shapes = [sum(outs) * inputs for inputs, outs in Shape().outs] * 2
    head = 96 * 128 if native._native.panel == 32 else 96 * 112  # of whole panels
    assert NativeStack(native._native, model).read_weights() == 2 * (sum(shapes) + head)


def test_a_linear_layer_of_other_operations_makes_it_one_by_one(native):
    model = model_of(native, Shape(), torch.float32)
    assert isinstance(native.stack(model), NativeStack)
    head = TorchOps().pack_linear(torch.zeros(VOCABULARY, 96), None)
    assert isinstance(native.stack(replace(model, head=head)), OneByOne)


# -- The team.


def test_many_at_once_from_many_threads(native):
    """Anyone who comes late to a job finds it done, and never one that is gone."""
    native.threads = 4
    jobs = [work_of(native, Shape(), [(1, 20 + i)] * 3, 0, [4], torch.float32, seed=i) for i in range(3)]
    stacks = [NativeStack(native._native, job.model) for job in jobs]
    expected = [job.run(stack) for job, stack in zip(jobs, stacks, strict=True)]
    wrong: list[int] = []

    def again(index: int) -> None:
        for _ in range(25):
            if not same(jobs[index].run(stacks[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=again, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_child_of_a_fork_has_a_team_of_its_own(native):
    native.threads = 3
    work = work_of(native, Shape(), [(4, 20)], 0, [4], torch.float32)
    stack = NativeStack(native._native, work.model)
    work.run(stack)

    def again() -> torch.Tensor:  # without torch's own operations: their threads do not survive a fork
        return stack.run(hidden, work.tokens, (0, 2), work.plan, work.lora, work.scored)

    hidden = torch.empty(4, 96)
    expected = again().numpy().tobytes()
    child = os.fork()
    if not child:
        os._exit(0 if again().numpy().tobytes() == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert again().numpy().tobytes() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_more_threads_than_cpus(native):
    """All on one CPU: nobody watches for what cannot come."""
    work = work_of(native, Shape(), [(4, 20), (1, 9)], 1, [4], torch.float32)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        agree(native, work, threads=(1, 8))
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_team_has_one_thread_or_more(native):
    with pytest.raises(RuntimeError, match="one thread or more"):
        native.threads = 0


# -- Refused is what would read or write outside of the tensors.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.tensor([0, VOCABULARY])}, "tokens"),
        ({"tokens": torch.tensor([0, -1])}, "tokens"),
        ({"tokens": torch.tensor([0])}, "tokens"),
        ({"scored": torch.tensor([2])}, "scored"),
        ({"layers": (0, 3)}, "layers"),
        ({"layers": (2, 1)}, "layers"),
        ({"hidden": torch.zeros(2, 95)}, "hidden"),
        ({"hidden": torch.zeros(0, 96)}, "hidden"),
        ({"hidden": torch.zeros(2, 96).bfloat16()}, "hidden"),
    ],
)
def test_bad_steps_are_refused(native, change, message):
    work = work_of(native, Shape(), [(2, 20)], 0, [4], torch.float32)
    stack = NativeStack(native._native, work.model)
    given = {
        "hidden": torch.zeros(2, 96),
        "tokens": work.tokens,
        "layers": (0, 2),
        "plan": work.plan,
        "lora": work.lora,
        "scored": work.scored,
    }
    with pytest.raises(RuntimeError, match=message):
        stack.run(*(given | change).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": torch.tensor([1, 1 << 20], dtype=torch.int32)}, "slots"),
        ({"positions": torch.tensor([0, POSITIONS], dtype=torch.int32)}, "positions"),
        ({"block_table": torch.full((1, 3), BLOCKS, dtype=torch.int32)}, "block_table"),
        ({"context": torch.tensor([1], dtype=torch.int32)}, "context"),
        ({"cu_q": torch.tensor([0, 1], dtype=torch.int32)}, "cu_q"),
    ],
)
def test_bad_plans_are_refused(native, change, message):
    work = work_of(native, Shape(), [(2, 20)], 0, [], torch.float32)
    work.plan = replace(work.plan, **change)
    with pytest.raises(RuntimeError, match=message):
        work.run(NativeStack(native._native, work.model))


@pytest.mark.parametrize(
    ("starts", "sites", "message"),
    [([0, 1], 8, "starts"), ([1, 0], 8, "fall"), ([0, 2, 2], 8, "table"), ([0, 2], 7, "layers")],
)
def test_bad_adapters_are_refused(native, starts, sites, message):
    work = work_of(native, Shape(), [(2, 20)], 0, [4], torch.float32)
    assert work.lora is not None
    work.lora = LoraStep(
        torch.tensor(starts, dtype=torch.int32), work.lora.table[:sites].clone(), work.lora.sites
    )
    with pytest.raises(RuntimeError, match=message):
        work.run(NativeStack(native._native, work.model))


def test_a_call_rings_once_when_it_was_told_to(native):
    work = work_of(native, Shape(), [(1, 5), (1, 9)], 2, [], torch.float32)
    stack, bell = native.stack(work.model), os.eventfd(0, os.EFD_NONBLOCK)
    try:
        work.run(stack)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(bell)
        stack.ring(bell)
        work.run(stack)
        work.run(stack)
        assert os.eventfd_read(bell) == 1
    finally:
        os.close(bell)


@pytest.mark.parametrize("held", ["all", "a part"])
def test_logits_that_somebody_holds_stay_as_they_are(native, held):
    work = work_of(native, Shape(), [(1, 5), (1, 9)], 2, [], torch.float32)
    stack = native.stack(work.model)
    first = work.run(stack)[0]
    first = first if held == "all" else first[:1]
    kept, place = first.clone(), first.data_ptr()
    work.tokens = (work.tokens + 1) % VOCABULARY
    second = work.run(stack)[0]
    assert torch.equal(first, kept)
    assert second.data_ptr() != place
