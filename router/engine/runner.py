"""From the chunks of a step to logits: the plan, the adapters, and one forward pass of the base.

`PackedBackbone` runs decoder layers of known shape from packed weights: the architectures that
`router.engine.decoder` lists share one layer (norm, q/k/v with optional bias and q/k norm, rotary positions,
grouped attention, o, norm, gated unit; Gemma norms what attention and the gated unit add, too). Native
operations run all layers in one call, others layer by layer (`Stack`). `router.engine.generic` runs any other
base.

Between two steps all weights went through the caches, so whatever planning looks at comes from memory: its
cost is the number of things it touches, code included. One call of torch or numpy that nothing else makes
costs more than a loop over 16 rows (a list made a tensor: 2 us while it is in the caches, 100 us when not).
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch

from router.engine.checkpoint import HEAD
from router.engine.decoder import (
    EMBED,
    EXPERTS,
    NORM,
    QK_NORMS,
    ROUTER,
    DecoderShape,
    layer_name,
    rotary_table,
)
from router.engine.lora import DeviceSlots, LoraBatch
from router.engine.ops import (
    BLOCK,
    AttentionPlan,
    Experts,
    GatedUnit,
    Layer,
    Linear,
    LoraStep,
    PackedModel,
    RowsLinear,
    SiteGroup,
    Stack,
)
from router.engine.resources import Measure, blocks_of, tokens_that_fit
from router.engine.rows import Chunk, PoolingRow
from router.engine.torch_ops import TorchOps
from router.engine.weights import WeightSource, packed


@dataclass(slots=True)
class StepPlan:
    """The inputs of a forward pass, except adapters. Valid until the next plan is made."""

    tokens: torch.Tensor  # int64 [T]
    attention: AttentionPlan
    sampled: list[int]  # those of the tokens that a new one is sampled after, drafts last
    scored: torch.Tensor  # the same as int64 [S]


class StepPlanner:
    """Plans steps for one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._decoding: Decoding | None = None
        self._kept: dict[tuple[int, int, int], KeptPlan] = {}  # by rows, tokens and sampled tokens
        self._drafts = False  # whether there were any

    def plan(self, chunks: Sequence[Chunk]) -> StepPlan:
        """That of the chunks, in their order."""
        contexts = [c.row.computed + c.after + c.count for c in chunks]
        if self._decoding is not None and self._decoding.move_on(chunks, contexts):
            return self._decoding.plan
        on_cpu = self._device.type == "cpu"  # elsewhere a plan has to be sent anyway
        plan = (self._written(chunks, contexts) if on_cpu else None) or self._made(chunks, contexts)
        decodes = plan.attention.most_queries == 1 and len(plan.sampled) == len(chunks)
        self._decoding = Decoding(plan, chunks) if on_cpu and decodes else None
        return plan

    def _written(self, chunks: Sequence[Chunk], contexts: list[int]) -> StepPlan | None:
        """The plan of a small step, in the tensors of an earlier one; None of a large one.

        With drafts, steps change from one to the next, but only in few ways.
        """
        tokens, drafts = sum(c.count for c in chunks), sum(len(c.drafts) for c in chunks)
        self._drafts = self._drafts or drafts > 0
        if not self._drafts or tokens > MOST_KEPT:
            return None
        size = len(chunks), tokens, sum(c.samples for c in chunks) + drafts
        kept, blocks = self._kept.get(size), -(-max(contexts) // BLOCK)
        if kept is None or kept.room < blocks:
            if len(self._kept) >= MOST_PLANS:
                del self._kept[next(iter(self._kept))]
            kept = self._kept[size] = KeptPlan(*size, blocks + 8)
        return kept.written(chunks, contexts)

    def _made(self, chunks: Sequence[Chunk], contexts: list[int]) -> StepPlan:
        bounds = [0, *accumulate(c.count for c in chunks)]
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        tables: list[list[int]] = []
        for chunk, context in zip(chunks, contexts, strict=True):
            blocks, places = _blocks(chunk)[: -(-context // BLOCK)], range(context - chunk.count, context)
            tokens += chunk.row.tokens[places.start : places.stop]
            tokens += chunk.drafts
            positions += places
            slots += [blocks[p // BLOCK] * BLOCK + p % BLOCK for p in places]
            tables.append(blocks)
        width = max(len(t) for t in tables)
        attention = AttentionPlan(
            cu_q=self._tensor(bounds),
            context=self._tensor(contexts),
            block_table=self._tensor([t + [0] * (width - len(t)) for t in tables]),
            positions=self._tensor(positions),
            slots=self._tensor(slots),
            most_queries=max(c.count for c in chunks),
            bounds=bounds,
            contexts=contexts,
        )
        sampled = _sampled(chunks, bounds)
        return StepPlan(
            self._tensor(tokens, torch.int64), attention, sampled, self._tensor(sampled, torch.int64)
        )

    def _tensor(
        self, values: Sequence[int] | Sequence[list[int]], dtype: torch.dtype = torch.int32
    ) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device)


MOST_KEPT, MOST_PLANS = 64, 128  # tokens of a step whose plan's tensors are kept, and such plans


class KeptPlan:
    """The tensors of a plan on the CPU, written anew for each step of so many rows and tokens."""

    def __init__(self, rows: int, tokens: int, sampled: int, room: int) -> None:
        """`room`: blocks in a row of the table."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype)

        at = AttentionPlan(
            zeros(rows + 1), zeros(rows), zeros(rows, room), zeros(tokens), zeros(tokens), 1, [], []
        )
        long = torch.int64
        self._plan = StepPlan(zeros(tokens, dtype=long), at, [], zeros(sampled, dtype=long))
        self.room = room
        self._bounds, self._context, self._table = map(_numbers, (at.cu_q, at.context, at.block_table))
        self._positions, self._slots = _numbers(at.positions), _numbers(at.slots)
        self._tokens, self._scored = _numbers(self._plan.tokens), _numbers(self._plan.scored)

    def written(self, chunks: Sequence[Chunk], contexts: list[int]) -> StepPlan:
        """The plan of a step. It is valid until the next is written."""
        bounds, place = [0], 0
        for row, (chunk, context) in enumerate(zip(chunks, contexts, strict=True)):
            blocks, first = _blocks(chunk), context - chunk.count
            known = chunk.row.tokens[first : context - len(chunk.drafts)]
            for position, token in enumerate((*known, *chunk.drafts), first):
                self._tokens[place], self._positions[place] = token, position
                self._slots[place] = blocks[position // BLOCK] * BLOCK + position % BLOCK
                place += 1
            needed, line = -(-context // BLOCK), row * self.room
            self._table[line : line + needed] = array("i", blocks[:needed])
            self._context[row], self._bounds[row + 1] = context, place
            bounds.append(place)
        sampled = _sampled(chunks, bounds)
        for number, token in enumerate(sampled):
            self._scored[number] = token
        at = self._plan.attention
        at.most_queries, at.bounds, at.contexts, at.memo = max(c.count for c in chunks), bounds, contexts, {}
        self._plan.sampled = sampled
        return self._plan


class Decoding:
    """The plan of answers that decode, changed in place while the same ones go on: most steps are such."""

    def __init__(self, plan: StepPlan, chunks: Sequence[Chunk]) -> None:
        self.plan = plan
        self._chunks = chunks
        at = plan.attention
        self._room = at.block_table.shape[1]  # blocks in a row of the table
        self._tokens, self._context = _numbers(plan.tokens), _numbers(at.context)
        self._positions, self._slots = _numbers(at.positions), _numbers(at.slots)
        self._table = _numbers(at.block_table)

    def move_on(self, chunks: Sequence[Chunk], contexts: list[int]) -> bool:
        """Make it the next step's; False if that has other rows, more tokens of one or a block too many."""
        attention = self.plan.attention
        if chunks is not self._chunks or contexts != [context + 1 for context in attention.contexts]:
            return False
        if max(contexts) > self._room * BLOCK:
            return False
        for row, context in enumerate(contexts):
            self._tokens[row] = chunks[row].row.tokens[-1]
            self._context[row], self._positions[row] = context, context - 1
            if context % BLOCK == 1:
                place = context // BLOCK
                self._table[row * self._room + place] = block = _blocks(chunks[row])[place]
                self._slots[row] = block * BLOCK
            else:
                self._slots[row] += 1
        attention.contexts, attention.memo = contexts, {}
        return True


def _sampled(chunks: Sequence[Chunk], bounds: Sequence[int]) -> list[int]:
    """The last token of each row that samples, then all drafts."""
    ends = list(zip(chunks, bounds[1:], strict=True))
    places = [end - 1 - len(c.drafts) for c, end in ends if c.samples]
    for chunk, end in ends:
        places += range(end - len(chunk.drafts), end)
    return places


def _blocks(chunk: Chunk) -> list[int]:
    allocation = chunk.row.allocation
    if allocation is None:
        raise RuntimeError("a row without blocks was scheduled")
    return allocation.blocks


def _numbers(tensor: torch.Tensor) -> memoryview:
    """The tensor's memory, flat: one number is read or written without a call of torch."""
    return tensor.view(-1).numpy().data


@dataclass(frozen=True, slots=True)
class Taps:
    """Callbacks that get the hidden states [T, hidden] after so many layers, and neither keep nor change
    them.

    After all layers the states are normed. `last`: no layer after that one is needed; -1: all are.
    """

    at: Mapping[int, Callable[[torch.Tensor], None]]
    last: int = -1


class Backbone(Protocol):
    """A base model whose linear layers take per-row adapters."""

    groups: list[SiteGroup]  # one LoraStep (or None) for each, in this order
    kind: str  # "packed" or "generic"
    layers: int
    saved: int  # bytes of weights that few bits save

    def forward(
        self,
        tokens: torch.Tensor,
        plan: AttentionPlan,
        lora: LoraStep | None,
        last: torch.Tensor,
        taps: Taps | None = None,
    ) -> torch.Tensor:
        """tokens int64 [T] of one step, `last` int64 [S] rows to score -> logits [S, vocabulary]."""
        ...

    def resize(self, blocks: int) -> None:
        """A KV cache of so many blocks in place of the one that is there; what was in it is gone."""
        ...

    def cache_bytes(self) -> int:
        """Bytes of the KV cache."""
        ...


class PoolingStep:
    """What the pooling requests among the chunks of a step need of the forward pass.

    `rows`: tokens of the step whose logits they need; `taps`: for those that need hidden states.
    """

    def __init__(self, chunks: Sequence[Chunk], bounds: Sequence[int]) -> None:
        ended: list[tuple[PoolingRow, int]] = []  # whose candidates come behind that token of the step
        pooled: dict[int, list[tuple[PoolingRow, slice]]] = defaultdict(list)
        for chunk, start in zip(chunks, bounds, strict=False):
            row = chunk.row
            if not isinstance(row, PoolingRow):
                continue
            if row.layer is None:
                if row.computed + chunk.after + chunk.count == row.total:
                    ended.append((row, start + chunk.count - 1))
            elif wanted := row.wanted(chunk.count):
                pooled[row.layer].append((row, slice(start + wanted.start, start + wanted.stop)))
        self._ended = [row for row, _ in ended]
        self.rows = [place for _, place in ended]
        taps = {layer: _tap(spans) for layer, spans in pooled.items()}
        self.taps = Taps(taps, _last_layer(chunks)) if taps else None

    def take(self, logits: torch.Tensor) -> None:
        """`logits` [len(rows), vocabulary], as asked for."""
        for row, behind in zip(self._ended, logits, strict=True):
            row.found.append(behind[list(row.request.candidates)].float())


def _last_layer(chunks: Sequence[Chunk]) -> int:
    """The layer after which nothing is needed, -1 if all layers are."""
    layers = [c.row.layer if isinstance(c.row, PoolingRow) else None for c in chunks]
    known = [layer for layer in layers if layer is not None]
    return max(known) if len(known) == len(layers) else -1


def _tap(spans: Sequence[tuple[PoolingRow, slice]]) -> Callable[[torch.Tensor], None]:
    def tap(states: torch.Tensor) -> None:
        for row, span in spans:
            row.add(states[span])

    return tap


class Runner:
    """Runs steps on one backbone; used by the engine thread only."""

    def __init__(self, backbone: Backbone, slots: DeviceSlots, device: torch.device) -> None:
        self._backbone = backbone
        self._slots = slots
        self._device = device
        self._planner = StepPlanner(device)
        self._lora: LoraBatch | None = None
        self._chunks: Sequence[Chunk] = ()  # of the last step
        self._adapters: LoraStep | None = None  # and its adapters
        slots.evicted = self.forget

    def run(self, chunks: Sequence[Chunk], *, pooling: bool = False) -> torch.Tensor:
        """Logits [S, vocabulary] of the chunks that sample, in their order, and then of all their drafts.

        With `pooling`, some chunks are of pooling requests, whose rows are given their values.
        """
        plan = self._planner.plan(chunks)
        if chunks is not self._chunks:  # else the same rows, whose tokens are at the same places
            self._chunks, self._adapters = chunks, self._lora_step(chunks, plan.attention.bounds)
        lora = self._adapters
        if not pooling:
            return self._backbone.forward(plan.tokens, plan.attention, lora, plan.scored)
        wanted, sampled = PoolingStep(chunks, plan.attention.bounds), len(plan.sampled)
        scored = torch.tensor([*plan.sampled, *wanted.rows], dtype=torch.int64, device=self._device)
        logits = self._backbone.forward(plan.tokens, plan.attention, lora, scored, wanted.taps)
        wanted.take(logits[sampled:])
        return logits[:sampled]

    def _lora_step(self, chunks: Sequence[Chunk], bounds: list[int]) -> LoraStep | None:
        digests: list[str] = []
        starts: list[int] = []
        for c, start in zip(chunks, bounds, strict=False):
            digest = c.adapter
            if digest is not None and (not digests or digests[-1] != digest):
                digests.append(digest)
                starts.append(start)
        if not digests:
            return None
        if self._lora is None or self._lora.key != tuple(digests):
            self._lora = LoraBatch([self._slots[d] for d in digests], self._device)
        return self._lora.at([*starts, bounds[-1]])

    def forget(self, digest: str) -> None:
        """Drop the references to an adapter that leaves the device."""
        if self._lora is not None and digest in self._lora.key:
            self._lora = self._adapters = None
            self._chunks = ()


class PackedBackbone:
    """A model of Llama's shape, made of its config and its weights, which are read one after the other."""

    kind = "packed"

    def __init__(
        self,
        config: Any,
        weights: WeightSource,
        ops: TorchOps,
        blocks: int,
        context: int,
        quantize: str = "none",
    ) -> None:
        """`quantize`: what the weights of linear layers are kept in (none, int8, int4)."""
        shape = DecoderShape.of(config)
        self._ops, self._weights, self._quantize = ops, weights, quantize
        self.saved = 0
        self.layers = shape.layers
        self._cache_shape = (blocks, shape.kv_heads, BLOCK, shape.head_dim)
        self._like = like = weights.tensor(NORM)
        self._ropes = {
            kind: rotary_table(config, context, like.device, kind) for kind in sorted(set(shape.ropes))
        }
        root = torch.tensor(shape.hidden**0.5, dtype=like.dtype).item()  # rounded, as transformers does
        head, embed = self._pack_head(shape)
        layers = [self._pack_layer(index, shape) for index in range(shape.layers)]
        self._model = PackedModel(
            embed=embed,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            eps=shape.eps,
            scale=shape.scale,
            norm=self._norm(NORM, shape),
            head=head,
            layers=layers,
            groups=[
                _group(layer_name(index), shape, names)
                for index in range(shape.layers)
                for names in shape.architecture.sites
            ],
            inner=shape.inner,
            gelu=shape.gelu,
            embed_scale=root if shape.architecture.scaled_embeddings else 1.0,
            score_cap=shape.score_cap,
            logit_cap=shape.logit_cap,
        )
        del self._weights, self._ropes
        self.groups = self._model.groups
        self._stack = ops.stack(self._model)
        # Kept, and parts of it by tokens: a step like an earlier one makes no tensor.
        self._hidden = like.new_empty(MOST_KEPT, len(like))
        self._parts: dict[int, torch.Tensor] = {}

    def _pack_head(self, shape: DecoderShape) -> tuple[Linear, torch.Tensor | RowsLinear]:
        """The head, and the embedding: the head's own rows where they are the same and it gives them back."""
        table, own = (name.removesuffix(".weight") for name in (EMBED, HEAD))
        if not shape.tied:
            return self._pack("", (own,)), self._weights.tensor(EMBED)
        head, saved = self._weights.linear((table,), self._ops, self._quantize)
        reader = self._ops.row_reader(head) if self._quantize == "none" else None
        if reader is None:  # the table stays, too
            return head, self._weights.tensor(EMBED)
        self.saved += saved
        return head, reader

    def _pack_layer(self, index: int, shape: DecoderShape) -> Layer:
        prefix, architecture = layer_name(index), shape.architecture

        def norms(names: Sequence[str]) -> list[torch.Tensor]:
            return [self._norm(f"{prefix}.{name}.weight", shape) for name in names]

        norm1, norm2 = norms(architecture.norms)
        outs, heads = norms(architecture.out_norms), norms(QK_NORMS if architecture.qk_norm else ())
        qkv, o = (self._pack(f"{prefix}.", names) for names in architecture.sites[:2])
        cos, sin = self._ropes[shape.ropes[index]]
        window = shape.windows[index]
        return Layer(
            norm1=norm1,
            norm2=norm2,
            out_norms=(outs[0], outs[1]) if outs else None,
            qk_norm=(heads[0], heads[1]) if heads else None,
            cos=cos,
            sin=sin,
            window=window if window < len(cos) else 0,
            qkv=qkv,
            o=o,
            unit=self._pack_unit(f"{prefix}.", shape),
            k_cache=self._like.new_empty(self._cache_shape),
            v_cache=self._like.new_empty(self._cache_shape),
        )

    def _pack_unit(self, prefix: str, shape: DecoderShape) -> GatedUnit | Experts:
        if not shape.experts:
            gate_up, down = (self._pack(prefix, names) for names in shape.architecture.sites[2:])
            return GatedUnit(gate_up, down)
        router, _ = packed(self._weights.tensor(f"{prefix}{ROUTER}.weight"), None, self._ops, "none")
        gate_ups, downs = (self._weights.tensor(prefix + name) for name in EXPERTS)
        units = [
            GatedUnit(self._pack_expert(gate_ups[index]), self._pack_expert(downs[index]))
            for index in range(shape.experts)
        ]
        return Experts(router, units, shape.top, shape.shares)

    def _pack_expert(self, weight: torch.Tensor) -> Linear:
        linear, saved = packed(weight, None, self._ops, self._quantize)
        self.saved += saved
        return linear

    def _norm(self, name: str, shape: DecoderShape) -> torch.Tensor:
        """In float32: 1 + weight is not exact in fewer bits."""
        return self._weights.tensor(name).float() + shape.architecture.norm_offset

    def _pack(self, prefix: str, names: Sequence[str]) -> Linear:
        linear, saved = self._weights.linear([prefix + name for name in names], self._ops, self._quantize)
        self.saved += saved
        return linear

    @property
    def stack(self) -> Stack:
        """What runs the layers."""
        return self._stack

    def resize(self, blocks: int) -> None:
        """A KV cache of so many blocks in place of the one that is there; what was in it is gone."""
        self._cache_shape = (blocks, *self._cache_shape[1:])
        layers = self._model.layers
        for layer in layers:
            del layer.k_cache, layer.v_cache  # before the next is made: both may not fit
        for layer in layers:
            layer.k_cache = self._like.new_empty(self._cache_shape)
            layer.v_cache = self._like.new_empty(self._cache_shape)
        self._stack = self._ops.stack(self._model)

    def cache_bytes(self) -> int:
        """Bytes of the KV cache."""
        return sum(2 * layer.k_cache.numel() * layer.k_cache.element_size() for layer in self._model.layers)

    def _room_of(self, tokens: int) -> torch.Tensor:
        """[tokens, hidden] of undefined content."""
        if tokens > len(self._hidden):
            self._hidden, self._parts = self._hidden.new_empty(tokens, self._hidden.shape[1]), {}
        part = self._hidden[:tokens]
        if tokens <= MOST_KEPT or tokens == len(self._hidden):
            self._parts[tokens] = part
        return part

    def forward(
        self,
        tokens: torch.Tensor,
        plan: AttentionPlan,
        lora: LoraStep | None,
        last: torch.Tensor,
        taps: Taps | None = None,
    ) -> torch.Tensor:
        """One step: tokens int64 [T], rows to score `last` [S] -> logits [S, vocabulary]."""
        count = plan.bounds[-1]  # a call of torch would take longer
        hidden = self._parts.get(count)
        if hidden is None:
            hidden = self._room_of(count)
        if taps is None:
            return self._stack.run(hidden, tokens, (0, self.layers), plan, lora, last)
        begin = 0
        embed: torch.Tensor | None = tokens
        for layer in sorted(taps.at):
            nothing = self._stack.run(hidden, embed, (begin, layer), plan, lora, last[:0])
            begin, embed = layer, None
            whole = layer == self.layers
            taps.at[layer](self._ops.rms_norm(hidden, self._model.norm, self._model.eps) if whole else hidden)
            if layer == taps.last:
                return nothing
        return self._stack.run(hidden, embed, (begin, self.layers), plan, lora, last)


def _group(prefix: str, shape: DecoderShape, names: tuple[str, ...]) -> SiteGroup:
    offsets = accumulate((shape.linear(name)[0] for name in names), initial=0)
    inputs = shape.linear(names[0])[1] if names else 0
    return SiteGroup(tuple(f"{prefix}.{n}" for n in names), inputs, tuple(offsets))


def fill_with_cache(
    backbone: Backbone, tokens: int, scored: int, adapter_bytes: int, device: torch.device, measure: Measure
) -> int:
    """Give the backbone the largest KV cache that fits beside everything else -> blocks.

    It has one for `tokens` tokens now, which are those of the largest step; `scored` of them are scored.
    Raises ConfigError where not even the smallest fits.
    """
    memory = measure(device, lambda: largest_step(backbone, tokens, scored, device))
    token_bytes = backbone.cache_bytes() // (blocks_of(tokens) * BLOCK)
    blocks = tokens_that_fit(memory, token_bytes, adapter_bytes) // BLOCK
    backbone.resize(blocks)
    return blocks


def largest_step(backbone: Backbone, tokens: int, scored: int, device: torch.device) -> None:
    """Run a prompt of `tokens` tokens, `scored` of them scored: the device shows what a step takes."""

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    bounds, places = [0, tokens], ints(list(range(tokens)))
    blocks = ints(list(range(blocks_of(tokens))))[None]
    plan = AttentionPlan(ints(bounds), ints([tokens]), blocks, places, places, tokens, bounds, [tokens])
    last = torch.arange(scored, device=device) % tokens
    with torch.inference_mode():
        backbone.forward(torch.zeros(tokens, dtype=torch.int64, device=device), plan, None, last).float()
