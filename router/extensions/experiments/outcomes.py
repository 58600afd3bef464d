"""Outcomes that clients send: checked in a thread, recorded in order, acknowledged when they are durable.

Every bad field is named. Threads of their own wait for the database, so that neither the event loop nor other
threads do.
"""

from __future__ import annotations

import asyncio
import difflib
import math
import re
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, TypeVar

from router.access.access import may_be_of
from router.access.quotas import UsageMeter
from router.errors import (
    ExperimentNotFound,
    FieldViolation,
    Findings,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)
from router.extensions.experiments.messages import STATUSES
from router.extensions.experiments.model import (
    DENOMINATORS,
    SERVER_KEYS,
    Accepted,
    Experiment,
    Spec,
    StoredOutcome,
    outcome_problem,
    parse_experiment,
)
from router.extensions.experiments.recorder import Recorder
from router.extensions.experiments.runtime import StoreThreads
from router.extensions.experiments.visibility import Visibility
from router.types import MAX_OUTCOMES
from router.units import is_missing, unit_hash
from router.v1 import experiments_pb2 as pb

MAX_BATCHES = 16  # of all streams, at once
FULL_SECONDS = 0.1
NO_RESPONSE = (
    ": no experiment was exposed in it; where that is still being written, the outcome counts by itself, "
    "and the same key tells"
)
FULL = "as many outcomes wait for their response or unit as may"
FULL_RETRY = 60.0  # seconds
NOBODYS = "-"  # begins what is no id of an answer, name of an experiment or hash of a unit
MAX_NAMES = 8  # of metrics, in a warning
MAX_SIGHTS = 1024  # of callers, at once
NO_UNIT = "it was not exposed there; what is recorded of it now is its past, which a covariate may use"
Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class OutcomeSender:
    """Whose outcomes they are: the tenant ('': there are no tenants), what it may know of, and its quotas."""

    tenant: str = ""
    visibility: Visibility = Visibility()
    meter: UsageMeter | None = None


@dataclass(slots=True)
class _Parsed:
    """A batch: `good` are outcomes with their places in it, `errors` what is wrong with others, by place."""

    good: list[StoredOutcome] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)


