"""Experiments as a server has them: what runs, its service and metrics, and what runs beside answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as NotInTime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.errors import StoreDown, Unavailable
from router.experiments.live.runtime import Experiments, WarmArms
from router.experiments.live.shadow import AskJudge, ShadowAnswers, Shadows
from router.experiments.management.manager import Manager
from router.experiments.management.plans import Known, arm_warnings, plan_warnings
from router.experiments.management.promotion import Promoter
from router.experiments.model import Experiment
from router.experiments.modes import ROUTERS, ExperimentMode, MakeMode
from router.experiments.report.model import Report
from router.experiments.service.outcomes import Intake, StoreThreads
from router.experiments.service.service import ExperimentService, current_visibility
from router.ports import AdapterRegistry, Assignment, Force, Place, Served, Watcher
from router.server.call import present_client
from router.types import AdapterInfo, AdapterRef, Decision, Request

if TYPE_CHECKING:
    from router.routing.router import Router

log = logging.getLogger(__name__)
LOOP_SECONDS = 10.0  # for the event loop to come to a call
ARM = ("experiment", "arm")
P = ParamSpec("P")
T = TypeVar("T")


class ServedExperiments:
    """Follows `ports.Experiments`: `live` with its service, metrics, and what runs beside answers.

    `close` on the event loop, after the server has stopped.
    """

    def __init__(self, live: Experiments) -> None:
        self.live = live
        self.modes: Modes | None = None
        self._threads = StoreThreads()

    async def start(self) -> None:
        """Read what runs and follow it."""
        await self.live.start()
        if self.modes is not None:
            self.modes.start()

    async def close(self) -> None:
        """Drop what runs beside answers, and write what is queued."""
        if self.modes is not None:
            await self.modes.close()
        await self.live.close()
        self._threads.close()

    @property
    def running(self) -> bool:
        """As the port says."""
        return self.live.running

    async def choose(
        self, request: Request, router: Router, counted: bool
    ) -> tuple[Decision, Assignment | None]:
        """As the port says."""
        return await self.live.choose(request, router, counted)

    def watchers(self, served: Served) -> Sequence[Watcher]:
        """As the port says."""
        return self.live.watchers(served)

    def places(self, request: Request) -> Sequence[Place]:
        """As the port says."""
        return self.live.places(request)

    def observe(self, observer: Callable[[Report], None]) -> None:
        """Have `observer` called with the report of each look at a running experiment, in a thread."""
        self.live.guardian.observers.append(observer)

    async def rest(self) -> None:
        """Judge no running experiment any more, and wait for what is being judged, for seconds at most."""
        await self.live.guardian.rest()

    @property
    def problem(self) -> str:
        """Why they are off for now, as while their store is down; empty if all is well."""
        return self.live.availability.problem

    @property
    def summary(self) -> str:
        """As the port says."""
        if self.problem:
            return f"off until the store answers: {self.problem}"
        return f"{len(self.live.assigner.snapshot.all())} of {len(self.live.known)} running"

    @property
    def metrics(self) -> Collector:
        """Their numbers, read at every scrape."""
        return ExperimentMetrics(self.live)

    def service(self, registry: AdapterRegistry) -> ExperimentService:
        """ExperimentService; versions of arms are kept in memory from now on. On the event loop."""
        live = self.live
        live.subscribe(WarmArms(registry))
        from_thread = RegistryOnLoop(registry, asyncio.get_running_loop())
        known = Known(
            from_thread.resolve,
            live.judges,
            live.classifiers,
            lambda one: current_visibility().sees(one),
            live.has_mode,
        )
        manager = Manager(live.store, known)

        async def changed() -> None:
            try:
                await live.refresh()
            except StoreDown as error:  # what was changed is kept, and taken over when the store is back
                log.warning("a change of experiments is not served yet: %s", error.message)

        def refused(number: int) -> None:
            live.counts.outcomes["invalid"] += number

        def warnings(experiment: Experiment) -> tuple[str, ...]:
            seen = present_client().adapters
            of_arms = arm_warnings(
                experiment.spec, lambda name, version="": registry.resolve(name, version, seen)
            )
            of_plan = plan_warnings(experiment.spec, manager.rates.get(experiment.name))
            return (*live.assigner.warnings(experiment.name), *of_plan, *of_arms)

        return ExperimentService(
            manager,
            Promoter(manager, from_thread, lambda experiment: live.judged(experiment.name)),
            live.reported,
            Intake(live.recorder, lambda: live.known, self._threads, refused),
            self._threads,
            changed,
            warnings,
        )


class Modes:
    """What experiments do beside a plain split: shadow arms, and the modes of plugins, hooked into `live`.

    `start` and `close` on the event loop, `close` before that of `live`.
    """

    def __init__(
        self,
        live: Experiments,
        router: Router,
        answers: ShadowAnswers,
        judge: AskJudge,
        modes: Mapping[str, MakeMode],
    ) -> None:
        self._shadows = Shadows(live, answers, judge)
        live.modes = self._modes = dict(_made(live, router, modes))
        if ROUTERS in self._modes:
            live.routers = self._modes[ROUTERS].choose
        live.beside += [*(mode.beside for mode in self._modes.values()), self._shadows]

    def start(self) -> None:
        """Begin what runs beside requests."""
        for mode in self._modes.values():
            mode.start()

    async def close(self) -> None:
        """Drop what is under way."""
        for mode in self._modes.values():
            await mode.close()
        await self._shadows.close()


def _made(
    live: Experiments, router: Router, modes: Mapping[str, MakeMode]
) -> Iterator[tuple[str, ExperimentMode]]:
    """One that cannot be made is left out, and logged."""
    for name, make in modes.items():
        try:
            yield name, make(live, router)
        except Exception:
            log.exception("the mode %s of experiments cannot be made", name)


class ExperimentMetrics(Collector):
    """Labels are names that operators gave, so there are few."""

    def __init__(self, experiments: Experiments) -> None:
        self._experiments = experiments

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now."""
        live, counts = self._experiments, self._experiments.counts
        one = ("experiment",)
        yield _counter("exposures", "Answers that an arm began.", ARM, counts.exposures)
        yield _counter("degraded", "Of these, answered by something else.", ARM, counts.degraded)
        yield _counter("unit_missing", "Requests without a unit.", one, counts.unit_missing)
        yield _counter("skipped", "Requests served without, the store was down.", one, counts.skipped)
        shadows = "Shadow answers and what came of them."
        yield _counter("shadows", shadows, (*ARM, "result"), counts.shadows)
        yield _counter("acts", "What rules did by themselves.", ("experiment", "act"), counts.acts)
        yield _counter("outcomes", "Outcomes of clients.", ("status",), counts.outcomes)
        yield _counter("lost", "Records that were not kept.", ("kind",), counts.lost)
        running = len(live.assigner.snapshot.all())
        yield GaugeMetricFamily("lora_router_experiments_running", "Experiments that assign.", running)
        yield GaugeMetricFamily("lora_router_experiment_queue", "Records to write.", live.recorder.queued)
        yield GaugeMetricFamily("lora_router_experiment_store_up", "1 if it answers.", live.availability.up)


