"""A plan that is moved on from step to step says what one that is made anew says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Phi3Config, Qwen3Config

from router.engine import runner
from router.engine.decoder import rotary_table, why_not_packed
from router.engine.generic import GenericBackbone
from router.engine.loader import load_model, place
from router.engine.ops import BLOCK, AttentionPlan
from router.engine.rows import AnswerRow, Chain, Chunk
from router.engine.runner import PackedBackbone, StepPlan, StepPlanner
from router.engine.scheduler import Scheduler
from router.engine.torch_ops import TorchOps
from router.errors import ConfigError
from tests.engine import tiny
from tests.engine.rows import make, pooling, row

CPU = torch.device("cpu")


def said(plan: StepPlan) -> dict[str, object]:
    """With zeros in the table where no block is read: nobody looks at what is there."""
    at = plan.attention
    needed = [-(-context // BLOCK) for context in at.contexts]
    lines = zip(at.block_table, needed, strict=True)
    table = [[*line[:n].tolist(), *[0] * (max(needed) - n)] for line, n in lines]
    tensors = {
        "tokens": plan.tokens,
        "scored": plan.scored,
        "cu_q": at.cu_q,
        "context": at.context,
        "block_table": torch.tensor(table, dtype=at.block_table.dtype),
        "positions": at.positions,
        "slots": at.slots,
    }
    lists = {"sampled": plan.sampled, "most": at.most_queries, "bounds": at.bounds, "contexts": at.contexts}
    return {name: (str(t.dtype), t.tolist()) for name, t in tensors.items()} | lists


def expected(chunks: list[Chunk]) -> dict[str, object]:
    """Token by token, from the rows and their drafts."""
    drafted = {(c.row, len(c.row.tokens) + i): token for c in chunks for i, token in enumerate(c.drafts)}
    places = [(c.row, p) for c in chunks for p in range(c.row.computed, c.row.computed + c.count)]
    ends = [sum(c.count for c in chunks[:i]) for i in range(len(chunks) + 1)]
    contexts = [c.row.computed + c.count for c in chunks]
    width = -(-max(contexts) // BLOCK)

    def blocks(chunk_row: object, count: int = 0) -> list[int]:
        held = chunk_row.allocation.blocks  # type: ignore[attr-defined]
        return [*held[:count], *[0] * (width - count)] if count else held

    lasts = [end - 1 - len(c.drafts) for c, end in zip(chunks, ends[1:], strict=True)]
    sampled = [last for c, last in zip(chunks, lasts, strict=True) if c.samples]
    sampled += [last + 1 + i for c, last in zip(chunks, lasts, strict=True) for i in range(len(c.drafts))]
    return {
        "tokens": ("torch.int64", [drafted.get((r, p)) or r.tokens[p] for r, p in places]),
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
    for number, chunk in enumerate(chunks):
        scheduler.computed(chunk)
        one = chunk.row
        if isinstance(one, AnswerRow) and chunk.samples:
            one.tokens += [token + number] * (1 + (forced if not number else 0))
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
        st.integers(0, 4),  # drafts of rows that have room for them
    ),
    max_size=12,
)


def with_drafts(scheduler: Scheduler, chunks: list[Chunk], most: int) -> list[Chunk]:
    found = []
    for chunk in chunks:
        wanted = min(most, chunk.row.total - len(chunk.row.tokens) - 1) if chunk.samples else 0
        count = scheduler.room(chunk.row, wanted) if wanted > 0 else 0
        drafts = range(9000, 9000 + count)
        found.append(replace(chunk, count=chunk.count + count, drafts=drafts) if count else chunk)
    return found if most else chunks


@settings(deadline=None)
@given(EVENTS, st.integers(16, 40))
def test_whoever_comes_and_goes_a_plan_fits_its_step(
    events: list[tuple[int, str, int, str | None, int]], blocks: int
) -> None:
    scheduler, planner, turn = make(blocks=blocks, step=48), StepPlanner(CPU), 0
    events = [(0, "answer", 15, None, 0), (0, "answer", 30, "a", 0), *events, (60, "answer", 3, None, 0)]
    for wait, what, length, adapter, drafts in events:
        for _ in range(wait + 1):
            turn += 1
            chunks = scheduler.schedule()
            if chunks:
                chunks = with_drafts(scheduler, chunks, drafts)
                assert said(planner.plan(chunks)) == expected(chunks)
                answer(scheduler, chunks, 1000 * turn, 2 * (what == "forced"))
        if what == "cancel" and scheduler.running:
            scheduler.finish(scheduler.running[0])
        elif what == "reading":
            scheduler.add(pooling(length))
        elif what in ("answer", "background"):
            scheduler.add(row(length, adapter, new=50, background=what == "background", first=100 * turn))


def test_tensors_stay_while_the_same_rows_decode_and_a_memo_does_not() -> None:
    scheduler, planner = make(), StepPlanner(CPU)
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
    scheduler, planner = make(), StepPlanner(CPU)
    scheduler.add(row(10, new=40))
    answer(scheduler, scheduler.schedule(), 1)
    for _ in range(2):
        assert said(planner.plan(scheduler.schedule())) == expected(scheduler.schedule())
    answer(scheduler, scheduler.schedule(), 2)
    answer(scheduler, scheduler.schedule(), 3)
    assert said(planner.plan(scheduler.schedule())) == expected(scheduler.schedule())


def test_the_same_rows_in_other_blocks_get_another_plan() -> None:
    """One is preempted and comes back with all but one token known: it decodes at once, elsewhere."""
    scheduler, planner = make(), StepPlanner(CPU)
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
        StepPlanner(CPU).plan([Chunk(row(3), 3, samples=True)])


OPS = TorchOps()
CPU = torch.device("cpu")
LOW = [torch.bfloat16, torch.float16]
SHAPE: dict[str, Any] = tiny.SHAPE | {"num_hidden_layers": 1, "max_position_embeddings": 131072}


def placed(config: Any, dtype: torch.dtype) -> Any:
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    place(model, CPU, dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    return model


@pytest.mark.parametrize(
    ("theta", "dtype"),
    [(1e4, torch.float32), (1e6, torch.bfloat16)],
    ids=str,
)
def test_the_table_is_that_of_float64(theta: float, dtype: torch.dtype) -> None:
    context, dim = 32768, 64
    rope = {"rope_type": "default", "rope_theta": theta}
    model = placed(LlamaConfig(**SHAPE, head_dim=dim, rope_parameters=rope), dtype)
    cos, sin = rotary_table(model.config, context, CPU)
    assert cos.shape == sin.shape == (context, dim)
    assert cos.dtype == sin.dtype == torch.float32
    powers = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    angles = (torch.arange(context, dtype=torch.float64)[:, None] / theta**powers).repeat(1, 2)
    for ours, exact in ((cos, angles.cos()), (sin, angles.sin())):
        # A frequency and its product with the position are each rounded to float32 once.
        off = (ours.double() - exact).abs()
        assert bool((off <= 2 * angles * 2**-23 + 2**-22).all())
        assert off[:8192].max() < 2e-3


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_positions_are_those_of_the_model_in_float32(rope: dict[str, Any], dtype: torch.dtype) -> None:
    config = Qwen3Config(**SHAPE, head_dim=32, rope_parameters=rope)
    low, full = placed(config, dtype), placed(config, torch.float32)
    low_table, full_table = (rotary_table(m.config, 20000, CPU) for m in (low, full))
    for ours, exact in zip(low_table, full_table, strict=True):
        assert torch.equal(ours, exact)
    assert low_table[0][0].max() == pytest.approx(low.model.rotary_emb.attention_scaling)


def test_long_positions_are_packed_up_to_the_original_context() -> None:
    """Beyond it the factors depend on the length of the text."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.1] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": 0.5,
    }
    config = Phi3Config(**SHAPE, original_max_position_embeddings=64, rope_parameters=rope)
    assert not why_not_packed(config, 64)
    assert "beyond 64 tokens: max_context = 64" in why_not_packed(config, 65)
    rotary = placed(config, torch.float32).model.rotary_emb
    expected = rotary(torch.zeros(1), torch.arange(64)[None])
    for ours, theirs in zip(rotary_table(config, 64, CPU), expected, strict=True):
        torch.testing.assert_close(ours, theirs[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_frequencies_of_a_checkpoint_in_few_bits_are_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    tiny.model("llama").to(dtype).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model: Any = load_model(tmp_path, "tiny").model
    place(model, CPU, dtype)
    expected = tiny.model("llama").model.rotary_emb.inv_freq
    assert expected.dtype == torch.float32
    assert torch.equal(model.model.rotary_emb.inv_freq, expected)


def test_every_kind_of_frequencies_stays_exact() -> None:
    """Gemma 3 has one set for each kind of layer."""
    config = Gemma3TextConfig(**SHAPE, head_dim=16, layer_types=["sliding_attention"])
    exact = {
        name: buffer
        for name, buffer in AutoModelForCausalLM.from_config(config).named_buffers()
        if name.endswith("inv_freq")
    }
    buffers = dict(placed(config, torch.bfloat16).named_buffers())
    assert len(exact) >= 2
    for name, buffer in exact.items():
        assert torch.equal(buffers[name], buffer)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "generic"])
