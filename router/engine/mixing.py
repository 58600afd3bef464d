"""A mixture of adapters is an adapter: what each adds to the base, times its weight, in one sum.

With y += B (A x) for each, the rows of all A stand below each other and the columns of all B, weighted, side
by side: the sum is exact, and its rank the sum of ranks (PEFT calls this "cat"). To weigh the factors instead
("linear") would be another sum, with a product of one adapter's B and another's A for every pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from router.engine.base import AdapterArtifact
from router.engine.lora import HostStore, PackedAdapter, in_slab
from router.engine.memory import shortage_as_memory_error
from router.engine.ops import Ops, SiteGroup
from router.errors import FailedPrecondition

Weighed = tuple[PackedAdapter, float]


def mix_adapters(
    mixture: AdapterArtifact, host: HostStore, groups: Sequence[SiteGroup], ops: Ops, *, pin: bool
) -> PackedAdapter:
    """The mixture, packed like its parts, with `pin` in page-locked memory; those of weight 0 take no rank.

    Raises FailedPrecondition where a part is not in `host`, MemoryError where there is no room.
    """
    parts: list[Weighed] = []
    for digest, weight in mixture.parts:
        part = host.get(digest)
        if part is None:
            raise FailedPrecondition("an adapter of the mixture is not loaded any more: ask again")
        if weight:
            parts.append((part, weight))
    with shortage_as_memory_error():
        packed = [_mixed(parts, site, group, ops) for site, group in enumerate(groups)]
        ranks = [sum(part.ranks[site] for part, _ in parts) for site in range(len(groups))]
        return in_slab(mixture.digest, packed, ranks, pin=pin)


def _mixed(
    parts: Sequence[Weighed], site: int, group: SiteGroup, ops: Ops
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """a and b of a site group, or None where no part has any."""
    a: list[torch.Tensor] = []  # [linear layers, rank, inputs] of each part
    b: list[torch.Tensor] = []  # [outputs, rank]
    layers, outputs = len(group.names), group.out_offsets[-1]
    for part, weight in parts:
        pair, rank = part.weights[site], part.ranks[site]
        if pair is not None:
            rows = ops.unpack_a(pair[0], layers * rank, group.in_features)
            a.append(rows.reshape(layers, rank, group.in_features))
            columns = ops.unpack_b(pair[1], outputs, rank)
            b.append((columns.float() * weight).to(columns.dtype))
    if not a:
        return None
    return ops.pack_a(torch.cat(a, 1).flatten(0, 1)), ops.pack_b(torch.cat(b, 1))
