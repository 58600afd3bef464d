"""Bringing a version from disk into service: read, load, prove, switch. What is loaded without a request is
planned here, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from heapq import heappop, heappush, nsmallest
from itertools import count
from pathlib import Path

from router.engine.base import Delta, Engine, Generation, Job, Prompt, last_occurrence
from router.engine.constrained.templates import ConstraintTemplates
from router.errors import (
    AdapterNotFound,
    AdapterRejected,
    EngineFailed,
    FailedPrecondition,
    InvalidRequest,
    Overloaded,
    RouterError,
    Unavailable,
)
from router.registry.folders import FolderReader, FoundFolder, identity, read_whole
from router.registry.format.artifact import Inspection
from router.registry.format.folder import CONFIG, PROBES
from router.registry.format.manifest import Probe
from router.registry.format.untrusted import Code, FolderFinding, Severity, show
from router.registry.index import Index, candidate
from router.registry.record import Live, VersionRecord
from router.registry.residency import Residency, Resident, Room
from router.registry.state import Proven, Workers
from router.types import Constraint, FinishReason, Sampling, SamplingParams, Turn

log = logging.getLogger(__name__)

READS_AT_ONCE = 4
RETRY_SECONDS = 10.0  # after a fault that was not the adapter's
CHANGING_SECONDS = 3.0  # how long a request waits for files to stop changing
LOOK_SECONDS = 0.1
UNEXPECTED = "an unexpected error while loading; the server's log says more"

MOST_PROBES = 16  # probes of one adapter, the first ones
PROBES_AT_ONCE = 8  # generations, for all adapters together
_BUSY_SECONDS = 0.1
_DONE = (FinishReason.STOP, FinishReason.LENGTH)

Encode = Callable[[Prompt], Awaitable[list[int]]]


class Loader:
    """Loads versions in tasks of its own, so that a waiting caller may give up without harm to others.

    `changed` is called for a folder that is not as it was when it was examined, `ended` after each load.
    """

    def __init__(
        self,
        reader: FolderReader,
        residency: Residency,
        prover: Prover,
        proven: Proven,
        workers: Workers,
        changed: Callable[[Path], None],
        ended: Callable[[], None],
    ) -> None:
        self._reader, self._residency, self._prover, self._proven = reader, residency, prover, proven
        self._workers, self._changed, self._ended = workers, changed, ended
        self._reads = asyncio.Semaphore(READS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, record: VersionRecord) -> asyncio.Task[None]:
        """The load of this version that is under way, or a new one. Shield it."""
        if record.task is not None:
            return record.task
        task = asyncio.get_running_loop().create_task(self._run(record))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        record.load_began(task)
        return task

    @property
    def busy(self) -> bool:
        """Whether any load is under way."""
        return bool(self._tasks)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("%s", error)

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, record: VersionRecord) -> None:
        try:
            await self._load(record)
        except AdapterRejected as error:
            self._refuse(record, error.message)
            raise
        except RouterError as error:
            record.load_postponed(error.message, time.monotonic() + RETRY_SECONDS)
            raise
        except Exception as error:
            log.exception("loading adapter %s failed", record.ref)
            self._refuse(record, UNEXPECTED)
            raise AdapterRejected(f"adapter {record.ref}: {UNEXPECTED}") from error
        finally:
            record.load_ended()
            self._ended()

    async def _load(self, record: VersionRecord) -> None:
        room = await self._residency.reserve(record.size_bytes)
        try:
            found, inspection, resident = await self._into_memory(record, room)
        finally:
            self._residency.give_back(room)
        try:
            await self._prove(resident.digest, inspection)
            if record.removed:
                raise AdapterNotFound(str(record.ref), "; its folder was removed")
            findings = (*inspection.findings, *await self._prover.notes(inspection))
            live = Live(resident, replace(inspection, probes=(), findings=findings), found.stamp)
            self._switch(record, live)
        finally:
            self._residency.release(resident)

    async def _into_memory(
        self, record: VersionRecord, room: Room
    ) -> tuple[FoundFolder, Inspection, Resident]:
        """Read the folder as it was examined, waiting a little while it is being changed, and load it."""
        deadline = time.monotonic() + CHANGING_SECONDS
        while True:
            found = record.load_attempted()
            try:
                async with self._reads:
                    folder = await self._workers.run(read_whole, self._reader, found)
                    if identity(found.place, folder.inspection) != record.ref:
                        raise Unavailable(f"the folder of adapter {record.ref} holds another one; try again")
                    return found, folder.inspection, await self._residency.admit(folder.artifact, room)
            except Unavailable:
                if time.monotonic() > deadline or record.removed:
                    raise
            self._changed(found.place.folder)
            await asyncio.sleep(LOOK_SECONDS)

    async def _prove(self, digest: str, inspection: Inspection) -> None:
        key = self._prover.key(digest)
        if key not in self._proven and await self._prover.prove(digest, inspection):
            await self._workers.in_order(self._proven.add, key)

    def _switch(self, record: VersionRecord, live: Live) -> None:
        """From here on new leases get the new files; those in flight keep the old until they end."""
        before = record.load_succeeded(live)
        self._residency.attach(live.resident, record)
        if before is not None and before.resident is not live.resident:
            self._residency.detach(before.resident, record)

    def _refuse(self, record: VersionRecord, reason: str) -> None:
        log.warning("adapter %s is refused: %s", record.ref, reason)
        record.load_refused(reason)


# -- probes: an adapter must answer as expected, and not as the base does


class Prover:
    """Runs probes through the engine like any request, a few at a time.

    An adapter does not serve before they end, however long that takes. Their number and length are bounded.
    """

    def __init__(self, engine: Engine, encode: Encode, templates: ConstraintTemplates | None = None) -> None:
        self._engine, self._encode = engine, encode
        self._templates = templates or ConstraintTemplates()
        self._places = asyncio.Semaphore(PROBES_AT_ONCE)

    def key(self, digest: str) -> str:
        """Names an adapter on this base: what passes on one base or precision may fail on another."""
        base = self._engine.info
        return hashlib.sha256(f"{base.digest} {base.precision} {digest}".encode()).hexdigest()[:32]

    async def prove(self, digest: str, inspection: Inspection) -> bool:
        """Run the probes of a loaded adapter; False where it has none.

        Raises AdapterRejected saying which one failed, and how; Unavailable where the engine failed.
        """
        await self._check_constraint(inspection.manifest.generation.constraint)
        probes = inspection.probes[:MOST_PROBES]
        if not probes:
            return False
        prompts = [await self._prompt(inspection, probe) for probe in probes]
        asked = [self._answer(*prompt, adapter) for prompt in prompts for adapter in (digest, None)]
        texts: list[str] = []
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, InvalidRequest):
                raise AdapterRejected(f"a probe cannot run: {answer.message}", codes="probe-failed")
            if isinstance(answer, RouterError):
                raise Unavailable(f"the probes of adapter {inspection.name} could not run: {answer.message}")
            if isinstance(answer, BaseException):
                raise answer
            texts.append(answer)
        precision = self._engine.info.precision
        check_answers(probes, texts[0::2], texts[1::2], precision)
        log.info("%s passed its %d probes on the base in %s", inspection.name, len(probes), precision)
        return True

    async def notes(self, inspection: Inspection) -> Sequence[FolderFinding]:
        """What only the base's own template shows: that an activated LoRA never acts on a conversation."""
        wanted = inspection.invocation_tokens
        if not wanted:
            return ()
        prompt = Prompt((Turn("user", "x"),), template=inspection.manifest.prompt)
        if last_occurrence(await self._encode(prompt), wanted) >= 0:
            return ()
        message = "conversations do not have these tokens on this base: requests for it will be refused"
        return [FolderFinding(Code.NEVER_ACTIVE, Severity.NOTE, message, f"{CONFIG} alora_invocation_tokens")]

    async def _check_constraint(self, constraint: Constraint | None) -> None:
        """Raises AdapterRejected where no answer on this base could keep to the adapter's own constraint."""
        if constraint is None or constraint.kind == "unconstrained":
            return
        try:
            if constraint.kind == "from_prompt":
                self._templates.check(constraint)
            else:
                await self._engine.compile(constraint)
        except (InvalidRequest, FailedPrecondition) as error:
            reason = error.violations[0].description if isinstance(error, InvalidRequest) else error.message
            raise AdapterRejected(
                f"[generation] {constraint.kind}: {reason}", codes=Code.CONSTRAINT_REFUSED
            ) from error

    async def _prompt(
        self, inspection: Inspection, probe: Probe
    ) -> tuple[str, Sequence[int], SamplingParams]:
        manifest = inspection.manifest
        greedy = Sampling(max_tokens=probe.max_tokens, min_tokens=0, temperature=0.0, logprobs=0)
        prompt = Prompt((Turn("user", probe.prompt),), template=manifest.prompt)
        return probe.prompt, await self._encode(prompt), SamplingParams.of(greedy, manifest.generation)

    async def _answer(
        self, prompt: str, tokens: Sequence[int], params: SamplingParams, adapter: str | None
    ) -> str:
        """The answer of the adapter under its constraint, or of the base without it: held to the adapter's
        choices, a base may be right, too."""
        name = f"probe-{adapter[:12] if adapter else 'base'}"
        if adapter is None:
            params = replace(params, constraint=None)
        job = Job(name, tokens, params, adapter, priority=1, own_constraint=True)
        job = await self._templates.prepared(self._engine, job, prompt)
        text: list[str] = []
        async with self._places:
            generation = await self._submit(job)
            try:
                async for event in generation:
                    if isinstance(event, Delta):
                        text.append(event.text)
                    elif event.reason not in _DONE:
                        raise EngineFailed(f"a probe ended with {event.reason}")
            finally:
                generation.cancel()
        return "".join(text)

    async def _submit(self, job: Job) -> Generation:
        while True:
            try:
                return self._engine.submit(job)
            except Overloaded:
                await asyncio.sleep(_BUSY_SECONDS)