class Intake:
    """Takes outcomes in. `plans` gives all experiments, the same object until they change; `refused` counts
    outcomes that could not be taken."""

    def __init__(
        self,
        recorder: Recorder,
        plans: Callable[[], Sequence[Experiment]],
        threads: StoreThreads,
        refused: Callable[[int], None],
    ) -> None:
        self._recorder, self._plans, self._threads, self._refused = recorder, plans, threads, refused
        self._room = asyncio.Semaphore(MAX_BATCHES)
        self._read: Sequence[Experiment] = ()
        self._there: dict[Visibility, _There] = {}

    async def one(self, message: pb.Outcome, caller: OutcomeSender) -> pb.RecordOutcomeResponse:
        """Raises InvalidRequest, NotFound where it belongs to nothing that was exposed, QuotaExceeded, and
        Overloaded where it would have to wait and may not."""
        if caller.meter is not None:
            caller.meter.take_outcomes(1)
        there = self._seen_by(caller.visibility)
        try:
            outcome = there.claimed(outcome_of(message, "outcome", time.time(), there.declared), caller)
        except InvalidRequest:
            self._refused(1)
            raise
        (status,) = await self._recorded([outcome], caller, self._recorder.record)
        if status is Accepted.NOT_KEPT:
            raise Overloaded(f"not kept: {FULL}", retry_after=FULL_RETRY, bound="outcomes")
        if status is Accepted.UNKNOWN:
            raise there.unknown(message)
        warning = there.names.warning(outcome.metric, outcome.experiment)
        return pb.RecordOutcomeResponse(status=STATUSES[status], warning=warning)

    async def batch(
        self, request: pb.RecordOutcomesRequest, caller: OutcomeSender
    ) -> pb.RecordOutcomesResponse:
        """The acknowledgement of a batch of at most MAX_OUTCOMES. Waits while the queue is full.

        Raises StoreDown, InvalidRequest.
        """
        if len(request.outcomes) > MAX_OUTCOMES:
            text = f"must have at most {MAX_OUTCOMES} entries, got {len(request.outcomes)}"
            raise InvalidRequest([FieldViolation("outcomes", text)])
        there = self._seen_by(caller.visibility)
        async with self._room:
            parsed = await self._threads.run(self._parse, request, there, caller)
            recorded = await self._recorded(parsed.good, caller, self._record)
        self._refused(len(parsed.errors))
        statuses = [pb.OUTCOME_STATUS_INVALID] * len(request.outcomes)
        for place, status in zip(parsed.places, recorded, strict=True):
            if status is Accepted.NOT_KEPT:
                parsed.errors[place] = f"outcomes[{place}]: not kept: {FULL}"
            else:
                statuses[place] = STATUSES[status]
        errors = [parsed.errors[place] for place in sorted(parsed.errors)]
        named = dict.fromkeys((outcome.metric, outcome.experiment) for outcome in parsed.good)
        warnings = filter(None, (there.names.warning(*name) for name in named))
        return pb.RecordOutcomesResponse(
            sequence=request.sequence, statuses=statuses, errors=errors, warnings=warnings
        )

    def _parse(self, request: pb.RecordOutcomesRequest, there: _There, caller: OutcomeSender) -> _Parsed:
        parsed, now = _Parsed(), time.time()
        for i, message in enumerate(request.outcomes):
            try:
                outcome = outcome_of(message, f"outcomes[{i}]", now, there.declared)
            except InvalidRequest as error:
                parsed.errors[i] = error.message[:500]
            else:
                parsed.good.append(there.claimed(outcome, caller))
                parsed.places.append(i)
        return parsed

    async def _record(self, outcomes: Sequence[StoredOutcome]) -> tuple[Accepted, ...]:
        while True:
            try:
                return await self._recorder.record(outcomes)
            except Overloaded:  # a stream can wait: its client is not read meanwhile
                await asyncio.sleep(FULL_SECONDS)

    async def _recorded(
        self,
        outcomes: Sequence[StoredOutcome],
        caller: OutcomeSender,
        record: Callable[[Sequence[StoredOutcome]], Awaitable[tuple[Accepted, ...]]],
    ) -> tuple[Accepted, ...]:
        """What is not stored after all costs the caller's day nothing."""
        try:
            found = await record(outcomes)
        except Unavailable:  # not for a caller that went away: what it sent is stored
            if caller.meter is not None:
                caller.meter.not_stored(len(outcomes))
            raise
        if caller.meter is not None and (lost := found.count(Accepted.NOT_KEPT)):
            caller.meter.not_stored(lost)
        return found

    def _seen_by(self, visibility: Visibility) -> _There:
        """What is there for a caller, made anew where experiments have changed."""
        plans = self._plans()
        if plans is not self._read or len(self._there) > MAX_SIGHTS:
            self._read, self._there = plans, {}
        if (found := self._there.get(visibility)) is None:
            found = self._there[visibility] = _There(plans, visibility)
        return found


class Declared:
    """Metrics that are proportions, by the plans of the last phases, for a sender who may know of what
    `sees` says: what holds in other experiments holds, too, without their names."""

    def __init__(
        self, experiments: Iterable[Experiment] = (), sees: Callable[[Experiment], bool] = lambda _: True
    ) -> None:
        self._by_experiment: dict[str, frozenset[str]] = {}
        self._anywhere: dict[str, str] = {}
        for experiment in experiments:
            if experiment.phase is None:
                continue
            names = frozenset(_proportions(experiment.phase.spec))
            if sees(experiment):
                self._by_experiment[experiment.name] = names
                self._anywhere.update(dict.fromkeys(names, f" in {experiment.resource}"))
            else:
                self._anywhere = dict.fromkeys(names, "") | self._anywhere

    def problem(self, metric: str, value: float, experiment: str = "") -> str:
        """Why an outcome cannot have this value; empty if it can.

        Of a response it is not known here in which experiment it was: any that has the metric counts.
        """
        if value in (0.0, 1.0):
            return ""
        if experiment:
            where = f" in experiments/{experiment}"
            wrong = metric in self._by_experiment.get(experiment, ())
        else:
            where = self._anywhere.get(metric, "")
            wrong = metric in self._anywhere
        return f"must be 0 or 1, since {metric!r} is a proportion{where}, got {value:g}" if wrong else ""


def _proportions(spec: Spec) -> Iterable[str]:
    return (m.name for m in spec.metrics if m.kind.rules.binary)


