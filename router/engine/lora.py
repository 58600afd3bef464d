"""One adapter's weights on their way to a step.

They are packed in the layout that the operations read and kept in host memory, brought into one of few slots
on the device while rows use them, and laid side by side in the plan of a step.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Protocol

import torch

from router.engine.base import AdapterArtifact, SiteDelta, TensorData
from router.engine.ops import LoraPlan, LoraStep, SiteGroup
from router.engine.resources import map_pages, shortage_as_memory_error
from router.engine.torch_ops import TorchOps
from router.errors import AdapterRejected, FailedPrecondition, ResourceExhausted

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

LINE = 64  # bytes: each tensor in a slab begins at a multiple of it


class Arrival(Protocol):
    """Tells when a copy is done, as a CUDA event does."""

    def query(self) -> bool:
        """Whether it is done; does not wait."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PackedAdapter:
    """One adapter, packed: weights[g] is (a, b) of site group g or None; table int64 [groups, 3].

    The weights are views of one slab, so that a single copy brings them anywhere.
    """

    digest: str
    weights: list[tuple[torch.Tensor, torch.Tensor] | None]
    table: torch.Tensor
    ranks: list[int]
    nbytes: int
    slab: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    arrival: Arrival | None = None  # None: it is here
    invocation: tuple[int, ...] = ()  # tokens from which on it acts; none: from the beginning

    @property
    def here(self) -> bool:
        """Whether a step may read it; False while it is being copied."""
        return self.arrival is None or self.arrival.query()

    def on(self, slab: torch.Tensor, arrival: Arrival | None = None) -> PackedAdapter:
        """The same weights as views of another slab, which has the same bytes once `arrival` is there."""
        start = self.slab.data_ptr()

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            at = tensor.data_ptr() - start
            return slab[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

        weights = [None if pair is None else (moved(pair[0]), moved(pair[1])) for pair in self.weights]
        table = _addresses(weights, self.ranks)
        return replace(self, weights=weights, table=table, slab=slab, arrival=arrival)


def pack_adapter(
    artifact: AdapterArtifact, groups: Sequence[SiteGroup], ops: TorchOps, dtype: torch.dtype, *, pin: bool
) -> PackedAdapter:
    """Pack for `groups`, with `pin` in page-locked memory.

    Raises AdapterRejected where a site is unknown or does not fit, MemoryError where there is no room.
    """
    known = {name for group in groups for name in group.names}
    if unknown := [site for site in artifact.sites if site not in known]:
        raise AdapterRejected(f"the base has no linear layer {unknown[0]!r} ({len(unknown)} such sites)")
    ranks = [_rank(artifact, group) for group in groups]
    with shortage_as_memory_error():
        packed = [
            _packed(artifact, group, rank, ops, dtype) if rank else None
            for rank, group in zip(ranks, groups, strict=True)
        ]
        made = in_slab(artifact.digest, packed, ranks, pin=pin)
    return replace(made, invocation=artifact.invocation_tokens)


def in_slab(
    digest: str, packed: Sequence[tuple[torch.Tensor, torch.Tensor] | None], ranks: list[int], *, pin: bool
) -> PackedAdapter:
    """The adapter that `packed` are the weights of, copied into one slab."""
    sizes = [_lines(tensor.nbytes) for pair in packed if pair for tensor in pair]
    slab = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True) if pin else map_pages(sum(sizes))
    starts = accumulate(sizes, initial=0)
    weights = [
        pair and (_moved(pair[0], slab[next(starts) :]), _moved(pair[1], slab[next(starts) :]))
        for pair in packed
    ]
    nbytes = pinned_bytes(slab.nbytes) if pin else slab.nbytes
    return PackedAdapter(digest, weights, _addresses(weights, ranks), ranks, nbytes, slab)


def pinned_bytes(size: int) -> int:
    """What torch takes for so many page-locked bytes: the next power of two."""
    return 1 << (size - 1).bit_length() if size else 0


def _rank(artifact: AdapterArtifact, group: SiteGroup) -> int:
    deltas = (artifact.sites.get(name) for name in group.names)
    rank = max((d.rank for d in deltas if d is not None), default=0)
    return rank + rank % 2  # the native operation takes two ranks at once