def check_answers(
    probes: Sequence[Probe], answers: Sequence[str], base_answers: Sequence[str], precision: str
) -> None:
    """Raises AdapterRejected if an answer is not as expected or all are the base's own.

    `base_answers` are without the adapter's constraint.

    `precision` is what the base runs in, which may not be what the probes were made in.
    """
    if list(answers) == list(base_answers):
        raise AdapterRejected(
            "it has no effect: the base alone gives the same answers to its probes; train it for more steps, "
            f"or put prompts into {PROBES} that it answers otherwise than the base",
            codes="probes-no-effect",
        )
    for number, (probe, answer) in enumerate(zip(probes, answers, strict=True), 1):
        if not probe.passes(answer):
            raise AdapterRejected(
                f"probe {number} of {len(probes)} failed: expected {probe.match} {show(probe.expect)}, "
                f"got {show(answer)} (base in {precision})",
                codes="probe-failed",
            )


# -- what is loaded without a request: new files, new versions, and defaults while they fit


BACKGROUND = 2  # preloads at once
MOST_WAITING = 256  # preloads: more would keep disk and interpreter busy for minutes, for what nobody asked


class LoadPlanner:
    """Compares what is with what should be and begins the loads that are missing; can run at any time.

    A plan looks at names of which something changed, and at those for which something is still to be done.
    """

    def __init__(self, index: Index, loader: Loader, residency: Residency) -> None:
        self._index, self._loader, self._residency = index, loader, residency
        self._soon = self._closed = False
        self._waiting = False  # something becomes due when a load ends; else only news from disk matters
        self._open: dict[str, None] = {}  # names for which something is to be done, now or later
        # A heap: what came last is what somebody waits for.
        self._queue: list[tuple[int, int, VersionRecord]] = []
        self._queued: set[VersionRecord] = set()
        self._number = count()
        self._begun: set[VersionRecord] = set()  # preloads under way

    def plan_soon(self) -> None:
        """Plan in the next turn of the event loop, once for all calls until then."""
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self.plan)

    def load_ended(self) -> None:
        """Plan, if something waits for that."""
        if self._waiting:
            self.plan_soon()

    @property
    def busy(self) -> bool:
        """Whether something is to be preloaded that is not under way."""
        fresh = (r for name in self._index.changed_names for r in self._index.versions(name))
        return bool(self._queue) or any(r.awaits_preload and r.task is None for r in fresh)

    def close(self) -> None:
        """Begin nothing any more: the load that is cancelled next must not make room for another."""
        self._closed = True

    def plan(self) -> None:
        """Begin what is due."""
        self._soon = False
        if self._closed:
            return
        self._take_changed()
        for name in tuple(self._open):
            self._succeed(name)
        self._take_changed()
        now = time.monotonic()
        for name in tuple(self._open):
            if not self._begin_due(name, now):
                del self._open[name]
        self._waiting = self._preload() or bool(self._open)

    def remove(self, record: VersionRecord) -> None:
        """Gone from disk: no new lease, dropped after the last one."""
        live = self._index.remove(record)
        if live is not None:
            self._residency.detach(live.resident, record)

    def _take_changed(self) -> None:
        self._open.update(self._index.changed_names)
        self._index.changed_names.clear()

    def _begin_due(self, name: str, now: float) -> bool:
        """Begin what is due of a name; whether something is to be done for it even so."""
        versions = self._index.versions(name)
        next_default = self._next_default(name)
        successors = [self._index.get(r.successor) for r in versions if r.successor is not None]
        due = [r for r in versions if r.outdated or r is next_default]
        for record in (*due, *(s for s in successors if s is not None and s.live is None)):
            if record.may_load(now):
                self._loader.begin(record)
        self._enqueue(versions)
        return bool(due or successors)

    def _next_default(self, name: str) -> VersionRecord | None:
        """A version that should take over as default once it is proven."""
        versions = self._index.versions(name)
        if len(versions) < 2 or self._index.chosen(name):
            return None
        return candidate(versions, self._index.default_of(name))

    def _succeed(self, name: str) -> None:
        """Let go of versions whose folder holds another one that serves now, or none at all."""
        for record in [r for r in self._index.versions(name) if r.successor is not None]:
            successor = self._index.get(record.successor) if record.successor else None
            if successor is None or successor.proven or record.live is None:
                self.remove(record)

    def _enqueue(self, records: Iterable[VersionRecord]) -> None:
        for record in records:
            if record.awaits_preload and record.task is None and record not in self._queued:
                self._queued.add(record)
                heappush(self._queue, (-record.look, next(self._number), record))

    def _preload(self) -> bool:
        """Begin wanted loads while they fit; whether some have to wait."""
        self._begun = {r for r in self._begun if r.task is not None}
        begun = 0  # bytes that are not set aside yet
        while self._queue:
            if len(self._begun) >= BACKGROUND:
                self._keep_few()
                return True
            record = heappop(self._queue)[2]
            self._queued.discard(record)
            if record.removed or not record.awaits_preload:
                continue
            if record.task is None and not self._residency.fits(begun + record.size_bytes):
                record.preload_dropped()
                continue
            if record.task is None:
                self._loader.begin(record)
                begun += record.size_bytes
            self._begun.add(record)
        return False

    def _keep_few(self) -> None:
        """The others are loaded when they are asked for."""
        if len(self._queue) <= MOST_WAITING:
            return
        kept = nsmallest(MOST_WAITING, self._queue)
        self._queued = {record for _, _, record in kept}
        for _, _, record in self._queue:
            if record not in self._queued:
                record.preload_dropped()
        self._queue = kept  # sorted, so a heap
