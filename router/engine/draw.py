"""Truncating distributions and drawing from them, row by row and without sorting a vocabulary.

Two levels do it, blocks of neighbouring tokens first: the largest probabilities lie in the blocks
with the largest maxima, and a running sum over blocks leads to the block to look into. Where the
largest few are not enough, a histogram over the leading bits of the probabilities is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from router.types import SamplingParams

_BLOCK = 32
_WIDTH = 64  # a nucleus is seldom larger
_SHIFT, _BUCKETS = 16, (0x3F800000 >> 16) + 1  # leading bits of float32 numbers in [0, 1] order them


def truncate(probs: Tensor, params: Sequence[SamplingParams]) -> None:
    """Set to 0 what each row of `probs` [rows, vocab] may not draw, in place.

    top_k, then top_p of what is left (nucleus: Holtzman et al. 2019), then min_p (Nguyen et al.
    2024), relative to the most likely token. Equals of the last token kept are kept too, so the
    result does not depend on how a sort orders them.
    """
    cut = [row for row, p in enumerate(params) if p.top_k or p.top_p < 1 or p.min_p > 0]
    if not cut:
        return
    smallest = _smallest_kept(probs, params)
    below = torch.nextafter(smallest, torch.zeros_like(smallest)).tolist()
    for row in cut:
        torch.threshold_(probs[row], below[row], 0.0)  # broadcasting is 20 times slower


def draw(probs: Tensor, uniforms: Sequence[float]) -> list[int]:
    """One index per row of `probs` [rows, vocab] (need not sum to 1), by inverting the distribution.

    The index is a function of the row and of its number in [0, 1) alone.
    """
    blocks = _blocks(probs)
    mass = blocks.sum(-1).double().cumsum(-1)
    target = torch.tensor(uniforms, dtype=torch.float64, device=probs.device) * mass[:, -1]
    block, before = _find(mass, target)
    inside = blocks[torch.arange(len(blocks), device=probs.device), block].double().cumsum(-1)
    place, _ = _find(inside, target - before)
    indices: list[int] = (block * _BLOCK + place).tolist()
    return indices


def _smallest_kept(probs: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """[rows] smallest probability each row may draw."""
    blocks, vocab = _blocks(probs), probs.shape[-1]
    smallest = blocks.amax((1, 2)) * torch.tensor([p.min_p for p in params], device=probs.device)
    limits = [p.top_k if 0 < p.top_k < vocab else 0 for p in params]
    rows = [row for row, p in enumerate(params) if p.top_p < 1 or limits[row]]
    if not rows:
        return smallest
    top_k, top_p = [limits[row] for row in rows], [params[row].top_p for row in rows]
    values, known = _cut(_best(blocks if len(rows) == len(blocks) else blocks[rows]), top_k, top_p)
    for i, row in enumerate(rows):
        value = values[i] if known[i] else _cut_by_histogram(probs[row], top_k[i], top_p[i])
        smallest[row] = torch.maximum(smallest[row], value)
    return smallest


def _best(blocks: Tensor) -> Tensor:
    """[rows, _WIDTH or all] largest values of `blocks` [rows, blocks, _BLOCK], descending."""
    if blocks.shape[1] > _WIDTH:
        rich = blocks.amax(-1).topk(_WIDTH, sorted=False).indices
        blocks = blocks.gather(1, rich[:, :, None].expand(-1, -1, _BLOCK))
    flat = blocks.flatten(1)
    return flat.topk(min(_WIDTH, flat.shape[-1])).values


def _cut(best: Tensor, top_k: Sequence[int], top_p: Sequence[float]) -> tuple[Tensor, list[bool]]:
    """Smallest kept probability of each row, from its `best` [rows, width], descending.

    Also says for which rows these were enough to know; `top_k` 0 is no limit.
    """
    width = best.shape[-1]
    mass = best.double().cumsum(-1)
    kept = torch.tensor([min(k, width) or width for k in top_k], device=best.device)
    limited = torch.tensor([k > 0 for k in top_k], device=best.device)
    total = torch.where(limited, mass.gather(-1, kept[:, None] - 1)[:, 0], 1.0)
    nucleus = torch.tensor(top_p, dtype=torch.float64, device=best.device) * total
    size = torch.searchsorted(mass, nucleus[:, None])[:, 0] + 1  # the fewest with that mass
    # Without top_p all of top_k: mass that rounding loses must not end it before.
    size = torch.where(torch.tensor([p < 1 for p in top_p], device=best.device), size, kept)
    reached = (size <= kept).tolist()
    values = best.gather(-1, torch.minimum(size, kept)[:, None] - 1)[:, 0]
    return values, [k <= width and bool(r) for k, r in zip(top_k, reached, strict=True)]


def _cut_by_histogram(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """The same for one row [vocab] whatever its shape, in a few passes over it."""
    bucket = probs.view(torch.int32) >> _SHIFT
    mass = torch.bincount(bucket, weights=probs, minlength=_BUCKETS).double().flip(0).cumsum(0)
    smallest, total = probs.new_zeros(()), torch.ones((), dtype=torch.float64, device=probs.device)

    def members(place: int) -> Tensor:
        return probs[bucket == _BUCKETS - 1 - place].sort(descending=True).values

    def before(running: Tensor, place: int) -> Tensor:
        return running[place - 1] if place else running.new_zeros(())

    if top_k:
        count = torch.bincount(bucket, minlength=_BUCKETS).flip(0).cumsum(0)
        place = int(torch.searchsorted(count, top_k))
        last = top_k - int(before(count, place))
        smallest = members(place)[last - 1]
        total = before(mass, place) + members(place)[:last].double().sum()
    place = int(torch.searchsorted(mass, top_p * total))
    if top_p < 1 and place < _BUCKETS:
        inside = members(place)
        size = torch.searchsorted(inside.double().cumsum(0), top_p * total - before(mass, place))
        smallest = torch.maximum(smallest, inside[size.clamp(max=len(inside) - 1)])
    return smallest


def _find(mass: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """First place of each row whose running `mass` exceeds `target`, and the mass before it.

    Such a place has mass of its own; rounding never leads past the last one.
    """
    last = torch.nextafter(mass[:, -1], torch.zeros_like(target))
    place = torch.searchsorted(mass, torch.minimum(target, last)[:, None], right=True)
    before = mass.gather(-1, (place - 1).clamp_(min=0))
    return place[:, 0], torch.where(place > 0, before, 0.0)[:, 0]


def _blocks(probs: Tensor) -> Tensor:
    padding = -probs.shape[-1] % _BLOCK
    padded = torch.nn.functional.pad(probs, (0, padding)) if padding else probs
    return padded.view(len(probs), -1, _BLOCK)
