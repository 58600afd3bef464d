"""Warm-up and fit of one classifier, in a thread beside the one that answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from router.classifiers.contract import BaseModel, Classifier
from router.classifiers.isolation import await_in_thread, fault_of
from router.classifiers.registration import Registration
from router.errors import NotFound
from router.ports import Catalog
from router.types import AdapterProfile, RoutingHints

# Labels of classifiers and hints of callers, as sets of adapters.


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


# What routing knows of the adapters: the set at this moment, and the set the classifiers have learned.


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


BaseFor = Callable[[float], BaseModel]  # the base for a classifier with this timeout in seconds
NO_BASE = "needs the base model, and there is no engine in this process"


class Fitter:
    """Keeps a classifier fitted to the newest profiles wanted; never two fits at once.

    Requests go on with the last fit meanwhile, so `fit` must build its state aside and assign it at
    once. A fit that fails leaves the last one in use; a classifier that was never fitted is not asked.
    """

    def __init__(self, registration: Registration, base_for: BaseFor | None = None) -> None:
        kind = type(registration.classifier)
        self._registration = registration
        self._base = base_for(registration.timeout) if base_for and registration.wants_base else None
        self._cold = kind.warmup is not Classifier.warmup or registration.wants_base
        self._learns = kind.fit is not Classifier.fit
        self._wanted: tuple[AdapterProfile, ...] | None = None
        self._target: tuple[AdapterProfile, ...] | None = None
        self._task: asyncio.Task[None] | None = None
        self.ready = not self._cold and not self._learns
        registration.health.state = "ready" if self.ready else "starting"

    def want(self, profiles: Sequence[AdapterProfile]) -> None:
        """Fit to `profiles` as soon as the fit in progress, if any, is over."""
        if not self._learns and self.ready:
            return
        if self._base is None and self._registration.wants_base:
            self._registration.health.state, self._registration.health.fit_error = "failed", NO_BASE
            return
        if tuple(profiles) == self._target and (self.ready or self.running):
            return
        self._wanted = self._target = tuple(profiles)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"fit {self._registration.name}")

    @property
    def running(self) -> asyncio.Task[None] | None:
        """The fit in progress, to wait for."""
        return self._task if self._task is not None and not self._task.done() else None

    async def _run(self) -> None:
        while self._wanted is not None:
            profiles, self._wanted = self._wanted, None
            await self._fit(profiles)

    async def _fit(self, profiles: tuple[AdapterProfile, ...]) -> None:
        health, classifier = self._registration.health, self._registration.classifier

        def work() -> None:
            if self._cold:
                if self._base is not None:
                    classifier.bind(self._base)
                classifier.warmup()
            classifier.fit(profiles)

        try:
            await await_in_thread(work, f"fit {self._registration.name}")
        except BaseException as error:
            if _cancelled():
                raise
            health.fit_error = f"{fault_of(error)}: {error}"[:500]
            health.state = "ready" if self.ready else "failed"
            self._target = None
            log.warning("classifier %s could not be fitted: %s", self._registration.name, health.fit_error)
            return
        self._cold, self.ready = False, True
        health.fit_error, health.state = "", "ready"

    def close(self) -> None:
        """Wait for no fit any more."""
        if self._task is not None:
            self._task.cancel()


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
