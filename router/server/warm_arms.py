"""Versions of arms are loaded when their experiment starts: no arm has slower first answers than another."""

from __future__ import annotations

import asyncio
import logging

from router.errors import RouterError
from router.experiments.live.snapshot import Snapshot
from router.ports import AdapterRegistry
from router.types import AdapterRef

log = logging.getLogger(__name__)


class WarmArms:
    """Called with every new snapshot, on the event loop."""

    def __init__(self, registry: AdapterRegistry) -> None:
        self._registry = registry
        self._asked: frozenset[AdapterRef] = frozenset()
        self._loads: set[asyncio.Task[None]] = set()

    def __call__(self, snapshot: Snapshot) -> None:
        """Load what was not asked for before. A version that cannot be loaded is a matter of its requests."""
        wanted = frozenset(arm.adapter for one in snapshot.all() for arm in one.arms.values() if arm.adapter)
        for ref in sorted(wanted - self._asked, key=str):
            task = asyncio.get_running_loop().create_task(self._load(ref), name=f"load {ref}")
            self._loads.add(task)
            task.add_done_callback(self._loads.discard)
        self._asked = wanted

    async def _load(self, ref: AdapterRef) -> None:
        try:
            await self._registry.load(ref)
        except RouterError as error:
            log.warning("the arm's version %s cannot be loaded: %s", ref, error.message)
