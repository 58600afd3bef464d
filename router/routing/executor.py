"""One classifier: the way of requests to it (batches, deadlines, breaker), its fits, its thread.

An idle classifier is called at once; while it is busy up to 32 requests collect for its next call. The limit
of a call is processor time of the classifier's thread, so that a busy machine loses no votes: each request of
the call has `Registration.timeout`. A call that takes more, or that lasts longer than `Registration.patience`
(it hangs, or waits for input), is late. It costs the votes of all requests that wait at that moment or come
before it returns. After another `patience` it is given up as stuck and its thread replaced, three times at
most.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from router.classifiers.contract import (
    ASLEEP,
    UNABLE,
    BaseModel,
    Classifier,
    ClassifierAnswer,
    Registration,
    read_answers,
)
from router.classifiers.isolation import Breaker, BreakerState, await_in_thread, call_on_loop, fault_of
from router.types import AdapterProfile, Request, VoteError

log = logging.getLogger(__name__)
BATCH = 32
MAX_STUCK = 3
MOST_TOLD = 20  # findings of a fit in the log
LOOK_SECONDS = 0.01  # least time between two looks at the processor time of a call
FIRST_SECONDS = 60.0  # for which the first fit of a classifier that asks the base waits for those of others
NO_BASE = "needs the base model, and there is no engine in this process"

BaseFor = Callable[[float], BaseModel]  # the base, whose calls end after so many seconds
Others = Callable[[], Collection[asyncio.Task[None]]]  # fits in progress of classifiers that ask no base
Done = Callable[[tuple[ClassifierAnswer, ...], str], object]
_Job = tuple[tuple[Request, ...], Done]


class ClassifierExecutor:
    """Lives on one event loop; all methods are called there."""

    def __init__(
        self,
        registration: Registration,
        base_for: BaseFor | None = None,
        keep: Path | None = None,
        others: Others = tuple,
    ) -> None:
        self.registration = registration
        self.fitter = Fitter(registration, base_for, keep, others)
        self._health = registration.health
        self._breaker = Breaker()
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_PendingRequest] = deque()
        self._call: _Call | None = None
        self._worker = Worker(registration, self._loop)
        self._closed = False

    @property
    def name(self) -> str:
        """The classifier's name."""
        return self.registration.name

    @property
    def ready(self) -> bool:
        """Whether it was warmed up and fitted at least once."""
        return self.fitter.ready

    @property
    def unable(self) -> bool:
        """Whether it needs what the base's engine has not got."""
        return self._health.state == UNABLE

    @property
    def flaw(self) -> str:
        """Why it gives no votes now; empty if it does, or if it can never give any here."""
        if self.unable or self._closed or (self.registration.classifier.foreign and not self.ready):
            return ""
        if self._health.stuck >= MAX_STUCK:
            return f"classifier {self.name} is disabled: {self._health.stuck} calls did not return"
        if not self.ready:
            return f"classifier {self.name} is not ready: {self._health.fit_error or 'it is learning'}"
        if self._breaker.state is not BreakerState.CLOSED:
            failure = self._health.last_error
            return f"classifier {self.name}: the breaker is {self._breaker.state}, last failure: {failure}"
        return ""

    def fit(self, profiles: Sequence[AdapterProfile]) -> None:
        """Have it learn these adapters in the background."""
        self.fitter.want(tuple(profiles))

    async def wake(self, seconds: float | None) -> bool:
        """Whether it is ready. The first call has it learn; until it has, each call waits, at most so many
        seconds."""
        self.fitter.wake()
        if not self.ready and (learning := self.fitter.running) is not None:
            await asyncio.wait([learning], timeout=seconds)
        return self.ready

    def classify(self, request: Request) -> asyncio.Future[ClassifierAnswer]:
        """The answer, in bounded time whatever the classifier does."""
        answer: asyncio.Future[ClassifierAnswer] = self._loop.create_future()
        if refusal := self._refusal():
            answer.set_result(ClassifierAnswer(error=refusal))
            return answer
        self._waiting.append(_PendingRequest(request, answer, self._loop.time()))
        if self._call is None:
            self._call_next()
        return answer

    def _refusal(self) -> VoteError | None:
        if self._health.stuck >= MAX_STUCK or self._closed or self.unable:
            return VoteError.DISABLED
        if not self.ready:
            return VoteError.NOT_READY
        if self._call is not None and self._call.late:
            return VoteError.TIMEOUT
        allowed = self._breaker.allow(self._loop.time())
        self._show_health()
        return None if allowed else VoteError.BREAKER_OPEN

    def _call_next(self) -> None:
        """Start the next call with the requests that still wait."""
        oldest = self._loop.time() - self.registration.patience
        pending: list[_PendingRequest] = []
        while self._waiting and len(pending) < BATCH:
            one = self._waiting.popleft()
            if one.since < oldest:
                one.settle(ClassifierAnswer(error=VoteError.TIMEOUT))
            elif not one.answer.done():
                pending.append(one)
        if not pending:
            self._breaker.abandoned()
            return
        call = self._call = _Call(pending, self._loop.time(), self._worker.processor_time())
        call.timer = self._loop.call_later(self._left(call), self._look, call)
        self._health.calls += 1
        self._health.requests += len(pending)
        self._worker.submit([one.request for one in pending], partial(self._returned, call))

    def _returned(self, call: _Call, answers: tuple[ClassifierAnswer, ...], fault: str) -> None:
        if call.timer:
            call.timer.cancel()
        if call.stuck:
            self._health.stuck -= 1
            self._show_health()
            return
        if not call.late:
            self._count(fault)
        for one, answer in zip(call.pending, answers, strict=True):
            one.settle(answer)
        self._call = None
        self._call_next()

    def _count(self, fault: str) -> None:
        if fault:
            self._health.errors += 1
            self._health.last_error = fault
            self._breaker.failed(self._loop.time())
        else:
            self._breaker.succeeded()
        self._show_health()

    def _left(self, call: _Call) -> float:
        """Seconds before which the call cannot be late; 0 or less if it is."""
        lasted = self._loop.time() - call.started
        if self.registration.is_async:
            return self.registration.timeout - lasted
        used = self._worker.processor_time() - call.used_before
        return min(self.registration.patience - lasted, self.registration.timeout * len(call.pending) - used)

    def _look(self, call: _Call) -> None:
        left = self._left(call)
        if left > 0:
            call.timer = self._loop.call_later(max(left, LOOK_SECONDS), self._look, call)
        else:
            self._overdue(call)

    def _overdue(self, call: _Call) -> None:
        call.late = True
        self._count("timeout")
        for one in (*call.pending, *self._waiting):
            one.settle(ClassifierAnswer(error=VoteError.TIMEOUT))
        self._waiting.clear()
        call.timer = self._loop.call_later(self.registration.patience, self._give_up, call)

    def _give_up(self, call: _Call) -> None:
        call.stuck = True
        self._health.stuck += 1
        self._health.last_error = "a call did not return"
        self._worker.stop()
        self._worker = Worker(self.registration, self._loop)
        self._call = None
        self._show_health()

    def _show_health(self) -> None:
        self._health.breaker = self._breaker.state.value
        if self._health.stuck >= MAX_STUCK:
            self._health.state = "disabled"
        elif self.ready:
            self._health.state = "ready"

    def close(self) -> None:
        """Take no more requests; those waiting get no vote."""
        self._closed = True
        for one in (*(self._call.pending if self._call else ()), *self._waiting):
            one.settle(ClassifierAnswer(error=VoteError.DISABLED))
        self._waiting.clear()
        if self._call and self._call.timer:
            self._call.timer.cancel()
        self.fitter.close()
        self._worker.stop()


