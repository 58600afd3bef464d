"""The experiments of one server while it runs: kept in step with the store, asked at every request.

What is kept of one answer to an enrolled unit is a `Trial`: its exposures, and the outcomes that need no
client. Versions of arms are loaded when their experiment starts: no arm has slower first answers than
another.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from router.errors import RouterError, StoreDown
from router.experiments.live.assigner import (
    Assigner,
    Assignment,
    Counts,
    Outside,
    Running,
    Snapshot,
    holdout_problem,
    place_of,
    running_of,
)
from router.experiments.live.guardian import LOOK_SECONDS, Guardian, Judge
from router.experiments.live.recorder import FLUSH_SECONDS, Availability, Recorder
from router.experiments.model import BASE, SERVER_KEYS, Experiment, Exposure, Lifecycle, Outcome, SegmentSpec
from router.experiments.modes import MISSING, ExperimentMode, needed
from router.experiments.report.model import Report
from router.experiments.store.port import Store
from router.experiments.visibility import Visibility
from router.ports import AdapterRegistry, End, Exposed, Place, Served, Watcher
from router.types import AdapterRef, Decision, FinishReason, Request, RouterVariant, SamplingParams

if TYPE_CHECKING:
    from router.routing.router import Router

log = logging.getLogger(__name__)
POLL_SECONDS = 1.0  # a change at another edge holds here after so long at most, and the time to read it
START_SECONDS = 5.0
MAX_SEGMENT_BYTES = 64

ChooseRouter = Callable[[Request, "Router", bool], Awaitable[tuple[Decision, Assignment | None]]]


class Experiments:
    """Assigner, recorder, guardian and store of a server. `holdout` is the share of units in no experiment.

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
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self.store, self.counts = store, Counts()
        self.availability, self.assigner = Availability(), Assigner()
        self.recorder = Recorder(store, self.availability, self.counts)
        self.guardian = Guardian(
            store, self.assigner, self.counts, self.refresh, judge or self.judged, look_seconds
        )
        self.known: tuple[Experiment, ...] = ()  # all, as they were read last
        self.modes: Mapping[str, ExperimentMode] | None = None  # of plugins; None: whatever a plan needs
        self.routers: ChooseRouter | None = None
        self.beside: list[Callable[[Served], Watcher | None]] = []
        self.judges: Callable[[], Collection[str]] | None = None  # names that plans may use; None: any
        self.classifiers: Callable[[], Collection[str]] | None = None
        self._holdout, self._poll_seconds, self._flush_seconds = holdout, poll_seconds, flush_seconds
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
        """Stop following, and write what is queued: in `flush_seconds` altogether."""
        end = time.monotonic() + self._flush_seconds
        await leave_tasks(self._tasks)
        await self.guardian.rest()
        await self.recorder.close(max(1.0, end - time.monotonic()))
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
            self._warn_of_unserved()
        for changed in self._changed:
            changed(self.assigner.snapshot)

    def _read(self) -> tuple[tuple[Experiment, ...], list[Running]]:
        with self.availability.calling("read"):
            known = self.store.list()
            served = [one for one in known if not self._missing(one)]
            found = [running_of(one, self._salt, self._holdout) for one in served]
        return known, [one for one in found if one is not None]

    def has_mode(self, mode: str) -> bool:
        """Whether there is a plugin for a mode."""
        return self.modes is None or mode in self.modes

    def _missing(self, one: Experiment) -> str:
        """Why an experiment is not served: its plugin is not there. Empty if it is served."""
        mode = needed(one.spec)
        return "" if not mode or self.has_mode(mode) else f"not served: {MISSING[mode]}"

    def _warn_of_unserved(self) -> None:
        for one in self.known:
            problem = self._missing(one) or holdout_problem(one.spec, self._holdout)
            if problem and one.state is Lifecycle.RUNNING:
                self.assigner.suspect(one.name, problem)

    def judged(self, name: str) -> Report:
        """The report of the last phase, without points. Blocks. Raises as `report.build.report`."""
        return self.reported(name, points=False)

    def reported(self, name: str, phase: int = 0, points: bool = True) -> Report:
        """The report of a phase, 0 the last one. Blocks. Raises as `report.build.report`."""
        from router.experiments.report.build import POINTS, report  # numpy, only where something is judged

        judges = {mode: one.judge for mode, one in (self.modes or {}).items()}
        most = POINTS if points else 0
        return report(self.store, name, phase, now=time.time(), points=most, judges=judges)

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

    async def choose(
        self, request: Request, router: Router, counted: bool = True
    ) -> tuple[Decision, Assignment | None]:
        """As `ports.Experiments`: a router experiment chooses the router, then a route's one the version."""
        if self.routers is None:
            decision, found = await router.route(request), None
        else:
            decision, found = await self.routers(request, router, counted)
        if found is None:
            found = self.assign(request, decision, counted)
        if found is None:
            return decision, None
        name, spec = found.running.name, found.running.spec
        secret = not Visibility(request.visible, request.experiments).tells(name, spec)
        return replace(decision, experiment=name, arm=found.arm.name, secret=secret), found

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

    def places(self, request: Request) -> list[Place]:
        """As `ports.Experiments`: of each experiment alone, as for a request that comes to it."""
        if not self.availability.up:
            raise StoreDown(self.availability.problem)
        visibility, now = Visibility(request.visible, request.experiments), time.time()
        seen = {one.name for one in self.known if visibility.sees(one)}
        running = [one for one in self.assigner.snapshot.all() if one.name in seen]
        return [place_of(one, request, now) for one in running if one.assigns or one.of_holdout]

    def watchers(self, served: Served) -> list[Watcher]:
        """All who want to know how this answer goes."""
        shown = list(self._shown(served))
        found: list[Watcher] = [Trial(self.recorder, served, shown)] if shown else []
        for begin in self.beside:
            try:
                watcher = begin(served)
            except Exception:  # what runs beside an answer never costs the user the answer
                log.exception("something beside an answer could not begin; the answer goes on")
            else:
                found.extend(() if watcher is None else (watcher,))
        return found

    def _shown(self, served: Served) -> Iterator[Shown]:
        """In its own experiment, and in those on the holdout."""
        base = self._base_digest()
        if isinstance(one := served.assignment, Assignment):
            adapter = served.decision.digest if served.decision.adapter and not served.degraded else ""
            yield Shown(one, adapter, base, self._router_digest(one.arm.router), served.degraded)
        if self.availability.up:
            for one in self.assigner.holdouts(served.request, route_of(served), time.time()):
                yield Shown(one, "", base, self._router_digest(None))

    def _skipped(self, decision: Decision) -> None:
        route = decision.adapter.name if decision.adapter else BASE
        for one in self.assigner.snapshot.split.get(route, ()):
            self.counts.skipped[one.name] += 1


