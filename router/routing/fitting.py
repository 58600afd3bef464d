"""Warm-up and fit of one classifier, in a thread beside the one that answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from router.plugins.registration import Registration
from router.plugins.threads import await_in_thread
from router.routing.base_model import BaseModel
from router.routing.classifier import Classifier
from router.routing.faults import place
from router.types import AdapterProfile

log = logging.getLogger(__name__)
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
            health.fit_error = f"{place(error)}: {error}"[:500]
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