def _lines(size: int) -> int:
    return -(-size // LINE) * LINE


def _packed(
    artifact: AdapterArtifact, group: SiteGroup, rank: int, ops: TorchOps, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """a and b of a site group, as the operations read them."""
    deltas = [artifact.sites.get(name) for name in group.names]
    a = torch.zeros(len(deltas) * rank, group.in_features, dtype=dtype)
    b = torch.zeros(group.out_offsets[-1], rank, dtype=dtype)
    for i, delta in enumerate(deltas):
        if delta is None:
            continue
        start, end = group.out_offsets[i], group.out_offsets[i + 1]
        site_a, site_b = _site_weights(group.names[i], delta, (end - start, group.in_features))
        a[i * rank : i * rank + delta.rank] = site_a
        b[start:end, : delta.rank] = site_b.float() * delta.scaling
    return ops.pack_a(a), ops.pack_b(b)


def _moved(tensor: torch.Tensor, slab: torch.Tensor) -> torch.Tensor:
    """The same at the start of `slab`."""
    place = slab[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return place.copy_(tensor)


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


Upload = Callable[[PackedAdapter], PackedAdapter]  # raises MemoryError where there is no room


def uploads(device: torch.device) -> Upload:
    """How adapters get to `device`: on the CPU they are there."""
    return SideStream(device) if device.type == "cuda" else lambda adapter: adapter


class SideStream:
    """Copies adapters to a CUDA device beside the steps, which do not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, adapter: PackedAdapter) -> PackedAdapter:
        """Begin the copy; the adapter is not `here` before it is done."""
        with shortage_as_memory_error(), torch.cuda.stream(self._stream):
            slab = adapter.slab.to(self._device, non_blocking=True)
            done = self._stream.record_event()
        # Once freed, its memory is given to a later copy only after the last step that read it.
        slab.record_stream(torch.cuda.current_stream(self._device))
        return adapter.on(slab, done)


class DeviceSlots:
    """At most `capacity` adapters on the device; least recently used goes first, users never.

    Used by the engine thread only, which does not wait for uploads: until one is done its rows wait, and the
    others go on.
    """

    def __init__(self, capacity: int, host: HostStore, upload: Upload) -> None:
        self.capacity = capacity
        self.evicted: Callable[[str], None] = lambda digest: None  # called with what has lost its slot
        self._host = host
        self._upload = upload
        self._short = False  # the device had no room for one more than there are
        self._resident: OrderedDict[str, PackedAdapter] = OrderedDict()
        self._users: dict[str, int] = {}

    def has_room(self, digest: str | None) -> bool:
        """Whether a row could hold a slot now."""
        if digest is None or digest in self._resident:
            return True
        if len(self._resident) < self.capacity and not self._short:
            return True
        return any(d not in self._users and adapter.here for d, adapter in self._resident.items())

    def acquire(self, digest: str | None, *, spare: bool = False) -> bool:
        """Hold a slot for one row; False if none can be had now, or while the upload that it began goes on.

        `spare`: take only what is there or an empty slot, and be the first to be evicted later.
        Raises ResourceExhausted where the adapter does not fit on the device although nothing else is there.
        """
        if digest is None:
            return True
        if digest not in self._resident and not self._bring_in(digest, spare):
            return False
        if not self._resident[digest].here:
            return False
        if not spare:
            self._resident.move_to_end(digest)
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

    def coming(self, digest: str | None) -> bool:
        """Whether its upload is in progress: no other has to make room for it."""
        return digest is not None and digest in self._resident and not self._resident[digest].here

    def _bring_in(self, digest: str, spare: bool) -> bool:
        """Begin its upload. Where the device has no room, others give theirs, one by one, or it waits."""
        adapter = self._host.get(digest)
        if adapter is None:
            return False
        while True:
            full = len(self._resident) >= self.capacity or (self._short and self._resident)
            if full and (spare or not self._evict()):
                return False
            try:
                self._resident[digest] = self._upload(adapter)
            except MemoryError as error:
                self._short = bool(self._resident)
                if spare:
                    return False
                if not self._short:
                    raise ResourceExhausted("the device has no room for this adapter") from error
            else:
                self._resident.move_to_end(digest, last=not spare)
                self._short = False
                return True

    def _evict(self) -> bool:
        for digest, adapter in self._resident.items():
            if digest not in self._users and adapter.here:
                del self._resident[digest]
                self.evicted(digest)
                return True
        return False


class LoraBatch:
    """The adapters of a step, in row order; reused while the same adapters run."""

    def __init__(self, adapters: Sequence[PackedAdapter], device: torch.device) -> None:
        self.key = tuple(a.digest for a in adapters)
        self._device = device
        empty = torch.zeros(0, dtype=torch.int32)
        # [site groups, G, 3] where the operations read it, in one copy
        table = torch.stack([a.table for a in adapters], dim=1).to(device)
        sites: list[LoraPlan | None] = []
        for g, rows in enumerate(table):
            weights = [a.weights[g] for a in adapters]
            sites.append(LoraPlan(empty, rows, weights, []) if any(weights) else None)
        self._step = LoraStep(empty, table, sites)
        self._bounds: list[int] = []  # of that step
        self._starts = memoryview(b"")  # on the CPU, the same in the plans' tensor

    def at(self, bounds: list[int]) -> LoraStep:
        """The plans with token ranges `bounds` [G + 1]."""
        if bounds == self._bounds:
            return self._step
        if self._bounds and self._device.type == "cpu":
            self._bounds[:] = bounds  # of all plans
            for place, bound in enumerate(bounds):
                self._starts[place] = bound
            return self._step
        self._bounds = bounds
        starts = torch.tensor(bounds, dtype=torch.int32, device=self._device)
        self._step.starts = starts
        if starts.is_cpu:
            self._starts = starts.numpy().data
        for plan in self._step.sites:
            if plan is not None:
                plan.starts, plan.bounds = starts, bounds
        return self._step


# -- A mixture of adapters is an adapter: what each adds to the base, times its weight, in one sum.
#
# With y += B (A x) for each, the rows of all A stand below each other and the columns of all B, weighted,
# side by side: the sum is exact, and its rank the sum of ranks (PEFT calls this "cat"). To weigh the factors
# instead ("linear") would be another sum, with a product of one adapter's B and another's A for every pair.

Weighed = tuple[PackedAdapter, float]


def mix_adapters(
    mixture: AdapterArtifact, host: HostStore, groups: Sequence[SiteGroup], ops: TorchOps, *, pin: bool
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
    parts: Sequence[Weighed], site: int, group: SiteGroup, ops: TorchOps
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