def test_tokens_far_apart_are_read_in_bfloat16_as_in_float32(
    packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen tokens over a long context; with rounded frequencies their distances are others."""

    def read(dtype: torch.dtype, rounded: bool = False) -> torch.Tensor:
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).eval().requires_grad_(False)
        model.load_state_dict(weights)
        place(model, CPU, dtype)
        if rounded:
            rotary = model.model.rotary_emb.to(dtype)
            table = rotary(torch.zeros(1), torch.arange(65536)[None])
            monkeypatch.setattr(runner, "rotary_table", lambda *_: tuple(t[0].float() for t in table))
        made = PackedBackbone(*tiny.parts(model), OPS, 1, 65536) if packed else GenericBackbone(model, OPS, 1)
        with torch.inference_mode():
            logits = made.forward(torch.arange(16), _far_apart(16), None, torch.arange(16))
        return logits.double().log_softmax(-1)

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, initializer_range=0.3)
    weights = AutoModelForCausalLM.from_config(config).bfloat16().state_dict()
    full = read(torch.float32)
    exact, rounded = (
        float((full.exp() * (full - low)).sum(-1).mean())
        for low in (read(torch.bfloat16), read(torch.bfloat16, rounded=True))
    )
    assert exact < 0.01
    assert rounded > 10 * exact


def _far_apart(tokens: int) -> AttentionPlan:
    def ints(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    places = range(tokens)
    table, positions = ints([0])[None], ints([4000 * place for place in places])
    bounds = [0, tokens]
    return AttentionPlan(
        ints(bounds), ints([tokens]), table, positions, ints(places), tokens, bounds, [tokens]
    )


def test_weights_that_are_no_plain_numbers_are_refused() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).requires_grad_(False)
    layer = model.model.layers[0].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(
        ConfigError, match=r"layers\.0\.mlp\.down_proj\.weight is stored as float8_e4m3fn, .*bfloat16"
    ):
        place(model, CPU, torch.bfloat16)
    assert math.isfinite(float(layer.weight.float().sum()))
