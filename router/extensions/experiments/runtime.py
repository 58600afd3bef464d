"""The experiments of one server while it runs: kept in step with the store, consulted at every request.

The life of a request in an experiment (`router/server/pipeline.py`):

1. Routing decides.
2. Then `Assigner.assign` gives the arm, or says why there is none. It reads an immutable `Snapshot` and never
   the store. Shadow experiments assign nobody, and neither do those on the holdout: `Assigner.holdouts` gives
   the side of a unit, which changes no answer.
3. The pipeline leases the arm's version. An arm that cannot answer stays the arm of the request: control's
   version, then the version that routing chose, stand in, and the exposure says `degraded`.
4. `LiveExperiments.watchers` gives what watches the answer: a `Trial` for exposures and built-in outcomes.
   Shadows start there, and compare when the served answer has ended. A request that ends before the engine
   takes it goes to `unserved`: it is an exposure of its arm all the same.
5. `Recorder` puts everything on one ordered queue that a thread writes to the store in batches.
6. `Guardian` looks at the report of each running experiment at intervals, and stops what does harm by rule.
   Rules rest on verdicts alone, never on an interval that the report shows.

A store that is down: from the first call that fails (or takes longer than `PATIENCE`) until one works again,
nobody is assigned; requests are served as routing decides and are counted as skipped. What was queued is
kept, up to the limit of the queue, and written when the store is back. Outcomes of clients are refused with
StoreDown, so that they are sent again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from router.errors import ExperimentNotFound, Overloaded, StaleEtag, StoreDown
from router.extensions.experiments.assignment import (
    ArmAssignment,
    Assigner,
    Outside,
    RunningExperiment,
    Snapshot,
    holdout_problem,
    never_repeats,
    running_of,
)
from router.extensions.experiments.model import (
    BASE,
    FEEDBACK,
    RULE,
    SERVER_KEYS,
    AuditEntry,
    Experiment,
    Lifecycle,
    Mode,
    StoredOutcome,
)
from router.extensions.experiments.phases import opened, stopped, without_arms
from router.extensions.experiments.recorder import (
    FLUSH_SECONDS,
    Availability,
    Recorder,
    ServingCounts,
    Shown,
    Trial,
)
from router.extensions.experiments.report.model import ArmReport, Report, Ruling
from router.extensions.experiments.store.store import ExperimentStore
from router.extensions.experiments.visibility import Visibility
from router.ports import End, Place, Served, Watcher
from router.types import Decision, Request

if TYPE_CHECKING:
    from router.ports import Routing

log = logging.getLogger(__name__)
STORE_DOWN = "the store of experiments does not answer"
POLL_SECONDS = 1.0  # a change at another edge holds here after so long at most, and the time to read it
START_SECONDS = 5.0
P = ParamSpec("P")
T = TypeVar("T")
LOOK_SECONDS, CLOSE_SECONDS = 10.0, 2.0
THREADS, WAITING = 4, 64
HARM, INVALID = "stop for harm", "invalid"
Judge = Callable[[str], Report]


class LiveExperiments:
    """Assigner, recorder, guardian and store of a server. `holdout` is the share of units in no experiment.

    `base_digest` and `router_digest` say what is served besides the adapter; they go into every exposure.
    """

    def __init__(
        self,
        store: ExperimentStore,
        *,
        holdout: float = 0.0,
        poll_seconds: float = POLL_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        judge: Judge | None = None,
        base_digest: Callable[[], str] = str,
        router_digest: Callable[[], str] = str,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self.store, self.counts = store, ServingCounts()
        self.availability, self.assigner = Availability(), Assigner()
        self.recorder = Recorder(store, self.availability, self.counts)
        self.guardian = Guardian(
            store, self.assigner, self.counts, self.refresh, judge or self.judged, look_seconds
        )
        self.threads = StoreThreads()
        self.known: tuple[Experiment, ...] = ()  # all, as they were read last
        self.running = False  # whether a request may have an arm at all
        self.beside: list[Callable[[Served], Watcher | None]] = []  # each may return a watcher of an answer
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
        self.threads.close()

    @property
    def problem(self) -> str:
        """Why they are off for now, as while their store is down; empty if all is well."""
        return self.availability.problem

    @property
    def flaw(self) -> str:
        """The same for a server's health: without an address."""
        return STORE_DOWN if self.availability.down else ""

    @property
    def summary(self) -> str:
        """As the port says."""
        if self.problem:
            return f"off until the store answers: {self.problem}"
        return f"{len(self.assigner.snapshot.all())} of {len(self.known)} running"

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
            self.running = bool(self.assigner.snapshot)
            self._warn_of_unserved()
        for changed in self._changed:
            changed(self.assigner.snapshot)

    def _read(self) -> tuple[tuple[Experiment, ...], list[RunningExperiment]]:
        with self.availability.calling("read"):
            known = self.store.list()
            found = [running_of(one, self._salt, self._holdout) for one in known]
        return known, [one for one in found if one is not None]

    def _warn_of_unserved(self) -> None:
        for one in self.known:
            problem = holdout_problem(one.spec, self._holdout)
            if problem and one.state is Lifecycle.RUNNING:
                self.assigner.suspect(one.name, problem)

    def judged(self, name: str) -> Report:
        """The report of the last phase, without details. Blocks. Raises as `report.build.report`."""
        return self.reported(name, details=False)

    def reported(self, name: str, phase: int = 0, details: bool = True) -> Report:
        """The report of a phase, 0 the last one. Blocks. Raises as `report.build.report`."""
        from router.extensions.experiments.report.build import report  # numpy, only where something is judged

        return report(self.store, name, phase, now=time.time(), details=details)

    def _salt(self, purpose: str) -> str:
        """Kept for ever by the store, so read once."""
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
            log.debug("store down: %s", error.message)  # availability logs it once
        except Exception:
            log.exception("experiments could not be read; those known go on")
        self.availability.tell()

    async def choose(
        self, request: Request, router: Routing, counted: bool = True
    ) -> tuple[Decision, ArmAssignment | None]:
        """As `ports.Experiments`: the router chooses the route, an experiment on it the version."""
        decision = await router.route(request)
        found = self.assign(request, decision, counted)
        if found is None:
            return decision, None
        name, spec = found.running.name, found.running.spec
        secret = not Visibility(request.visible, request.experiments).sees_plan(name, spec)
        return replace(decision, experiment=name, arm=found.arm.name, secret=secret), found

    def assign(self, request: Request, decision: Decision, counted: bool = True) -> ArmAssignment | None:
        """The arm of a request that routing has placed; None if it takes no part.

        Without `counted` nothing will be generated, and metrics stay as they are.
        """
        if not self.availability.up:
            if counted:
                self._skipped(decision)
            return None
        found = self.assigner.assign(request, decision)
        if isinstance(found, Outside):
            if counted:
                self.counts.unit_missing[found.experiment] += 1
            return None
        return found

    def places(self, request: Request) -> list[Place]:
        """As `ports.Experiments`: of each experiment alone, as for a request that comes to it."""
        if down := self.availability.down:
            raise down
        visibility = Visibility(request.visible, request.experiments)
        seen = {one.name for one in self.known if visibility.sees(one)}
        running = [one for one in self.assigner.snapshot.all() if one.name in seen]
        return self.assigner.places((one for one in running if one.assigns or one.of_holdout), request)

    def watchers(self, served: Served) -> list[Watcher]:
        """All who want to know how this answer goes."""
        shown = list(self._shown(served))
        found: list[Watcher] = [Trial(self.recorder, served, shown)] if shown else []
        for begin in self.beside:
            try:
                watcher = begin(served)
            except Exception:  # what watches an answer never costs the user the answer
                log.exception("a watcher of an answer could not begin; the answer goes on")
            else:
                found.extend(() if watcher is None else (watcher,))
        return found

    def feedback(self, response_id: str, value: float) -> None:
        """As `ports.Experiments`. Where no plan reads it, nothing is queued."""
        of_plans = (phase.spec for one in self.known for phase in one.phases[-1:])
        if any(metric.name == FEEDBACK for spec in of_plans for metric in spec.metrics):
            key = f"{SERVER_KEYS}{FEEDBACK}:{response_id}"
            now = time.time()
            self.recorder.observe([StoredOutcome(key, FEEDBACK, value, now, response_id=response_id)])

    def unserved(self, served: Served, end: End) -> None:
        """Keep the exposures of a request that ended before the engine took it, and how it ended."""
        try:
            if shown := [replace(one, adapter="", degraded="") for one in self._shown(served)]:
                Trial(self.recorder, served, shown).ended(end)
        except Exception:  # it costs the user nothing but the answer that there is none of
            log.exception("a request without an answer could not be kept")

    def _shown(self, served: Served) -> Iterator[Shown]:
        """In its own experiment, and in those on the holdout."""
        base = self._base_digest()
        if isinstance(one := served.assignment, ArmAssignment):
            adapter = served.decision.digest if served.decision.adapter and not served.degraded else ""
            yield Shown(one, adapter, base, self._router_digest(), served.degraded)
        if self.availability.up:
            for one in self.assigner.holdouts(served.request, route_of(served)):
                yield Shown(one, "", base, self._router_digest())

    def _skipped(self, decision: Decision) -> None:
        route = decision.adapter.name if decision.adapter else BASE
        for one in self.assigner.snapshot.split.get(route, ()):
            self.counts.skipped[one.name] += 1


