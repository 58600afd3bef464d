"""A bandit's epochs: at the begin of each, new weights; within it, the same for everybody.

Weights are kept in the audit trail before they are used, so a server that starts again in the middle of an
epoch, and another server on the same database, divide units as before. The phase's first epoch has the
weights of the plan.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from router.errors import ExperimentNotFound, StoreDown
from router.experiments.live.bandit import seed_of, weights
from router.experiments.live.runtime import Experiments
from router.experiments.model import AuditEntry, Experiment, Lifecycle, Mode, Phase, Unanswered
from router.experiments.report import cohorts
from router.experiments.report.designed import metric_of
from router.experiments.reweighting import ACT, detail_of, kept
from router.experiments.stats import Moments
from router.experiments.store.port import Store

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
AHEAD_SECONDS = 5.0  # weights are made so long before their epoch, so that all of it has them


@dataclass(frozen=True, slots=True)
class Epoch:
    """Weights of the arms from `start` (unix seconds) to the start of the next epoch. The first is 0."""

    experiment: str
    phase: int
    number: int
    start: float
    weights: Mapping[str, float]


def number_at(phase: Phase, now: float) -> int:
    """The epoch that weights are due for: the present one, at its very end the next."""
    ahead = min(AHEAD_SECONDS, phase.spec.epoch / 10)
    return max(0, int((now + ahead - phase.started) // phase.spec.epoch))


def epoch_of(store: Store, experiment: Experiment, now: float) -> Epoch | None:
    """The epoch that a running bandit is in or about to enter; None where that is its first. Blocks.

    The first who asks in an epoch has its weights made. Raises StoreDown, ExperimentNotFound.
    """
    phase = experiment.phase
    if experiment.state is not Lifecycle.RUNNING or phase is None or phase.spec.mode is not Mode.BANDIT:
        return None
    if not (number := number_at(phase, now)):
        return None
    if (known := kept(store.trail(experiment.name), phase, number)) is None:
        store.audit(_entry(store, experiment, phase, number, now))
        known = kept(store.trail(experiment.name), phase, number)
    if known is None:
        raise StoreDown("an epoch's weights were written and cannot be read")
    return Epoch(experiment.name, phase.number, number, phase.started + number * phase.spec.epoch, known)


def _entry(store: Store, experiment: Experiment, phase: Phase, number: int, now: float) -> AuditEntry:
    spec, metric = phase.spec, metric_of(phase.spec.primary)
    arms = sums(store, experiment.name, phase, now)
    found = weights(metric, arms, spec.floor, seed_of(experiment.name, phase.number, number))
    units = {arm: int(moments.n) for arm, moments in arms.items()}
    said = ", ".join(f"{arm} {weight:.3f}" for arm, weight in found.items())
    detail = detail_of(phase, number, found, units)
    return AuditEntry(experiment.name, now, "rule", ACT, f"epoch {number}: {said}", detail)


def sums(store: Store, name: str, phase: Phase, now: float) -> dict[str, Moments]:
    """Each arm's sums of the primary metric.

    Where a unit without an outcome counts as 0, only of units whose window is over: an arm that got many new
    units would else look bad.
    """
    spec, metric = phase.spec, metric_of(phase.spec.primary)
    buckets = store.data(name, phase.number).buckets
    if spec.primary.missing is Unanswered.ZERO:
        buckets = cohorts.mature(buckets, now, spec.window)
    return {arm.name: cohorts.total(buckets, arm.name, metric) for arm in spec.arms}


class Epochs:
    """Gives every running bandit its weights in time. Lives on the event loop."""

    def __init__(self, live: Experiments, look_seconds: float = LOOK_SECONDS) -> None:
        self._live, self._look_seconds = live, look_seconds
        self._used: dict[tuple[str, int], int] = {}  # experiment and phase: epoch
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow the clock."""
        self._task = asyncio.create_task(self._run(), name="bandit epochs")

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            await self.look(time.time())
            await asyncio.sleep(self._look_seconds)

    async def look(self, now: float) -> None:
        """Use new weights where an epoch has begun. A store that is down leaves those in use."""
        for one in self._live.assigner.snapshot.all():
            if one.spec.mode is not Mode.BANDIT:
                continue
            try:
                await self._look_at(one.name, now)
            except (StoreDown, ExperimentNotFound) as error:
                log.debug("bandit %s keeps its weights: %s", one.name, error.message)
            except Exception:
                log.exception("bandit %s keeps its weights", one.name)

    async def _look_at(self, name: str, now: float) -> None:
        known = next((one for one in self._live.known if one.name == name), None)
        if known is None or (phase := known.phase) is None:
            return
        number = number_at(phase, now)
        if self._used.get((name, phase.number), 0) == number:
            return
        epoch = await asyncio.to_thread(self._read, known, now)
        if epoch is not None:
            self._live.assigner.reweight(name, epoch.phase, epoch.start, epoch.weights)
            self._used[name, epoch.phase] = epoch.number

    def _read(self, experiment: Experiment, now: float) -> Epoch | None:
        with self._live.availability.calling("read"):
            return epoch_of(self._live.store, experiment, now)