def _counter(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"lora_router_experiment_{name}", text, labels=labels)
    for key, value in tuple(values.items()):
        family.add_metric([str(k) for k in (key if isinstance(key, tuple) else (key,))], value)
    return family


class RegistryOnLoop:
    """What experiments ask of the registry, as far as the caller may know of it. Call it from a thread, never
    on the loop itself.

    Raises Unavailable where the loop does not come to it in ten seconds.
    """

    def __init__(self, registry: AdapterRegistry, loop: asyncio.AbstractEventLoop) -> None:
        self._registry, self._loop = registry, loop

    def resolve(self, name: str, version: str = "", /) -> AdapterInfo:
        """As `Catalog.resolve`."""
        return self._call(self._registry.resolve, name, version, present_client().adapters)

    def get(self, name: str, version: str = "", /) -> AdapterInfo:
        """As `AdapterRegistry.get`."""
        return self._call(self._registry.get, name, version, present_client().adapters)

    def set_default(
        self, ref: AdapterRef, etag: str = "", force: Force | None = None, /
    ) -> tuple[AdapterInfo, AdapterRef | None]:
        """As `AdapterRegistry.set_default`."""
        return self._done(self._registry.set_default(ref, etag, force))

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        async def call() -> T:
            return function(*args, **kwargs)

        return self._done(call())

    def _done(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(LOOP_SECONDS)
        except NotInTime:
            future.cancel()
            raise Unavailable(f"the server did not come to it in {LOOP_SECONDS:g} s") from None