class PlannedNames:
    """Names of outcomes that plans read. `experiments` are those that the sender may know of."""

    def __init__(self, experiments: Iterable[Experiment] = ()) -> None:
        self._by_experiment = {one.name: frozenset(_names(one)) for one in experiments}
        self._anywhere = frozenset[str]().union(*self._by_experiment.values())

    def warning(self, metric: str, experiment: str = "") -> str:
        """Why an outcome of this name counts in no plan; empty if it counts, or where there is no plan.

        Of a response it is not known here in which experiment it was: any that has the metric counts.
        """
        known = self._by_experiment.get(experiment, frozenset()) if experiment else self._anywhere
        if not known or metric in known:
            return ""
        what = f"the plan of experiments/{experiment} has no" if experiment else "no plan has a"
        near = difflib.get_close_matches(metric, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known)[:MAX_NAMES])}."
        return f"{what} metric {metric!r}; {hint} The outcome is kept, and in no report"


def _names(experiment: Experiment) -> Iterator[str]:
    plans = (experiment.spec, *(phase.spec for phase in experiment.phases[-1:]))
    for metric in (metric for spec in plans for metric in spec.metrics):
        yield metric.name
        if metric.kind.rules.has_denominator and metric.per not in DENOMINATORS:
            yield metric.per


class _There:
    """Experiments as they are there for a caller, and what it may say of them."""

    def __init__(self, plans: Sequence[Experiment], visibility: Visibility) -> None:
        self._visibility = visibility
        self._seen = {plan.name for plan in plans if visibility.sees(plan)}
        self._hidden = {plan.name for plan in plans} - self._seen
        self.declared = Declared(plans, visibility.sees)
        self.names = PlannedNames(plan for plan in plans if plan.name in self._seen)

    def claimed(self, outcome: StoredOutcome, caller: OutcomeSender) -> StoredOutcome:
        """As it is kept: under a key of the tenant's own, so that two tenants may use the same one. One of an
        answer or experiment that is not the caller's becomes one of what nobody can ever have."""
        if caller.tenant:
            outcome = replace(outcome, key=f"{caller.tenant}/{outcome.key}")
        if outcome.response_id:
            own = may_be_of(outcome.response_id, caller.tenant)
            return outcome if own else replace(outcome, response_id=NOBODYS + outcome.response_id)
        name = outcome.experiment
        if name not in self._hidden and name in self._visibility.experiments:
            return outcome
        return replace(outcome, experiment=NOBODYS + name, unit=NOBODYS + outcome.unit)

    def unknown(self, message: pb.Outcome) -> NotFound:
        """The error for an outcome that belongs to nothing."""
        if message.response_id:
            return NotFound("response", message.response_id, NO_RESPONSE)
        if message.unit.experiment.removeprefix("experiments/") not in self._seen:
            return ExperimentNotFound(message.unit.experiment)
        unit = message.unit.unit or message.unit.unit_hash
        return NotFound("unit", unit, f" in {message.unit.experiment}: {NO_UNIT}")