@dataclass(eq=False, slots=True)
class _PendingRequest:
    request: Request
    answer: asyncio.Future[ClassifierAnswer]
    since: float

    def settle(self, answer: ClassifierAnswer) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


@dataclass(eq=False, slots=True)
class _Call:
    pending: Sequence[_PendingRequest]
    started: float
    used_before: float  # processor time of the thread, seconds
    timer: asyncio.TimerHandle | None = None
    late: bool = False
    stuck: bool = False


class Fitter:
    """Keeps a classifier fitted to the newest profiles wanted; never two fits at once.

    Requests go on with the last fit meanwhile, so `fit` must build its state aside and assign it at
    once. A fit that fails leaves the last one in use; a classifier that was never fitted is not asked.
    The first fit of a classifier that asks the base takes all cores: it begins after the fits of `others`.
    """

    def __init__(
        self,
        registration: Registration,
        base_for: BaseFor | None = None,
        keep: Path | None = None,
        others: Others = tuple,
    ) -> None:
        self._others = others
        kind = type(registration.classifier)
        self._registration, self._keep = registration, keep
        self._base = base_for(registration.patience) if base_for and registration.wants_base else None
        self._cold = (
            kind.warmup is not Classifier.warmup
            or kind.keep is not Classifier.keep
            or registration.wants_base
        )
        self._learns = kind.fit is not Classifier.fit
        self._asleep = registration.classifier.foreign
        self._wanted: tuple[AdapterProfile, ...] | None = None
        self._target: tuple[AdapterProfile, ...] | None = None
        self._task: asyncio.Task[None] | None = None
        self.idle = threading.Event()  # no thread of ours is in the classifier's code
        self.idle.set()
        self.ready = not self._cold and not self._learns
        registration.health.state = "ready" if self.ready else "starting"

    def want(self, profiles: Sequence[AdapterProfile]) -> None:
        """Fit to `profiles` as soon as the fit in progress, if any, is over."""
        if not self._learns and self.ready:
            return
        if self._base is None and self._registration.wants_base:
            self._registration.health.state, self._registration.health.fit_error = "failed", NO_BASE
            return
        if lacking := self._lacking():
            self._registration.health.state, self._registration.health.fit_error = UNABLE, lacking
            return
        if tuple(profiles) == self._target and (self.ready or self.running):
            return
        self._wanted = self._target = tuple(profiles)
        if self._asleep:
            self._registration.health.state = ASLEEP
            return
        self._start()

    def wake(self) -> None:
        """Begin what `want` left for the first request in another language, unless that was done."""
        if self._asleep and self._wanted is not None:
            self._asleep, self._registration.health.state = False, "starting"
            self._start()

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"fit {self._registration.name}")

    def _lacking(self) -> str:
        """What it lacks here, for people."""
        if not self.ready and (lacking := self._registration.classifier.lacks()):
            if self._registration.health.fit_error != lacking:
                log.info("classifier %s is not asked: %s", self._registration.name, lacking)
            return lacking
        has = self._base.abilities if self._base is not None else ()
        lacks = [need for need in self._registration.classifier.needs if need not in has]
        return f"the engine of this base gives no {', '.join(lacks)}" if lacks else ""

    @property
    def running(self) -> asyncio.Task[None] | None:
        """The fit in progress, to wait for."""
        return self._task if self._task is not None and not self._task.done() else None

    async def _run(self) -> None:
        if self._cold and self._base is not None and (others := self._others()):
            await asyncio.wait(others, timeout=FIRST_SECONDS)
        while self._wanted is not None:
            profiles, self._wanted = self._wanted, None
            await self._fit(profiles)

    async def _fit(self, profiles: tuple[AdapterProfile, ...]) -> None:
        health, classifier = self._registration.health, self._registration.classifier

        def work() -> None:
            try:
                learn()
            finally:
                self.idle.set()

        def learn() -> None:
            if self._cold:
                if self._base is not None:
                    classifier.bind(self._base)
                if type(classifier).keep is not Classifier.keep and (folder := self._folder()) is not None:
                    classifier.keep(folder)
                classifier.warmup()
            classifier.fit(profiles)
            self._tell(dict(classifier.findings()))

        self.idle.clear()
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

    def _tell(self, findings: Mapping[str, str]) -> None:
        """Log what the fit found out about adapters that came or changed."""
        before = self._registration.health.findings
        new = [(name, line) for name, line in findings.items() if before.get(name) != line]
        for name, line in new[:MOST_TOLD]:
            log.info("classifier %s: adapter %s: %s", self._registration.name, name, line)
        self._registration.health.findings = findings

    def _folder(self) -> Path | None:
        """Where the classifier keeps what outlives the process; None where that is nowhere."""
        if self._keep is None:
            return None
        try:
            return own_folder(self._keep, self._registration.name)
        except OSError as error:
            log.warning("what classifier %s learns is not saved: %s", self._registration.name, error)
            return None

    def close(self) -> None:
        """Wait for no fit any more."""
        try:
            self._registration.classifier.close()
        except Exception as error:
            log.warning("classifier %s could not be closed: %s", self._registration.name, fault_of(error))
        if self._task is not None:
            self._task.cancel()