def route_of(served: Served) -> str:
    """The route before an experiment's arm took its place."""
    arm = served.assignment
    if isinstance(arm, ArmAssignment):
        return arm.running.spec.route
    return served.decision.adapter.name if served.decision.adapter else BASE


async def leave_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel them all, and wait until they have gone."""
    left = tuple(tasks)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)


@dataclass(frozen=True, slots=True)
class RuleAct:
    """What is to be kept: the experiment as it shall be (None: as it is), and the audit entry."""

    experiment: Experiment | None
    entry: AuditEntry


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at an experiment found, and what was done about it."""

    report: Report
    act: RuleAct | None


class Guardian:
    """`judge` gives the report of an experiment's last phase and blocks; `refresh` takes over a change."""

    def __init__(
        self,
        store: ExperimentStore,
        assigner: Assigner,
        counts: ServingCounts,
        refresh: Callable[[], Awaitable[None]],
        judge: Judge,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._store, self._assigner, self._counts, self._refresh = store, assigner, counts, refresh
        self._judge = judge
        self._look_seconds = look_seconds
        self.observers: list[Callable[[Report], None]] = []  # called with each report, in the look's thread
        self.latest: dict[str, Report] = {}  # of the last look at each running experiment
        self._looks: set[asyncio.Future[Look]] = set()
        self._resting = False

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self._look_seconds)
            await self.look()

    async def rest(self) -> None:
        """No further look; wait for the one that its thread is at, for seconds at most."""
        if self._looks and not self._resting:
            await asyncio.wait(self._looks, timeout=CLOSE_SECONDS)
        self._resting = True

    async def look(self) -> None:
        """Remove a part of what was deleted, and look at every running experiment once. What fails for one is
        logged, and tried at the next look."""
        await self._tidy()
        running = self._assigner.snapshot.all()
        names = {one.name for one in running}
        self.latest = {name: report for name, report in self.latest.items() if name in names}
        for one in running:
            if self._resting:
                return
            try:
                await self._look_at(one.name)
            except (StaleEtag, ExperimentNotFound):
                log.info("experiment %s was changed meanwhile; it is looked at again", one.name)
            except StoreDown as error:
                log.debug("no look at experiments: %s", error.message)
                return
            except Exception:
                log.exception("experiment %s could not be judged", one.name)

    async def _tidy(self) -> None:
        try:
            await asyncio.to_thread(self._store.tidy)
        except StoreDown as error:
            log.debug("nothing of deleted experiments is removed: %s", error.message)
        except Exception:
            log.exception("rows of deleted experiments could not be removed")

    async def _look_at(self, name: str) -> None:
        look = asyncio.ensure_future(asyncio.to_thread(self._judge_and_act, name))
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)
        found = await asyncio.shield(look)
        self.latest[name] = found.report
        numbers, act = found.report.numbers, found.act
        if never_repeats(sum(n.responses for n in numbers), sum(n.units for n in numbers)):
            text = "hardly any unit comes again, as if units were request ids"
            self._assigner.suspect(name, text)
        if act is None:
            return
        self._counts.acts[name, act.entry.act] += 1
        log.warning("experiment %s: %s: %s", name, act.entry.act, act.entry.reason)
        if act.experiment is not None:
            await self._refresh()

    def _judge_and_act(self, name: str) -> Look:
        report = self._judge(name)
        act = act_on(report, time.time())
        if act is not None and act.experiment is not None:
            self._store.replace(act.experiment, act.entry)
        elif act is not None:
            self._store.audit(act.entry)
        seen = replace(report, audit=(*report.audit, act.entry)) if act else report
        for observer in self.observers:
            observer(seen)
        return Look(report, act)


