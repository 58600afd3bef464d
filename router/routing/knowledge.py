"""What routing knows of the adapters: those there now, those that classifiers learned, what labels mean."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from router.errors import NotFound
from router.ports import Catalog
from router.types import AdapterProfile, RoutingHints

log = logging.getLogger(__name__)
DEBOUNCE_SECONDS = 0.05
Learn = Callable[[tuple[AdapterProfile, ...]], Awaitable[None]]


class Knowledge:
    """Follows a catalog. `learn` is awaited for each new set, one at a time, before `labels` speak of it."""

    def __init__(self, catalog: Catalog, learn: Learn) -> None:
        self._catalog, self._learn = catalog, learn
        self.present: tuple[AdapterProfile, ...] = ()
        self.learned: tuple[AdapterProfile, ...] = ()
        self.labels = Labels(())
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take the present set as learned, then follow."""
        self._catalog.subscribe(self._changed)
        self.present = self.learned = self._catalog.profiles()
        self.labels = Labels(self.present)

    def _changed(self) -> None:
        present = self._catalog.profiles()
        if present == self.present:
            return
        self.present = present
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow(), name="routing learns adapters")

    async def _follow(self) -> None:
        await asyncio.sleep(DEBOUNCE_SECONDS)
        while self.learned != self.present:
            await self._catch_up()

    async def _catch_up(self) -> None:
        target = self.present
        await self._learn(target)
        self.learned, self.labels = target, Labels(target)
        log.info("routing knows %d adapters", len(target))

    def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()


def narrow(profiles: Sequence[AdapterProfile], hints: RoutingHints) -> tuple[AdapterProfile, ...]:
    """The profiles that fit the hints; all of them if there is no hint.

    Those that match every hint come first; where there are none, those that match one hint and leave
    the other axis open (a translator of no domain serves domain "legal", task "translation"). Raises
    NotFound, saying which domains or tasks there are.
    """
    wanted = [(axis, value) for axis, value in (("domain", hints.domain), ("task", hints.task)) if value]
    for axis, value in wanted:
        have = sorted({getattr(p, axis) for p in profiles} - {""})
        if value not in have:
            there = ", ".join(have) or "none"
            raise NotFound(axis, value, f": no adapter that may be routed to has it; there are {there}")
    exact = tuple(p for p in profiles if all(getattr(p, axis) == value for axis, value in wanted))
    if exact:
        return exact
    open_ended = tuple(p for p in profiles if all(getattr(p, axis) in (value, "") for axis, value in wanted))
    near = tuple(p for p in open_ended if any(getattr(p, axis) == value for axis, value in wanted))
    if not near and wanted:
        both = f"domain {hints.domain}, task {hints.task}"
        raise NotFound("adapter", both, ": no adapter that may be routed to has both")
    return near


class Labels:
    """What a label stands for. A name wins over a domain, a domain over a task of the same text."""

    def __init__(self, profiles: Iterable[AdapterProfile]) -> None:
        names: dict[str, tuple[str, ...]] = {}
        domains: dict[str, tuple[str, ...]] = {}
        tasks: dict[str, tuple[str, ...]] = {}
        for profile in profiles:
            names[profile.name] = (profile.name,)
            if profile.domain:
                domains[profile.domain] = (*domains.get(profile.domain, ()), profile.name)
            if profile.task:
                tasks[profile.task] = (*tasks.get(profile.task, ()), profile.name)
        self._adapters: Mapping[str, tuple[str, ...]] = {**tasks, **domains, **names}

    def spread(self, confidences: Mapping[str, float]) -> dict[str, float]:
        """Confidence of each adapter: its own label's if there is one, else the best of those it falls under.

        Labels that stand for no adapter are left out.
        """
        spread: dict[str, float] = {}
        for label, confidence in confidences.items():
            for adapter in self._adapters.get(label, ()):
                if label == adapter or adapter not in confidences:
                    spread[adapter] = max(confidence, spread.get(adapter, 0.0))
        return spread