def own_folder(keep: Path, classifier: str) -> Path:
    """Where a classifier keeps what outlives the process; made if absent."""
    folder = keep / classifier
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _clock_of(thread: threading.Thread) -> int | None:
    """The processor clock of a thread that runs; None where the system has none, such as macOS."""
    find: Callable[[int], int] | None = getattr(time, "pthread_getcpuclockid", None)
    return None if find is None or thread.ident is None else find(thread.ident)


class Worker:
    """Runs `classify_batch`; answers come back on `loop`.

    A daemon thread: a call that hangs does not keep the process alive. The thread survives whatever the
    classifier raises, SystemExit included. Only what ends the whole process (os._exit, a crash in C) is
    not survivable.
    """

    def __init__(self, registration: Registration, loop: asyncio.AbstractEventLoop) -> None:
        self._registration, self._loop = registration, loop
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        thread = threading.Thread(target=self._run, name=f"classifier {registration.name}", daemon=True)
        thread.start()
        self._clock = _clock_of(thread)

    def processor_time(self) -> float:
        """Seconds that the thread has computed; 0 where the system does not tell. Not after `stop`."""
        return 0.0 if self._clock is None else time.clock_gettime(self._clock)

    def submit(self, requests: Sequence[Request], done: Done) -> None:
        """Queue a call; `done(answers, fault)` runs on the loop, `fault` empty if the call went well."""
        self._jobs.put((tuple(requests), done))

    def stop(self) -> None:
        """End the thread after the calls queued."""
        self._jobs.put(None)

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            while (job := self._jobs.get()) is not None:
                requests, done = job
                result, fault = self._call(requests, runner)
                if not call_on_loop(self._loop, partial(done, result, fault)):
                    return

    def _call(
        self, requests: tuple[Request, ...], runner: asyncio.Runner
    ) -> tuple[tuple[ClassifierAnswer, ...], str]:
        """The answers and, if the classifier failed, its kind and place; never text of the exception."""
        try:
            result = read_answers(self._classify(requests, runner), len(requests))
        except TimeoutError:
            return (ClassifierAnswer(error=VoteError.TIMEOUT),) * len(requests), "timeout"
        except BaseException as error:
            log.warning("classifier %s raised %s", self._registration.name, fault_of(error))
            return (ClassifierAnswer(error=VoteError.RAISED),) * len(requests), f"raised {fault_of(error)}"
        invalid = any(answer.error for answer in result)
        return result, "invalid scores" if invalid else ""

    def _classify(self, requests: tuple[Request, ...], runner: asyncio.Runner) -> object:
        classifier = self._registration.classifier
        if not self._registration.is_async:
            return classifier.classify_batch(requests)

        async def call() -> object:
            async with asyncio.timeout(self._registration.timeout):
                return await classifier.classify_batch(requests)  # type: ignore[misc]

        return runner.run(call())