async def paced(
    batches: AsyncIterator[pb.RecordOutcomesRequest],
    meter: UsageMeter | None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[pb.RecordOutcomesRequest, None]:
    """The same, counted. While the caller owes outcomes a second the next batch is not read, so that the
    transport holds its sender back and no batch lies about. Raises QuotaExceeded where its day is used up."""
    while True:
        while meter is not None:
            if not (seconds := meter.owed()):
                break
            await sleep(seconds)
        try:
            batch = await anext(batches)
        except StopAsyncIteration:
            return
        if meter is not None:
            meter.owe_outcomes(len(batch.outcomes))
        yield batch


async def answers_in_order(
    requests: AsyncIterable[Request],
    answer: Callable[[Request], Awaitable[Answer]],
    most: int,
) -> AsyncIterator[Answer]:
    """The answers in the order of the requests; `answer` runs for up to `most` of them at once.

    While so many wait for their answers no further request is read, so that the transport holds the sender
    back. What a request raises is raised in its turn; later ones are then given up.
    """
    room = asyncio.Semaphore(most)
    begun: asyncio.Queue[asyncio.Future[Answer] | None] = asyncio.Queue()
    tasks: set[asyncio.Future[Answer]] = set()

    async def read() -> None:
        iterator = aiter(requests)
        while True:
            await room.acquire()
            try:
                request = await anext(iterator)
            except StopAsyncIteration:
                return
            task = asyncio.ensure_future(answer(request))
            tasks.add(task)
            begun.put_nowait(task)

    reader = asyncio.ensure_future(read())
    reader.add_done_callback(lambda _: begun.put_nowait(None))
    try:
        while (task := await begun.get()) is not None:
            yield await task
            tasks.discard(task)
            room.release()
        await reader  # what ended it, if the requests did not
    finally:
        left: list[asyncio.Future[Any]] = [reader, *tasks]
        for future in left:
            future.cancel()
        await asyncio.gather(*left, return_exceptions=True)


AHEAD = 300.0  # seconds that a client's clock may be ahead of ours
MAX_KEY, MAX_RESPONSE_ID, MAX_UNIT = 128, 128, 256  # bytes
UNIT_HASH = re.compile(r"[0-9a-f]{32}")


def outcome_of(message: pb.Outcome, field: str, now: float, declared: Declared) -> StoredOutcome:
    """The outcome under a key, received at `now` (unix seconds).

    Raises InvalidRequest naming every bad field.
    """
    found = Findings()
    response, experiment, unit = _subject(message, field, found)
    if problem := outcome_problem(message.metric):
        found.add(f"{field}.metric", problem)
    value = message.value
    if not math.isfinite(value):
        found.add(f"{field}.value", f"must be a finite number, got {value}")
    elif problem := declared.problem(message.metric, value, experiment):
        found.add(f"{field}.value", problem)
    time = _time(message, field, now, found)
    key = _text(found, f"{field}.idempotency_key", message.idempotency_key, MAX_KEY)
    if key.startswith(SERVER_KEYS):
        found.add(f"{field}.idempotency_key", f"{SERVER_KEYS} is what keys of the server's own begin with")
    found.check()
    at = now if time is None else time
    outcome = StoredOutcome(key, message.metric, value, at, response, experiment, unit, received=now)
    return outcome if key else _with_key(outcome, timed=time is not None)


def _subject(message: pb.Outcome, field: str, found: Findings) -> tuple[str, str, str]:
    """Response id, experiment and unit's hash; what is not given is empty."""
    kind = message.WhichOneof("subject")
    if kind == "response_id":
        if not message.response_id:
            found.add(f"{field}.response_id", "must not be empty")
        return _text(found, f"{field}.response_id", message.response_id, MAX_RESPONSE_ID), "", ""
    if kind is None:
        found.add(field, "one of response_id and unit must be set")
        return "", "", ""
    name = ""
    try:
        name = parse_experiment(message.unit.experiment, f"{field}.unit.experiment")
    except InvalidRequest as error:
        for v in error.violations:
            found.add(v.field, v.description)
    return "", name, _hash(message.unit, f"{field}.unit", found)


def _hash(message: pb.Outcome.UnitOfExperiment, field: str, found: Findings) -> str:
    """The unit's hash, from the one of both fields that is set."""
    unit, hashed = message.unit, message.unit_hash
    if unit and hashed:
        found.add(f"{field}.unit_hash", "must be empty where unit is set: a unit is named once")
    elif hashed:
        if UNIT_HASH.fullmatch(hashed) is None:
            text = "must be the hash of a unit as exports have it, 32 of the characters 0-9 and a-f"
            found.add(f"{field}.unit_hash", text)
        return hashed
    if is_missing(unit):
        text = "must be a unit as in routing.unit, not empty or a word for nobody, or unit_hash must be set"
        found.add(f"{field}.unit", text)
    found.text(f"{field}.unit", unit, MAX_UNIT)
    return unit_hash(unit)


def _text(found: Findings, field: str, value: str, most: int) -> str:
    """A text that every database takes: PostgreSQL has no NUL."""
    if "\0" in value:
        found.add(field, "must not hold the character NUL")
    return found.text(field, value, most)


def _time(message: pb.Outcome, field: str, now: float, found: Findings) -> float | None:
    """Unix seconds; None where it is not set."""
    if not message.HasField("time"):
        return None
    seconds, nanos = message.time.seconds, message.time.nanos
    if not (0 <= seconds <= 253_402_300_799 and 0 <= nanos < 1_000_000_000):
        found.add(f"{field}.time", "must be a time between 1970 and 9999")
        return now
    time = float((seconds * 10**9 + nanos) / 10**9)
    if time > now + AHEAD:
        text = f"is {time - now:.0f} s ahead of the server's clock, {AHEAD:.0f} s are allowed"
        found.add(f"{field}.time", f"{text}: set the client's clock, or leave the time out")
    return time


def _with_key(outcome: StoredOutcome, timed: bool) -> StoredOutcome:
    """The key that the server makes: the same for the same subject, metric and time.

    Without a time two outcomes cannot be distinguished, so each has a key of its own.
    """
    parts = (outcome.response_id, outcome.experiment, outcome.unit, outcome.metric, repr(outcome.time))
    made = sha256("\x1f".join(parts).encode()).hexdigest()[:32] if timed else uuid.uuid4().hex
    return replace(outcome, key=f"auto-{made}")
