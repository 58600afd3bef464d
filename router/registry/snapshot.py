"""Numbers of the registry, for whoever turns them into metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router.types import AdapterState


@dataclass(slots=True)
class Counters:
    """Totals since start."""

    loads: int = 0
    load_seconds: float = 0.0
    load_failures: int = 0
    evictions: int = 0
    unloads: int = 0
    swaps: int = 0
    probes_failed: int = 0


@dataclass(frozen=True, slots=True)
class RegistrySnapshot:
    """The registry at one moment. Bytes and counts of digests, not of versions, where tiers are named."""

    versions: Mapping[AdapterState, int]
    loads: int
    load_seconds: float  # sum over all loads that ended well
    load_failures: int
    evictions: int
    unloads: int
    swaps: int  # versions whose files were replaced and whose new files serve
    probes_failed: int
    leases: int
    host_bytes: int
    host_budget_bytes: int
    host_adapters: int
    device_adapters: int
    draining: int  # digests no version serves any more that still have leases
