"""Puts ExperimentService together from what runs, and into the server."""

from __future__ import annotations

import asyncio
import logging
import time

import grpc

from router.errors import StoreDown
from router.experiments.live.runtime import Experiments
from router.experiments.management.known import Known
from router.experiments.management.manager import Manager
from router.experiments.management.promotion import Promoter
from router.experiments.management.warnings import arm_warnings, plan_warnings
from router.experiments.model import Experiment
from router.experiments.report.build import report
from router.experiments.report.model import Report
from router.ports import AdapterRegistry
from router.server.experiments import ExperimentService
from router.server.experiments_off import ExperimentsOff
from router.server.on_loop import RegistryOnLoop
from router.server.outcomes import Intake
from router.server.store_threads import StoreThreads
from router.v1.experiments_pb2_grpc import add_ExperimentServiceServicer_to_server

log = logging.getLogger(__name__)


class ExperimentsServed:
    """The service of `live`, or the one that says that there are none."""

    def __init__(self, live: Experiments | None, registry: AdapterRegistry) -> None:
        self._live, self._registry = live, registry
        self._threads = StoreThreads()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service; on the event loop."""
        service = ExperimentsOff() if self._live is None else self._service(self._live)
        add_ExperimentServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Let the threads go."""
        self._threads.close()

    def _service(self, live: Experiments) -> ExperimentService:
        registry = RegistryOnLoop(self._registry, asyncio.get_running_loop())
        known = Known(registry.resolve, live.judges, live.classifiers)
        manager = Manager(live.store, known)

        def judged(experiment: Experiment) -> Report:
            return report(live.store, experiment.name, now=time.time(), points=0)

        def reported(name: str, phase: int) -> Report:
            return report(live.store, name, phase, now=time.time())

        async def changed() -> None:
            try:
                await live.refresh()
            except StoreDown as error:  # what was changed is kept, and taken over when the store is back
                log.warning("a change of experiments is not served yet: %s", error.message)

        def refused(number: int) -> None:
            live.counts.outcomes["invalid"] += number

        def warnings(experiment: Experiment) -> tuple[str, ...]:
            of_arms = arm_warnings(experiment.spec, self._registry.resolve)
            of_plan = plan_warnings(experiment.spec)
            return (*live.assigner.warnings(experiment.name), *of_plan, *of_arms)

        return ExperimentService(
            manager,
            Promoter(manager, registry, judged),
            reported,
            Intake(live.recorder, lambda: live.known, self._threads, refused),
            self._threads,
            changed,
            warnings,
        )
