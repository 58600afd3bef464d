"""Adapter tiers: host memory, and the slots on the device that a step can use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from router.engine.lora import PackedAdapter

Upload = Callable[[PackedAdapter], PackedAdapter]


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

    def __init__(self, capacity: int, host: HostStore, upload: Upload) -> None:
        self.capacity = capacity
        self._host = host
        self._upload = upload
        self._resident: OrderedDict[str, PackedAdapter] = OrderedDict()
        self._users: dict[str, int] = {}

    def acquire(self, digest: str | None, *, spare: bool = False) -> bool:
        """Hold a slot for one sequence; False if none can be had now.

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
        """Free its slot; False while a sequence holds it."""
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
