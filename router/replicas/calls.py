"""What any replica can do for the edge: read, and try whether a constraint can be followed."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from router.engine.base import MAX_READINGS, Reading, check_reading
from router.engine.fairness import TenantCache
from router.errors import Unavailable
from router.replicas.link import LinkLost
from router.replicas.messages import compile_, read
from router.replicas.placement import Placement
from router.replicas.replica import Replica
from router.replicas.request import MOVES
from router.types import Constraint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KNOWN = 256  # constraints, of all tenants


@dataclass(frozen=True, slots=True)
class Checked:
    """A constraint that a replica has compiled. A grammar stays in its process, so each replica makes one."""

    constraint: Constraint


class Calls:
    """Sent to one replica, to another if that one is lost or cannot now; twice at most, as with jobs."""

    def __init__(self, replicas: Mapping[str, Replica], placement: Placement) -> None:
        self._replicas, self._placement = replicas, placement
        self._readings = 0
        self._known: TenantCache[Constraint, Checked] = TenantCache(KNOWN)
        self.closed = False

    async def read(self, reading: Reading, context_length: int) -> NDArray[np.float32]:
        """As Engine.read; those of one scope go to the same replica, which has their context in its cache."""
        most = MAX_READINGS * (len(self._replicas) - 1)
        check_reading(reading, context_length, self._readings - most)
        self._readings += 1
        try:
            numbers: NDArray[np.float32] = await self._anywhere(
                lambda replica: replica.call(lambda key: read(key, reading)), reading.scope
            )
            return numbers
        finally:
            self._readings -= 1

    async def compile(self, constraint: Constraint, tenant: str = "") -> Checked:
        """As Engine.compile; what a tenant had compiled once is known to compile for it."""
        known = self._known.get(tenant, constraint)
        if known is None:
            await self._anywhere(lambda replica: replica.call(lambda key: compile_(key, constraint, tenant)))
            known = Checked(constraint)
            self._known.put(tenant, constraint, known)
        return known

    async def _anywhere(self, ask: Callable[[Replica], Coroutine[Any, Any, Any]], scope: int = 0) -> Any:
        """What one replica answers; another is asked if that one is lost or cannot now."""
        tried: set[str] = set()
        error = Unavailable("no replica is up")
        while len(tried) <= MOVES:
            up = {n: replica for n, replica in self._replicas.items() if replica.up and n not in tried}
            names = sorted(n for n, replica in up.items() if replica.takes)
            names = names or sorted(n for n, replica in up.items() if not replica.left)
            if not names:
                break
            name = names[scope % len(names)] if scope else self._placement.choose(names)
            tried.add(name)
            self._placement.begin(None, name, time.monotonic())
            try:
                return await ask(self._replicas[name])
            except LinkLost as lost:
                error = Unavailable(f"{lost}: ask again")
            except Unavailable as refused:
                if self.closed:
                    raise
                error = refused
            finally:
                self._placement.end(None, name, time.monotonic())
        raise error
