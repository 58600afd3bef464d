"""Operations over the native module: each method is one call into C++, and so are all layers of a step."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from router.engine.blocks import BlockWeight
from router.engine.ops import (
    AttentionPlan,
    ChosenToken,
    Experts,
    FileRows,
    Int8Weight,
    Layer,
    Linear,
    LoraPlan,
    LoraStep,
    PackedModel,
    RowsLinear,
    SiteGroup,
    Stack,
    TokenChoice,
)
from router.engine.resources import LargePages, usable_cpus
from router.engine.torch_ops import OneByOne, TorchOps

# Panels (of the activations' type, of int8, or uint8 of 4 bits), scales of int8, bias
PackedWeights = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
_NO_FILE = (-1, 0, 0)


class NativeOps(TorchOps):
    """Operations on the CPU in bfloat16 or float32. Wrong shapes, dtypes or plans raise RuntimeError."""

    name = "native"

    def __init__(self, module: ModuleType, threads: int = 0) -> None:
        """`threads`: those of the team, 0: as many as this process may use CPUs."""
        self._native = module
        self.threads = threads or usable_cpus()
        self._panel: int = module.panel
        self._slice: int = module.slice
        self._pages = LargePages()

    @property
    def threads(self) -> int:
        """The threads of the team, one team for the process."""
        count: int = self._native.threads()
        return count

    @threads.setter
    def threads(self, count: int) -> None:
        self._native.set_threads(count)

    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """weight [out, in] -> a function x [T, in] -> [T, out]; a row's result is the same in any batch."""
        if weight.shape[1] % _per(weight.dtype):
            return super().pack_linear(weight, bias)
        panels = self._panels(weight.shape, weight.dtype, weight.dtype)
        self._native.pack_rows(panels, None, 0, weight.detach().contiguous(), _NO_FILE, False)
        return NativeLinear(self._native, panels, None, _own(bias), len(weight))

    def pack_int8(self, weight: Int8Weight, bias: torch.Tensor | None, dtype: torch.dtype) -> Linear:
        """The same over int8, which is widened as it is read: few rows take half the time of bfloat16."""
        out, width = weight.values.shape
        if width % _per(dtype):
            return super().pack_int8(weight, bias, dtype)
        panels, scales = self._panels((out, width), dtype, torch.int8), self._scales(out)
        self._native.pack_rows(panels, None, 0, weight.values.contiguous(), _NO_FILE, False)
        scales[:out] = weight.scales
        return NativeLinear(self._native, panels, scales, _own(bias), out)

    def quantise_blocks(self, weight: torch.Tensor) -> BlockWeight:
        """weight [out, in], `in` in whole groups, in 4 bits."""
        return BlockWeight(self._native.quantise_blocks(weight.detach().contiguous()))

    def pack_blocks(self, weight: BlockWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> Linear:
        """The same over 4 bits, which are widened as they are read. Panels are the same for any `dtype`."""
        shape = -(-weight.out // self._panel), self._panel * weight.blocks.shape[1]
        panels = self._pages.zeros(shape, torch.uint8)
        self._native.pack_blocks(weight.blocks, panels)
        return NativeLinear(self._native, panels, None, _own(bias), weight.out)

    def pack_files(
        self, parts: Sequence[FileRows], bias: torch.Tensor | None, dtype: torch.dtype, *, int8: bool
    ) -> Linear | None:
        """The same of rows in files, which the team reads and packs panel by panel."""
        out, width = sum(part.shape[0] for part in parts), parts[0].shape[1]
        if width % _per(dtype):
            return None
        panels = self._panels((out, width), dtype, torch.int8 if int8 else dtype)
        scales, row = self._scales(out) if int8 else None, 0
        for part in parts:
            place, wide = (part.file, part.start, part.shape[0]), part.dtype == torch.float32
            if not self._native.pack_rows(panels, scales, row, None, place, wide):
                raise EOFError
            row += part.shape[0]
        return NativeLinear(self._native, panels, scales, _own(bias), out)

    def _panels(self, shape: Sequence[int], dtype: torch.dtype, packed: torch.dtype) -> torch.Tensor:
        """Zeros for a weight [out, in]: [panels, in / per, panel * per] in the type `packed`."""
        per = _per(dtype)
        return self._pages.zeros((-(-shape[0] // self._panel), shape[1] // per, self._panel * per), packed)

    def _scales(self, out: int) -> torch.Tensor:
        """In pages, too: a small tensor that stays would keep what was used to make it."""
        return self._pages.zeros((-(-out // self._panel) * self._panel,), torch.float32)

    def row_reader(self, linear: Linear) -> RowsLinear | None:
        """The same layer, unless it is plain torch's or has its weight in few bits."""
        few = (torch.int8, torch.uint8)
        return linear if isinstance(linear, NativeLinear) and linear.weights[0].dtype not in few else None

    def stack(self, model: PackedModel) -> Stack:
        """The layers in one call; one by one if a linear layer is not native."""
        linears = [linear for layer in model.layers for linear in _linears(layer)]
        if not all(isinstance(linear, NativeLinear) for linear in (*linears, model.head)):
            return OneByOne(model, self)
        return NativeStack(self._native, model)

    def choose(self, logits: torch.Tensor, choices: Sequence[TokenChoice]) -> list[ChosenToken]:
        """A token for each row, by its own choice, in one call for all rows."""
        return list(map(ChosenToken._make, self._native.choose(logits, choices)))

    def pack_a(self, a: torch.Tensor) -> torch.Tensor:
        """[k * r, in] -> flat, as it is read: slices of ranks, in each the inputs (bfloat16: pairs)."""
        per = _per(a.dtype)
        padded = torch.nn.functional.pad(a, (0, -a.shape[1] % per, 0, -len(a) % self._slice))
        return padded.view(-1, self._slice, padded.shape[1] // per, per).transpose(1, 2).flatten()

    def pack_b(self, b: torch.Tensor) -> torch.Tensor:
        """[out_total, r] -> flat, as it is read: panels of columns, in each the ranks (bfloat16: pairs)."""
        rank, whole = b.shape[1], len(b) // self._panel * self._panel
        per = _per(b.dtype)
        if rank % per:
            raise ValueError(f"rank {rank} is odd: pad b with a column of zeros")
        panels = (
            b[:whole].reshape(-1, self._panel, rank // per, per),
            b[whole:].reshape(1, -1, rank // per, per),
        )
        return torch.cat([panel.transpose(1, 2).flatten() for panel in panels])

    def unpack_a(self, packed: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        """Flat -> [rows, width], without what was padded."""
        per = _per(packed.dtype)
        inputs = -(-width // per)
        slices = packed.view(-1, inputs, self._slice, per).transpose(1, 2)
        return slices.reshape(-1, inputs * per)[:rows, :width]

    def unpack_b(self, packed: torch.Tensor, rows: int, rank: int) -> torch.Tensor:
        """Flat -> [rows, rank]."""
        per, whole = _per(packed.dtype), rows // self._panel * self._panel
        panels = (
            packed[: whole * rank].view(-1, rank // per, self._panel, per),
            packed[whole * rank :].view(1, rank // per, -1, per),
        )
        return torch.cat([panel.transpose(1, 2).reshape(-1, rank) for panel in panels])

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x [T, hidden] -> same shape."""
        normed: torch.Tensor = self._native.rms_norm(x, weight, eps)
        return normed

    def add_rms_norm(
        self, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """residual += x in place, then its rms_norm."""
        normed: torch.Tensor = self._native.add_rms_norm(residual, x, weight, eps)
        return normed

    def rope_write(
        self,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        plan: AttentionPlan,
        heads: int,
    ) -> None:
        """Rotate q and k in place, write k and v to the cache, as `attention` reads them."""
        self._native.rope_write(qkv, cos, sin, k_cache, v_cache, plan.positions, plan.slots, heads)

    def attention(
        self,
        qkv: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        plan: AttentionPlan,
        heads: int,
        scale: float,
        window: int = 0,
        cap: float = 0.0,
    ) -> torch.Tensor:
        """Causal attention over the paged cache -> [T, heads * head_dim]; head_dim a multiple of 16."""
        out: torch.Tensor = self._native.attention(
            qkv, k_cache, v_cache, plan.cu_q, plan.context, plan.block_table, heads, scale, window, cap
        )
        return out

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[T, 2 * inner] -> [T, inner]."""
        out: torch.Tensor = self._native.gated(gate_up, False)
        return out

    def gelu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[T, 2 * inner] -> [T, inner]."""
        out: torch.Tensor = self._native.gated(gate_up, True)
        return out

    def cap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        """cap * tanh(x / cap)."""
        self._native.cap(x, cap)
        return x

    def lora(self, y: torch.Tensor, x: torch.Tensor, plan: LoraPlan, group: SiteGroup) -> None:
        """y += (x @ a.T) @ b for each group's tokens, both products in one pass over the weights."""
        self._native.lora(y, x, plan.starts, plan.table, group.out_offsets)


class NativeLinear:
    """x [T, in] -> [T, out] over packed weights; a row's result is the same in any batch."""

    def __init__(
        self,
        module: ModuleType,
        packed: torch.Tensor,
        scales: torch.Tensor | None,
        bias: torch.Tensor | None,
        out: int,
    ) -> None:
        """`packed`: panels; where there are `scales` they hold int8, where they are of uint8 4 bits."""
        self._native, self.weights, self.out = module, (packed, scales, bias), out

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product, bias included."""
        y: torch.Tensor = self._native.linear(x, self.weights, self.out)
        return y

    def rows(self, indices: torch.Tensor, out: torch.Tensor) -> None:
        """Rows of the weight, where that is not in few bits."""
        self._native.unpack_rows(self.weights[0], indices, out)


class NativeStack:
    """`Stack` in one call, which the team of threads works through from the embedding to the logits."""

    def __init__(self, module: ModuleType, model: PackedModel) -> None:
        unit = model.layers[0].unit
        top, shares = (unit.top, unit.shares) if isinstance(unit, Experts) else (0, False)
        shape = [model.heads, model.kv_heads, model.head_dim, model.inner, top]
        sites = [list(group.out_offsets) for group in model.groups[:4]]
        numbers = [model.eps, model.scale, model.embed_scale, model.score_cap, model.logit_cap]
        embed = model.embed if isinstance(model.embed, torch.Tensor) else None
        wide = model.layers[0].k_cache.dtype == torch.float32
        self._run = module.Stack(wide, model.norm, embed, shape, sites, numbers, model.gelu, shares)
        neither = (None, None)
        for layer in model.layers:
            norms = [layer.norm1, layer.norm2, *(layer.out_norms or neither), *(layer.qk_norm or neither)]
            linears = [_weights(linear) for linear in _linears(layer)]
            caches = (layer.k_cache, layer.v_cache)
            self._run.add(norms, linears, layer.cos, layer.sin, layer.window, *caches)
        self._run.finish(*_head(model))

    def run(
        self,
        hidden: torch.Tensor,
        tokens: torch.Tensor | None,
        layers: tuple[int, int],
        plan: AttentionPlan,
        lora: LoraStep | None,
        scored: torch.Tensor,
    ) -> torch.Tensor:
        """Some layers on hidden [T, hidden], in place; see `Stack`."""
        where = [plan.cu_q, plan.context, plan.block_table, plan.positions, plan.slots]
        table, starts = (None, None) if lora is None else (lora.table, lora.starts)
        logits: torch.Tensor = self._run.forward(hidden, tokens, *layers, where, table, starts, scored)
        return logits

    def ring(self, event: int) -> None:
        """The next step writes to that eventfd once all threads are at work."""
        self._run.ring(event)

    def spent(self, *, decode: bool = True) -> tuple[dict[str, float], int]:
        """Seconds by what they went into, and steps, since this was last asked.

        Of the steps in which every row has one token, or of the others.
        """
        parts, steps = self._run.spent(decode)
        return dict(parts), steps

    def read_weights(self) -> int:
        """Read all weights as fast as memory gives them; returns their bytes."""
        count: int = self._run.read()
        return count


def _linears(layer: Layer) -> list[Linear]:
    """In the order of the native stack."""
    unit = layer.unit
    if isinstance(unit, Experts):
        experts = [linear for one in unit.units for linear in (one.gate_up, one.down)]
        return [layer.qkv, layer.o, unit.router, *experts]
    return [layer.qkv, layer.o, unit.gate_up, unit.down]


def _weights(linear: Linear) -> PackedWeights:
    if not isinstance(linear, NativeLinear):
        raise TypeError("this linear layer was packed by other operations")
    return linear.weights


def _head(model: PackedModel) -> tuple[Any, int]:
    """The head's weights, and its outputs."""
    if not isinstance(model.head, NativeLinear):
        raise TypeError("the head was packed by other operations")
    return model.head.weights, model.head.out


def _per(dtype: torch.dtype) -> int:
    """Inputs that go together."""
    return 1 if dtype == torch.float32 else 2


def _own(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.detach().contiguous()