@dataclass(frozen=True, slots=True)
class Shown:
    """An experiment that an answer is an exposure in. `adapter` is the digest of the arm's own adapter: what
    stands in for it is not what is tested, and everything is where nothing of an arm's own is."""

    assignment: Assignment
    adapter: str
    base: str
    router: str
    degraded: str = ""


class Trial:
    """A watcher. Nothing is kept of an answer that never began: nobody was shown anything."""

    def __init__(self, recorder: Recorder, served: Served, shown: Sequence[Shown]) -> None:
        self._recorder, self._served, self._shown = recorder, served, shown
        self._began = False

    def began(self) -> None:
        """The arm, or what stands in for it, has begun to answer."""
        self._began = True
        now, counts = time.time(), self._recorder.counts
        for one in self._shown:
            exposure = self._exposure(one, now)
            counts.exposures[exposure.experiment, exposure.arm] += 1
            if one.degraded:
                counts.degraded[exposure.experiment, exposure.arm] += 1
            self._recorder.expose(exposure)
            self._served.exposed(
                Exposed(exposure.experiment, exposure.phase, exposure.arm, exposure.unit, now, one.degraded)
            )

    def _exposure(self, one: Shown, now: float) -> Exposure:
        running, request = one.assignment.running, self._served.request
        return Exposure(
            experiment=running.name,
            phase=running.phase,
            unit=one.assignment.unit,
            arm=one.assignment.arm.name,
            time=now,
            response_id=request.request_id,
            propensity=one.assignment.propensity,
            adapter_digest=one.adapter,
            base_digest=one.base,
            router_digest=one.router,
            sampling=sampling_json(self._served.params),
            degraded=one.degraded,
            segments=segments_of(running.spec.segments, request.labels),
        )

    def ended(self, end: End) -> None:
        """Keep the built-in outcomes, once for all experiments: those of a response count in each."""
        if self._began:
            self._recorder.observe(built_in_outcomes(self._served.request.request_id, end, time.time()))


def route_of(served: Served) -> str:
    """The route before an experiment's arm took its place."""
    arm = served.assignment
    if isinstance(arm, Assignment) and not arm.running.by_router:
        return arm.running.spec.route
    return served.decision.adapter.name if served.decision.adapter else BASE


def segments_of(segments: Iterable[SegmentSpec], labels: Mapping[str, str]) -> dict[str, str]:
    """Label -> value of the request's labels that a plan names; those that are missing or empty are left out.

    A value is cut to `MAX_SEGMENT_BYTES` bytes between two characters. What no database takes in a text (the
    character NUL, half a surrogate pair) becomes a character that stands for it.
    """
    return {one.label: _storable(value) for one in segments if (value := labels.get(one.label))}


def _storable(value: str) -> str:
    whole = value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace")
    return whole[:MAX_SEGMENT_BYTES].decode("utf-8", "ignore")


def built_in_outcomes(response_id: str, end: End, now: float) -> tuple[Outcome, ...]:
    """`model.BUILT_IN` of one response. An answer that broke off counts with what was given until then."""
    usage = end.usage
    values: dict[str, float] = {
        "total_time": usage.total_time,
        "completion_tokens": usage.completion_tokens,
        "length_stop": end.reason is FinishReason.LENGTH,
        "error": bool(end.error),
        "cancelled": end.cancelled,
    }
    if usage.completion_tokens:
        values["time_to_first_token"] = usage.time_to_first_token
    return tuple(
        Outcome(f"{SERVER_KEYS}{metric}:{response_id}", metric, float(value), now, response_id=response_id)
        for metric, value in values.items()
    )


@lru_cache(maxsize=256)
def sampling_json(params: SamplingParams) -> str:
    """Sampling as JSON, keys in order; what is off is left out. Of a constraint it says the kind."""
    said = {f.name: value for f in fields(params) if (value := getattr(params, f.name)) not in (None, (), 0)}
    if params.constraint is not None:
        said["constraint"] = params.constraint.kind
    return json.dumps(said, sort_keys=True)


async def leave_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel them all, and wait until they have gone."""
    left = tuple(tasks)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)


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
