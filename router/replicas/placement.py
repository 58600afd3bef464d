"""Which replica has which adapter, and which of them answers a request. No clock, no network, no engine."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

ABSENT = 8  # requests that may run or wait at a replica with the adapter before another one loads it


@dataclass(slots=True)
class Placement:
    """What the edge knows of its replicas, by name."""

    draw: random.Random = field(default_factory=random.Random)
    held: Counter[str] = field(default_factory=Counter)  # requests by replica: running, waiting, to come
    used: Counter[str] = field(default_factory=Counter)  # bytes of adapters, by replica
    _up: set[str] = field(default_factory=set)
    _homes: dict[str, dict[str, int]] = field(default_factory=dict)  # bytes, by adapter and replica

    def homes(self, digest: str) -> tuple[str, ...]:
        """Where an adapter is, in the order in which it came there."""
        return tuple(self._homes.get(digest, ()))

    def living(self, replica: str) -> list[str]:
        """Which adapters are there."""
        return [digest for digest, homes in self._homes.items() if replica in homes]

    # -- replicas and adapters as they come and go

    def join(self, replica: str) -> None:
        """It is up, and has nothing yet."""
        self._up.add(replica)

    def leave(self, replica: str) -> tuple[str, ...]:
        """It is gone, and what it held with it; returns the adapters that are nowhere else."""
        self._up.discard(replica)
        gone = [digest for digest in self.living(replica) if len(self._homes[digest]) == 1]
        for digest in self.living(replica):
            self.unsettle(digest, replica)
        for table in (self.held, self.used):
            table.pop(replica, None)
        return tuple(gone)

    def settle(self, digest: str, replica: str, size: int = 0) -> None:
        """It is there, too, in so many bytes."""
        homes = self._homes.setdefault(digest, {})
        if replica in self._up and replica not in homes:
            homes[replica] = size
            self.used[replica] += size

    def unsettle(self, digest: str, replica: str) -> None:
        """It is there no longer."""
        homes = self._homes.get(digest, {})
        if replica in homes:
            self.used[replica] -= homes.pop(replica)

    def forget(self, digest: str) -> None:
        """It is no adapter here any more."""
        for replica in self.homes(digest):
            self.unsettle(digest, replica)
        self._homes.pop(digest, None)

    # -- requests

    def begin(self, replica: str) -> None:
        """A request goes to a replica."""
        self.held[replica] += 1

    def end(self, replica: str) -> None:
        """It is over, there or with its replica."""
        if replica in self._up:
            self.held[replica] -= 1

    def choose(self, among: Collection[str], digest: str | None = None) -> str:
        """Where a request goes: where fewest are held, ABSENT more where its adapter would have to be loaded.

        Among equals any; `among` is not empty.
        """
        homes = self._homes.get(digest, {}) if digest is not None else among
        scores = {name: self.held[name] + (0 if name in homes else ABSENT) for name in among}
        least = min(scores.values())
        return self.draw.choice(sorted(name for name in among if scores[name] == least))

    def new_home(self, digest: str, among: Collection[str]) -> str:
        """Where an adapter is loaded next: where fewest requests are held, then where fewest bytes are; "" if
        it is everywhere.
        """
        free = sorted(set(among) - set(self.homes(digest)))
        return min(free, key=lambda name: (self.held[name], self.used[name]), default="")
