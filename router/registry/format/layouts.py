"""What configuration and weights header say together. Adapters of one recipe share both byte for byte, and of
thousands each pair is checked once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from router.engine.base import BaseInfo
from router.registry.format import limits
from router.registry.format.checks import SitePlan, check_targets, plan_sites, refuse_full
from router.registry.format.findings import Finding, Findings
from router.registry.format.lora_config import LoraSettings, parse_lora_config
from router.registry.format.safetensors_header import Header, parse_header
from router.registry.format.tensors import SiteTensors, match_sites

KEPT = 16
MOST_BYTES = 1 << 18  # longer ones are not kept: a hostile header may have megabytes
SPARE_TENSORS = 64  # whole matrices that may be saved along

Config = tuple[LoraSettings | None, tuple[Finding, ...]]


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of a weights file by site, and how they will be served."""

    header: Header | None = None
    tensors: SiteTensors | None = None
    plans: tuple[SitePlan, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Against:
    """What a layout is checked against. Bases are compared by identity: one has thousands of sites."""

    base: BaseInfo | None
    max_rank: int
    ignore_fields: tuple[str, ...]
    full_compared: bool  # whole matrices are compared with the base's later; else they are refused

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Against) and self.base is other.base and self._rest == other._rest

    def __hash__(self) -> int:
        return hash((id(self.base), self._rest))

    @property
    def _rest(self) -> tuple[object, ...]:
        return self.max_rank, self.ignore_fields, self.full_compared


def config_of(data: bytes, ignore_fields: Collection[str]) -> Config:
    """See `parse_lora_config`."""
    read = _kept_config if len(data) <= MOST_BYTES else _last_config
    return read(data, tuple(ignore_fields))


def layout_of(raw: bytes, file_size: int, config: bytes | None, against: Against) -> Layout:
    """What a header says under a configuration; never raises. `raw`: its length and JSON."""
    few = len(raw) + len(config or b"") <= MOST_BYTES
    return (_kept_layout if few else _layout)(raw, file_size, config, against)


def _layout(raw: bytes, file_size: int, config: bytes | None, against: Against) -> Layout:
    found, base = Findings(), against.base
    room = 0 if base is None else 2 * len(base.sites)
    header = parse_header(raw, file_size, found, max(limits.TENSORS, room + SPARE_TENSORS))
    if header is None:
        return Layout(findings=tuple(found))
    sites = None if base is None else base.sites
    tensors = match_sites(header.tensors, sites, found)
    if not against.full_compared:
        refuse_full(tensors.full, "cannot be compared with the base's here", found)
    settings = None if config is None else config_of(config, against.ignore_fields)[0]
    if settings is None:
        return Layout(header, tensors, (), tuple(found))
    if sites is not None and tensors.complete:
        check_targets(settings, sites, tensors.pairs, found)
    plans = plan_sites(settings, tensors.pairs, sites, against.max_rank, found)
    return Layout(header, tensors, plans, tuple(found))


_kept_config = lru_cache(KEPT)(parse_lora_config)
_last_config = lru_cache(1)(parse_lora_config)  # a layout asks again for the one that was just parsed
_kept_layout = lru_cache(KEPT)(_layout)