def act_on(report: Report, now: float) -> RuleAct | None:
    """Nothing, a hold, a stop, or an arm taken out.

    An invalid experiment is held: nothing is stopped and nothing is believed until a person has looked. That
    is logged once for a rule and phase. An arm that does harm is taken out: the others begin a new phase, in
    which control has its share; if no other arm is left but control, the experiment is stopped. What a report
    of a holdout says is for people.
    """
    experiment = report.experiment
    if experiment.state is not Lifecycle.RUNNING or report.phase != len(experiment.phases):
        return None
    if report.verdict.decision == INVALID:
        return _hold_entry(report, now)
    if experiment.spec.mode is Mode.HOLDOUT:
        return None
    harmful = [arm for arm in report.arms if arm.verdict.decision == HARM]
    if not harmful:
        return None
    reason = "; ".join(f"{arm.arm}: {arm.verdict.text}" for arm in harmful)
    detail = {"phase": report.phase, "arms": [_arm_detail(arm) for arm in harmful]}
    spec, names = experiment.spec, {arm.arm for arm in harmful}
    if len(spec.arms) - len(names) < 2:
        after, act = stopped(experiment, now, reason), "stop"
    else:
        after, act = opened(experiment, without_arms(spec, names), now, f"taken out: {reason}"), "take out"
    return RuleAct(after, AuditEntry(experiment.name, now, RULE, act, reason, detail))


