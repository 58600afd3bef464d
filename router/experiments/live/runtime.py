"""The experiments of one server while it runs: kept in step with the store, asked at every request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection

from router.errors import StoreDown
from router.experiments.live.assigner import Assigner, Assignment, Outside
from router.experiments.live.availability import Availability
from router.experiments.live.counts import Counts
from router.experiments.live.guardian import LOOK_SECONDS, Guardian, Judge
from router.experiments.live.recorder import Recorder
from router.experiments.live.snapshot import BASE, Running, Snapshot, running_of
from router.experiments.live.tasks import leave
from router.experiments.live.trial import Trial
from router.experiments.live.watch import Served, Watcher
from router.experiments.model import Experiment, RouterVariant
from router.experiments.store.port import Store
from router.ports import RequestRouter
from router.types import Decision, Request

log = logging.getLogger(__name__)
POLL_SECONDS = 2.0
START_SECONDS = 5.0

ChooseRouter = Callable[[Request, RequestRouter, bool], Awaitable[tuple[Decision, Assignment | None]]]


class Experiments:
    """Assigner, recorder and store of a server. `holdout` is the share of units in no experiment.

    `base_digest` and `router_digest` say what is served besides the adapter; they go into every exposure. An
    arm may have another configuration of the router.
    """

    def __init__(
        self,
        store: Store,
        *,
        holdout: float = 0.0,
        poll_seconds: float = POLL_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        judge: Judge | None = None,
        base_digest: Callable[[], str] = str,
        router_digest: Callable[[RouterVariant | None], str] = lambda _: "",
    ) -> None:
        self.store, self.counts = store, Counts()
        self.availability, self.assigner = Availability(), Assigner()
        self.recorder = Recorder(store, self.availability, self.counts)
        self.guardian = Guardian(store, self.assigner, self.counts, self.refresh, judge, look_seconds)
        self.known: tuple[Experiment, ...] = ()  # all, as they were read last
        self.routers: ChooseRouter | None = None
        self.beside: list[Callable[[Served], Watcher | None]] = []
        self.judges: Callable[[], Collection[str]] | None = None  # names that plans may use; None: any
        self.classifiers: Callable[[], Collection[str]] | None = None
        self.draining = False  # cancelled from now on is cancelled by the server
        self._holdout, self._poll_seconds = holdout, poll_seconds
        self._base_digest, self._router_digest = base_digest, router_digest
        self._salts: dict[str, str] = {}
        self._changed: list[Callable[[Snapshot], None]] = []
        self._lock = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Read what runs and follow it. A store that is down stops nobody: it is tried again."""
        self.recorder.start()
        first = asyncio.create_task(self._attempt(), name="experiments")
        await asyncio.wait({first}, timeout=START_SECONDS)
        self._tasks = [
            first,
            asyncio.create_task(self._follow(), name="experiments poll"),
            asyncio.create_task(self.guardian.run(), name="experiments guardian"),
        ]

    async def close(self) -> None:
        """Stop following, and write what is queued."""
        await leave(self._tasks)
        await self.recorder.close()
        await asyncio.to_thread(self.store.close)

    def subscribe(self, changed: Callable[[Snapshot], None]) -> None:
        """`changed` is called on the event loop when other experiments, phases or shares run, and now if
        there are any."""
        self._changed.append(changed)
        if self.running:
            changed(self.assigner.snapshot)

    async def refresh(self) -> None:
        """Take over what the store says; call it after every change. Raises StoreDown."""
        async with self._lock:
            known, running = await asyncio.to_thread(self._read)
            if known == self.known:
                return
            self.known = known
            self.assigner.use(running)
        for changed in self._changed:
            changed(self.assigner.snapshot)

    def _read(self) -> tuple[tuple[Experiment, ...], list[Running]]:
        with self.availability.calling("read"):
            known = self.store.list()
            found = [running_of(one, self._salt, self._holdout) for one in known]
        return known, [one for one in found if one is not None]

    def _salt(self, purpose: str) -> str:
        """Kept for ever by the store, so asked for once."""
        if purpose not in self._salts:
            self._salts[purpose] = self.store.salt(purpose)
        return self._salts[purpose]

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            await self._attempt()

    async def _attempt(self) -> None:
        try:
            await self.refresh()
        except StoreDown as error:
            log.debug("store down: %s", error.message)  # availability tells it once
        except Exception:
            log.exception("experiments could not be read; those known go on")
        self.availability.tell()

    @property
    def running(self) -> bool:
        """Whether a request has to be asked about at all."""
        return bool(self.assigner.snapshot)

    def assign(self, request: Request, decision: Decision, counted: bool = True) -> Assignment | None:
        """The arm of a request that routing has placed; None if it takes no part.

        Without `counted` nothing will be generated, and metrics stay as they are.
        """
        if not self.availability.up:
            if counted:
                self._skipped(decision)
            return None
        found = self.assigner.assign(request, decision, time.time())
        return self.admitted(found, counted)

    def admitted(self, found: Assignment | Outside | None, counted: bool = True) -> Assignment | None:
        """The assignment, if it is one; a missing unit is counted."""
        if isinstance(found, Outside):
            if counted:
                self.counts.unit_missing[found.experiment] += 1
            return None
        return found

    def watchers(self, served: Served) -> list[Watcher]:
        """All who want to know how this answer goes."""
        found: list[Watcher] = []
        if served.assignment is not None:
            digests = self._base_digest(), self._router_digest(served.assignment.arm.router)
            found.append(Trial(self.recorder, served, served.assignment, digests))
        for begin in self.beside:
            try:
                watcher = begin(served)
            except Exception:  # what runs beside an answer never costs the user the answer
                log.exception("something beside an answer could not begin; the answer goes on")
            else:
                found.extend(() if watcher is None else (watcher,))
        return found

    def _skipped(self, decision: Decision) -> None:
        route = decision.adapter.name if decision.adapter else BASE
        for one in self.assigner.snapshot.split.get(route, ()):
            self.counts.skipped[one.name] += 1
