"""Whether A and B fit each other, the configured rank and the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router.registry.format.codes import Code
from router.registry.format.config_values import CONFIG
from router.registry.format.findings import Findings
from router.registry.format.lora_config import LoraSettings
from router.registry.format.safetensors_header import WEIGHTS
from router.registry.format.sites import LoraPair
from router.registry.format.text import show, some


@dataclass(frozen=True, slots=True)
class SitePlan:
    """One site as it will be served."""

    site: str
    rank: int
    scaling: float


def plan_sites(
    settings: LoraSettings,
    pairs: Mapping[str, LoraPair],
    sites: Mapping[str, tuple[int, int]] | None,
    max_rank: int,
    found: Findings,
) -> tuple[SitePlan, ...]:
    """Rank and scale of every site. `sites` are (out, in) of the base, None if it is not known yet."""
    if settings.largest_rank > max_rank:
        message = f"rank {settings.largest_rank} is more than this server serves (max_rank {max_rank})"
        found.refuse(Code.RANK_TOO_LARGE, message)
    wrong_rank, wrong_shape = [], []
    for site, pair in pairs.items():
        rank = settings.rank_at(site)
        if not settings.ranks_known:
            rank = pair.a.shape[0]
        if not _has_rank(pair, rank):
            wrong_rank.append(f"{show(site, 120)} is configured with rank {rank}, has {_shapes(pair)}")
        elif sites is not None and (pair.b.shape[0], pair.a.shape[1]) != sites[site]:
            out, into = sites[site]
            wrong_shape.append(
                f"{show(site, 120)} is {out}x{into} in the base, the adapter has {_shapes(pair)}"
            )
    _refuse(Code.RANK_MISMATCH, wrong_rank, found)
    _refuse(Code.SHAPE_MISMATCH, wrong_shape, found)
    _note_unused(settings, pairs, found)
    return tuple(SitePlan(s, settings.rank_at(s), settings.scaling_at(s)) for s in sorted(pairs))


def _note_unused(settings: LoraSettings, pairs: Mapping[str, LoraPair], found: Findings) -> None:
    fields = {"rank_pattern": settings.rank_pattern, "alpha_pattern": settings.alpha_pattern}
    for field, patterns in fields.items():
        unused = patterns.unused(pairs.keys())
        if unused:
            found.note(Code.CONFIG_PATTERN, f"fits no module: {some(unused)}", f"{CONFIG} {field}")


def _has_rank(pair: LoraPair, rank: int) -> bool:
    a, b = pair.a.shape, pair.b.shape
    return len(a) == 2 and len(b) == 2 and a[0] == rank and b[1] == rank


def _shapes(pair: LoraPair) -> str:
    return f"A {list(pair.a.shape)} and B {list(pair.b.shape)}"


def _refuse(code: Code, wrong: list[str], found: Findings) -> None:
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        found.refuse(code, "; ".join(wrong[:3]) + more, WEIGHTS)
