"""Looks at the running experiments again and again, and stops what does harm."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from router.errors import ExperimentNotFound, StaleEtag, StoreDown
from router.experiments.assignment import never_repeats
from router.experiments.live.assigner import Assigner
from router.experiments.live.counts import Counts
from router.experiments.live.rules import Act, act_on
from router.experiments.report.model import Report
from router.experiments.store.port import Store

log = logging.getLogger(__name__)
LOOK_SECONDS = 10.0

Judge = Callable[[str], Report]


class Guardian:
    """`judge` gives the report of an experiment's last phase and blocks; `refresh` takes over a change."""

    def __init__(
        self,
        store: Store,
        assigner: Assigner,
        counts: Counts,
        refresh: Callable[[], Awaitable[None]],
        judge: Judge | None = None,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._store, self._assigner, self._counts, self._refresh = store, assigner, counts, refresh
        self._judge = judge or self._report
        self._look_seconds = look_seconds

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self._look_seconds)
            await self.look()

    async def look(self) -> None:
        """Look at every running experiment once. What fails for one is logged, and tried at the next look."""
        for one in self._assigner.snapshot.all():
            try:
                await self._look_at(one.name)
            except (StaleEtag, ExperimentNotFound):
                log.info("experiment %s was changed meanwhile; it is looked at again", one.name)
            except StoreDown as error:
                log.debug("no look at experiments: %s", error.message)
                return
            except Exception:
                log.exception("experiment %s could not be judged", one.name)

    async def _look_at(self, name: str) -> None:
        report, act = await asyncio.to_thread(self._judge_and_act, name)
        answers, units = sum(n.responses for n in report.numbers), sum(n.units for n in report.numbers)
        if never_repeats(answers, units):
            text = "hardly any unit comes again, as if units were request ids"
            self._assigner.suspect(name, text)
        if act is None:
            return
        self._counts.acts[name, act.entry.act] += 1
        log.warning("experiment %s: %s: %s", name, act.entry.act, act.entry.reason)
        if act.experiment is not None:
            await self._refresh()

    def _judge_and_act(self, name: str) -> tuple[Report, Act | None]:
        report = self._judge(name)
        act = act_on(report, time.time())
        if act is not None and act.experiment is not None:
            self._store.replace(act.experiment, act.entry)
        elif act is not None:
            self._store.audit(act.entry)
        return report, act

    def _report(self, name: str) -> Report:
        from router.experiments.report.build import report  # numpy, only where something is judged

        return report(self._store, name, now=time.time(), points=0)
