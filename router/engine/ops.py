"""The operations of one step, as the runner calls them, and the layouts they share.

Shapes: T tokens of a step, R rows (sequences), G groups of tokens that share an adapter.

KV cache of one layer: k_cache and v_cache [blocks, kv_heads, BLOCK, head_dim], contiguous. What lies where in
one head's part of a block is the implementation's own affair.
Tokens of a step are ordered by adapter: base rows first, then one contiguous range for each adapter.
A *site group* is one to three linear layers that read the same input (q/k/v; o; gate/up; down); its base
product y [T, out_total] holds their outputs side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK = 16  # tokens in one block of the KV cache

Linear = Callable[[torch.Tensor], torch.Tensor]  # x [T, in] -> [T, out]


@dataclass(slots=True)
class AttentionPlan:
    """Where each row's tokens are. Tensors are on the device, int32; the lists spare it the way back."""

    cu_q: torch.Tensor  # [R + 1] token range of each row in the step
    context: torch.Tensor  # [R] tokens in the cache for that row after this step
    block_table: torch.Tensor  # [R, most blocks], unused entries 0
    positions: torch.Tensor  # [T] position of each token in its sequence
    slots: torch.Tensor  # [T] cache place of each token: block * BLOCK + offset
    most_queries: int  # largest query length of a row; 1: pure decode
    bounds: list[int]  # cu_q as Python ints
    contexts: list[int]  # context as Python ints
    memo: dict[str, torch.Tensor] = field(
        default_factory=dict
    )  # what an implementation made of it, for all layers


@dataclass(slots=True)
class LoraPlan:
    """Which tokens use which adapter at one site group of one layer."""

    starts: torch.Tensor  # int32 [G + 1] token ranges, in step order
    table: torch.Tensor  # int64 [G, 3]: address of a, address of b, rank (0: no weights at this site)
    weights: list[tuple[torch.Tensor, torch.Tensor] | None]  # the same a and b as tensors, one each group
    bounds: list[int]  # starts as Python ints
    memo: dict[str, torch.Tensor] = field(default_factory=dict)  # what an implementation made of weights


@dataclass(slots=True)
class LoraStep:
    """The adapters of a step at all site groups of all layers."""

    starts: torch.Tensor  # int32 [G + 1] token ranges, in step order; before the first is the base
    table: torch.Tensor  # int64 [site groups, G, 3], as LoraPlan's
    sites: list[LoraPlan | None]  # the same for each site group; None where no adapter has weights


@dataclass(frozen=True, slots=True)
class SiteGroup:
    """The linear layers of one site group."""

    names: tuple[str, ...]  # such as ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    in_features: int
    out_offsets: tuple[int, ...]  # [k + 1] columns of each in y


@dataclass(frozen=True, slots=True)
class GatedUnit:
    """down(gate(x) * up(x)), Shazeer 2020."""

    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture (Shazeer et al. 2017): the `top` likeliest experts of each token, weighted by a softmax."""

    router: Linear  # [T, hidden] -> [T, experts]
    units: list[GatedUnit]
    top: int
    shares: bool  # the weights of a token's experts are scaled to sum to 1


@dataclass(slots=True)
class Layer:
    """One decoder layer: norm, q/k/v, rotary positions, attention, o, norm, gated unit."""

    norm1: torch.Tensor  # float32 [hidden], as all norms
    norm2: torch.Tensor
    out_norms: tuple[torch.Tensor, torch.Tensor] | None  # [hidden]: of what attention and the gated unit add
    qk_norm: tuple[torch.Tensor, torch.Tensor] | None  # [head_dim] each
    cos: torch.Tensor  # float32 [positions, rotated numbers of a head]; layers share it
    sin: torch.Tensor
    window: int  # tokens that a token sees, itself included; 0: all
    qkv: Linear
    o: Linear
    unit: GatedUnit | Experts
    k_cache: torch.Tensor
    v_cache: torch.Tensor


class RowsLinear(Protocol):
    """A linear layer that gives the rows of its weight back."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in] -> [T, out]."""
        ...

    def rows(self, indices: torch.Tensor, out: torch.Tensor) -> None:
        """Rows `indices` int64 [T] of the weight into out [T, in]."""
        ...


@dataclass(frozen=True, slots=True)
class FileRows:
    """The rows of a weight [out, in] in an open file."""

    file: int  # the descriptor
    start: int  # bytes before them
    shape: tuple[int, int]
    dtype: torch.dtype  # float32 or bfloat16


@dataclass(slots=True)
class PackedModel:
    """Layers of one shape with what comes before and after them."""

    embed: torch.Tensor | RowsLinear  # [vocabulary, hidden]; the head where that has the same rows
    heads: int
    kv_heads: int
    head_dim: int
    eps: float  # of every norm
    scale: float  # of attention's scores
    norm: torch.Tensor  # float32 [hidden], the last
    head: Linear
    layers: list[Layer]
    groups: list[
        SiteGroup
    ]  # four a layer; a mixture's last two have no linear layer that an adapter may change
    inner: int  # numbers between gate_up and down
    gelu: bool = False  # the gated unit's function: gelu (by tanh), else silu
    embed_scale: float = 1.0
    score_cap: float = 0.0  # as `TorchOps.attention` takes it
    logit_cap: float = 0.0  # logits are cap * tanh(logit / cap); 0: as they are


