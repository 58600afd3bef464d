"""What routing knows of the adapters: those there now, those that classifiers learned, what labels mean."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice

from router.classifiers.texts import languages_of
from router.errors import NotFound
from router.ports import Catalog
from router.reread import problem_of
from router.types import AdapterProfile, RoutingHints, Visible

log = logging.getLogger(__name__)
DEBOUNCE_SECONDS = 0.05
AGAIN_SECONDS = 1.0  # from an exception while learning to the next attempt
MOST_KEPT = 64  # sets of candidates, one for each kind of caller and hint
MOST_READ, OF_EACH = 2000, 20  # examples of which the languages are looked at: of all adapters, of one
MOST_NAMED = 20  # domains or tasks in an error
Learn = Callable[[tuple[AdapterProfile, ...]], Awaitable[None]]


class CatalogView:
    """Follows a catalog. `learn` is awaited for each new set, one at a time, before `labels` speak of it."""

    def __init__(self, catalog: Catalog, learn: Learn) -> None:
        self._catalog, self._learn = catalog, learn
        self.present: tuple[AdapterProfile, ...] = ()
        self.learned: tuple[AdapterProfile, ...] = ()
        self.labels = Labels(())
        self.flaw = ""  # why the present set could not be learned; empty if it was
        self._task: asyncio.Task[None] | None = None
        self._left: dict[tuple[Visible, str, str], frozenset[str]] = {}
        self._languages: tuple[object, frozenset[str]] = ((), frozenset())

    def start(self) -> None:
        """Take the present set as learned, then follow."""
        self._catalog.subscribe(self._changed)
        self.present = self.learned = self._catalog.profiles()
        self.labels = Labels(self.present)

    def _changed(self) -> None:
        present = self._catalog.profiles()
        if present == self.present:
            return
        self.present, self._left = present, {}
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow(), name="routing learns adapters")

    async def _follow(self) -> None:
        await asyncio.sleep(DEBOUNCE_SECONDS)
        while self.learned != self.present:
            try:
                await self._catch_up()
            except Exception as error:  # of any kind: else no change of adapters would be learned again
                if not self.flaw:
                    log.exception("adapters could not be learned; routing goes on with those from before")
                self.flaw = f"adapters that came or changed could not be learned: {problem_of(error)}"
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                self.flaw = ""

    async def _catch_up(self) -> None:
        target = self.present
        await self._learn(target)
        self.learned, self.labels = target, Labels(target)
        log.info("routing knows %d adapters", len(target))

    def candidates(self, hints: RoutingHints, visible: Visible) -> frozenset[str]:
        """Names of the adapters that a caller sees and hints leave. Raises what `narrow` does."""
        key = visible, hints.domain, hints.task
        if (known := self._left.get(key)) is not None:
            return known
        all_of_them = visible.everything
        there = self.present if all_of_them else tuple(p for p in self.present if p.name in visible)
        found = frozenset(profile.name for profile in narrow(there, hints))
        if len(self._left) >= MOST_KEPT:
            self._left.clear()
        self._left[key] = found
        return found

    @property
    def languages(self) -> frozenset[str]:
        """Of the examples of the adapters that were learned."""
        if self._languages[0] is not self.learned:
            self._languages = self.learned, languages_of_examples(self.learned)
        return self._languages[1]

    def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()


def languages_of_examples(profiles: Iterable[AdapterProfile]) -> frozenset[str]:
    """The languages that a good share of the adapters' examples are in."""
    texts = (text for profile in profiles for text in profile.examples[:OF_EACH])
    return languages_of(islice(texts, MOST_READ))


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
            more = f" and {len(have) - MOST_NAMED} more" if len(have) > MOST_NAMED else ""
            there = (", ".join(have[:MOST_NAMED]) or "none") + more
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
        self._names: set[str] = set()
        domains: dict[str, list[str]] = {}
        tasks: dict[str, list[str]] = {}
        for profile in profiles:
            self._names.add(profile.name)
            domains.setdefault(profile.domain, []).append(profile.name)
            tasks.setdefault(profile.task, []).append(profile.name)
        self._axes: Mapping[str, Sequence[str]] = {**tasks, **domains, "": []}

    def _adapters(self, label: str) -> Sequence[str]:
        return (label,) if label in self._names else self._axes.get(label, ())

    def spread(self, confidences: Mapping[str, float]) -> dict[str, float]:
        """Confidence of each adapter: its own label's if there is one, else the best of those it falls under.

        Labels that stand for no adapter are left out.
        """
        spread: dict[str, float] = {}
        for label, confidence in confidences.items():
            for adapter in self._adapters(label):
                if label == adapter or adapter not in confidences:
                    spread[adapter] = max(confidence, spread.get(adapter, 0.0))
        return spread
