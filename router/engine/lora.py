"""One adapter's weights on their way to a step.

They are packed in the layout that the operations read and kept in host memory, brought into one of few slots
on the device while rows use them, and laid side by side in the plan of a step.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from router.engine.base import AdapterArtifact, SiteDelta, TensorData
from router.engine.ops import LoraPlan, LoraStep, Ops, SiteGroup
from router.errors import AdapterRejected

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class PackedAdapter:
    """One adapter, packed: weights[g] is (a, b) of site group g or None; table int64 [groups, 3]."""

    digest: str
    weights: list[tuple[torch.Tensor, torch.Tensor] | None]
    table: torch.Tensor
    ranks: list[int]
    nbytes: int

    def to(self, device: torch.device) -> PackedAdapter:
        """A copy on `device`; itself where it is there already."""
        if all(w is None or w[0].device == device for w in self.weights):
            return self
        moved = [
            None if w is None else (w[0].to(device, non_blocking=True), w[1].to(device, non_blocking=True))
            for w in self.weights
        ]
        return PackedAdapter(self.digest, moved, _addresses(moved, self.ranks), self.ranks, self.nbytes)


def pack_adapter(
    artifact: AdapterArtifact, groups: Sequence[SiteGroup], ops: Ops, dtype: torch.dtype, *, pin: bool
) -> PackedAdapter:
    """Pack for `groups`; raises AdapterRejected where a site is unknown or does not fit."""
    known = {name for group in groups for name in group.names}
    if unknown := [site for site in artifact.sites if site not in known]:
        raise AdapterRejected(f"the base has no linear layer {unknown[0]!r} ({len(unknown)} such sites)")
    weights = [_pack_group(artifact, group, ops, dtype, pin) for group in groups]
    nbytes = sum(t.numel() * t.element_size() for w in weights if w is not None for t in w)
    ranks = [0 if w is None else w[0].shape[0] // len(g.names) for w, g in zip(weights, groups, strict=True)]
    return PackedAdapter(artifact.digest, weights, _addresses(weights, ranks), ranks, nbytes)


def _pack_group(
    artifact: AdapterArtifact, group: SiteGroup, ops: Ops, dtype: torch.dtype, pin: bool
) -> tuple[torch.Tensor, torch.Tensor] | None:
    deltas = [artifact.sites.get(name) for name in group.names]
    rank = max((d.rank for d in deltas if d is not None), default=0)
    if not rank:
        return None
    rank += rank % 2  # the native operation takes two ranks at once
    a = torch.zeros(len(deltas) * rank, group.in_features, dtype=dtype)
    b = torch.zeros(group.out_offsets[-1], rank, dtype=dtype)
    for i, delta in enumerate(deltas):
        if delta is None:
            continue
        start, end = group.out_offsets[i], group.out_offsets[i + 1]
        site_a, site_b = _site_weights(group.names[i], delta, (end - start, group.in_features))
        a[i * rank : i * rank + delta.rank] = site_a
        b[start:end, : delta.rank] = site_b.float() * delta.scaling
    packed = a, ops.pack_b(b).contiguous()
    return (packed[0].pin_memory(), packed[1].pin_memory()) if pin else packed


def _site_weights(name: str, delta: SiteDelta, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = _as_tensor(delta.a), _as_tensor(delta.b)
    if a.shape != (delta.rank, shape[1]) or b.shape != (shape[0], delta.rank):
        raise AdapterRejected(
            f"{name}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit a layer of "
            f"{shape[1]} inputs and {shape[0]} outputs"
        )
    return a, b


def _as_tensor(data: TensorData) -> torch.Tensor:
    buffer = bytearray(data.data) if data.data.readonly else data.data
    return torch.frombuffer(buffer, dtype=_DTYPES[data.dtype]).view(data.shape)


def _addresses(
    weights: Sequence[tuple[torch.Tensor, torch.Tensor] | None], ranks: Sequence[int]
) -> torch.Tensor:
    rows = [
        (0, 0, 0) if pair is None else (pair[0].data_ptr(), pair[1].data_ptr(), rank)
        for pair, rank in zip(weights, ranks, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), 3)


class HostStore:
    """Packed adapters in host memory, by digest. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._adapters: dict[str, PackedAdapter] = {}

    def put(self, adapter: PackedAdapter) -> int:
        """Keep it; returns its bytes."""
        with self._lock:
            return self._adapters.setdefault(adapter.digest, adapter).nbytes

    def get(self, digest: str) -> PackedAdapter | None:
        """The adapter, if it is here."""
        with self._lock:
            return self._adapters.get(digest)

    def pop(self, digest: str) -> int:
        """Forget it; returns the bytes it had (0 if unknown)."""
        with self._lock:
            adapter = self._adapters.pop(digest, None)
        return adapter.nbytes if adapter else 0

    def snapshot(self) -> tuple[tuple[str, ...], int]:
        """Digests and their total bytes."""
        with self._lock:
            return tuple(self._adapters), sum(a.nbytes for a in self._adapters.values())