def _hold_entry(report: Report, now: float) -> RuleAct | None:
    ruling, phase = report.verdict, report.phase
    noted = {(e.detail.get("rule"), e.detail.get("phase")) for e in report.audit if e.act == "hold"}
    if (ruling.rule, phase) in noted:
        return None
    detail = {"phase": phase, "units": {n.arm: n.units for n in report.numbers}, **_ruling_detail(ruling)}
    return RuleAct(None, AuditEntry(report.experiment.name, now, RULE, "hold", ruling.text, detail))


def _arm_detail(arm: ArmReport) -> dict[str, object]:
    measured = [*([arm.primary] if arm.primary else []), *arm.guardrails, *arm.early]
    metrics = [
        {
            "metric": m.metric,
            "units": list(m.units),
            "values": list(m.values),
            "effect": m.effect,
            "low": m.low,
            "high": m.high,
            "p": m.p,
            "state": m.state,
            "age": m.age,
        }
        for m in measured
    ]
    return {"arm": arm.arm, **_ruling_detail(arm.verdict), "metrics": metrics}


def _ruling_detail(ruling: Ruling) -> dict[str, object]:
    return {"decision": ruling.decision, "rule": ruling.rule, "text": ruling.text}


class StoreThreads:
    """A few threads, and a bounded number of calls that wait for one."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "experiments")
        self._inside, self._most, self._lock = 0, THREADS + WAITING, threading.Lock()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(...)` in a thread, in the context of the call; raises Overloaded at once where too many wait.
        Who gives up waiting does not stop the work."""
        with self._lock:
            if self._inside >= self._most:
                text = f"{self._inside} calls of experiments wait for the store already"
                raise Overloaded(text, bound="experiments")
            self._inside += 1
        future = self._pool.submit(partial(copy_context().run, work, *args, **kwargs))
        future.add_done_callback(self._left)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Take no more; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _left(self, future: Future[T]) -> None:
        with self._lock:
            self._inside -= 1