class Stack(Protocol):
    """A model's layers, run as far as one likes."""

    def run(
        self,
        hidden: torch.Tensor,
        tokens: torch.Tensor | None,
        layers: tuple[int, int],
        plan: AttentionPlan,
        lora: LoraStep | None,
        scored: torch.Tensor,
    ) -> torch.Tensor:
        """Layers first .. last - 1 on hidden [T, hidden], in place -> logits [S, vocabulary].

        Before them `tokens` int64 [T] are embedded into it, if given; behind them the logits of the tokens
        `scored` int64 [S] are computed as if no layer came after.
        """
        ...


class TokenChoice(NamedTuple):
    """How a token is chosen from a row of logits.

    First logits are adjusted. Repetition (CTRL, Keskar et al. 2019): positive logits of `seen` tokens are
    divided by it, negative ones multiplied. Frequency and presence: subtracted for each of a token's
    `counts`, and once if there is one. What is `forbidden` or not `allowed` is never chosen.

    Then the likeliest is taken, of equals the first, or with a temperature a token is drawn: from the
    likeliest `top_k`, of these from the fewest that have `top_p` of their mass (nucleus: Holtzman et al.
    2019), of these from those that are `min_p` times as likely as the likeliest (Nguyen et al. 2024). Equals
    of the last token kept are kept. The distribution is inverted at `uniform`, in the order of tokens.

    A grammar that is asked about single tokens needs two more. With `near` a token is drawn from all,
    whatever `top_k`, `top_p` and `min_p` are, and `ChosenToken` says when they keep it. A token that is
    `proposed` is the result if it may be chosen and is kept.
    """

    temperature: float = 0.0  # 0: the likeliest
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.0  # in [0, 1)
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    seen: NDArray[np.int64] | None = None  # [distinct] tokens
    counts: NDArray[np.float32] | None = None  # [distinct] times that each was answered
    forbidden: tuple[int, ...] = ()
    allowed: NDArray[np.int32] | None = None  # [>= vocabulary / 32] a bit for each token
    logprobs: int = 0  # how many of the likeliest to return, beside the token's own; 0: none of them
    near: int = 0  # how many tokens that are no likelier than the one drawn to return at most
    proposed: int = -1

    @property
    def likeliest(self) -> bool:
        """Whether it is just the likeliest token of those that may be chosen."""
        return self.temperature == 0 and self.seen is None and not self.logprobs

    def permits(self, token: int) -> bool:
        """Whether the token may be chosen."""
        allowed = self.allowed is None or bool(self.allowed[token // 32] >> token % 32 & 1)
        return allowed and token not in self.forbidden


class ChosenToken(NamedTuple):
    """A row's token. Log-probabilities are natural and of the raw distribution.

    With `near`: where only some tokens may be chosen, this one among them, it is kept if those of `near` that
    may be have more than `lacks` together, in shares of the mass of all. If `lacks` is less than 0, it is
    kept whichever these are.
    """

    token: int  # FAILED: there is none
    logprob: float = 0.0
    top: Sequence[tuple[int, float]] = ()  # token and log-probability, the likeliest first
    lacks: float = -1.0
    near: Sequence[tuple[int, float]] = ()  # token and share, the likeliest first

    @property
    def failed(self) -> bool:
        """Whether the row's logits were not finite, or nothing was left to choose from."""
        return self.token == FAILED


FAILED = -1
GREEDY = TokenChoice()


LARGEST = 127  # -128 has no counterpart, and no place in the native operations' table
_AT_ONCE = 1 << 20  # weights rounded together: the float32 copy stays small beside the model


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """values * scales[:, None] stands for a weight [out, in]."""

    values: torch.Tensor  # int8 [out, in], -127 .. 127
    scales: torch.Tensor  # float32 [out]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.values.nbytes + self.scales.nbytes


def quantise(weight: torch.Tensor) -> Int8Weight:
    """weight [out, in] -> the nearest whole numbers; the largest of each output is 127, ties go to even.

    Every weight is off by half a scale at most. An output of zeros alone gets scale 0; one with a value that
    is not finite gets one that is not finite either, so that it stays as visibly broken as it was.
    """
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    rows = max(1, _AT_ONCE // max(1, weight.shape[1]))
    for start in range(0, len(weight), rows):
        part = weight[start : start + rows].float()
        scale = part.abs().amax(1) / LARGEST
        steps = (part / scale[:, None]).nan_to_num(0.0, LARGEST, -LARGEST)
        values[start : start + rows] = steps.round().clamp(-LARGEST, LARGEST)
        scales[start : start + rows] = scale
    return Int8Weight(values, scales)