class DeviceSlots:
    """At most `capacity` adapters on the device; least recently used goes first, users never.

    Used by the engine thread only. An upload is queued on the device, so nobody waits for it here.
    """

    def __init__(
        self, capacity: int, host: HostStore, upload: Callable[[PackedAdapter], PackedAdapter]
    ) -> None:
        self.capacity = capacity
        self._host = host
        self._upload = upload
        self._resident: OrderedDict[str, PackedAdapter] = OrderedDict()
        self._users: dict[str, int] = {}

    def has_room(self, digest: str | None) -> bool:
        """Whether a row could hold a slot now."""
        if digest is None or digest in self._resident or len(self._resident) < self.capacity:
            return True
        return any(d not in self._users for d in self._resident)

    def acquire(self, digest: str | None, *, spare: bool = False) -> bool:
        """Hold a slot for one row; False if none can be had now.

        `spare`: take only what is there or an empty slot, and be the first to be evicted later.
        """
        if digest is None:
            return True
        known = digest in self._resident
        if not known and ((spare and len(self._resident) >= self.capacity) or not self._bring_in(digest)):
            return False
        if not (spare and known):
            self._resident.move_to_end(digest, last=not spare)
        self._users[digest] = self._users.get(digest, 0) + 1
        return True

    def release(self, digest: str | None) -> None:
        """Give up one hold."""
        if digest is None:
            return
        self._users[digest] -= 1
        if not self._users[digest]:
            del self._users[digest]

    def __getitem__(self, digest: str) -> PackedAdapter:
        """The adapter on the device; the caller holds it."""
        return self._resident[digest]

    def drop(self, digest: str) -> bool:
        """Free its slot; False while a row holds it."""
        if digest in self._users:
            return False
        self._resident.pop(digest, None)
        return True

    def resident(self) -> tuple[str, ...]:
        """Digests on the device."""
        return tuple(self._resident)

    def _bring_in(self, digest: str) -> bool:
        adapter = self._host.get(digest)
        if adapter is None:
            return False
        if len(self._resident) >= self.capacity:
            victim = next((d for d in self._resident if d not in self._users), None)
            if victim is None:
                return False
            del self._resident[victim]
        self._resident[digest] = self._upload(adapter)
        return True


class LoraBatch:
    """The adapters of a step, in row order; reused while the same adapters run."""

    def __init__(self, adapters: Sequence[PackedAdapter], device: torch.device) -> None:
        self.key = tuple(a.digest for a in adapters)
        self._device = device
        empty = torch.zeros(0, dtype=torch.int32)
        table = torch.stack([a.table for a in adapters], dim=1)  # [site groups, G, 3]
        sites: list[LoraPlan | None] = []
        for g, rows in enumerate(table):
            weights = [a.weights[g] for a in adapters]
            sites.append(LoraPlan(empty, rows, weights, []) if any(weights) else None)
        self._step = LoraStep(empty, table, sites)

    def at(self, bounds: list[int]) -> LoraStep:
        """The plans with token ranges `bounds` [G + 1]."""
        starts = torch.tensor(bounds, dtype=torch.int32, device=self._device)
        self._step.starts = starts
        for plan in self._step.sites:
            if plan is not None:
                plan.starts, plan.bounds = starts, bounds
        return self._step
