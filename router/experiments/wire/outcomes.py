"""Outcomes on the wire: as clients tell them, and as the server takes them, every bad field named."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count, islice
from typing import TYPE_CHECKING

from router.errors import Findings, InvalidRequest
from router.experiments import model
from router.experiments.assignment import is_missing, unit_hash
from router.experiments.model import SERVER_KEYS, Accepted, outcome_problem, parse_experiment
from router.experiments.wire import timestamp
from router.experiments.wire.plans import experiment_name
from router.v1 import experiments_pb2 as pb

if TYPE_CHECKING:  # numpy, which clients do not need
    from router.experiments.management.plans import Declared

BATCH = 500
AHEAD = 300.0  # seconds that a client's clock may be ahead of ours
MAX_KEY, MAX_RESPONSE_ID, MAX_UNIT = 128, 128, 256  # bytes
UNIT_HASH = re.compile(r"[0-9a-f]{32}")
STATUSES = {
    Accepted.COUNTED: pb.OUTCOME_STATUS_COUNTED,
    Accepted.DUPLICATE: pb.OUTCOME_STATUS_DUPLICATE,
    Accepted.LATE: pb.OUTCOME_STATUS_LATE,
    Accepted.UNKNOWN: pb.OUTCOME_STATUS_UNKNOWN,
}
ACCEPTED = {number: status for status, number in STATUSES.items()}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One value of one metric, of a response or of a unit in an experiment.

    A unit is named by `unit`, or by `unit_hash` as exports have it. `time` in unix seconds, None: when the
    server gets it. The same `key` is counted once; without one the client makes one for each call, so that
    its own retries are safe, but not yours.
    """

    metric: str
    value: float
    response_id: str = ""
    experiment: str = ""
    unit: str = ""
    time: float | None = None
    key: str = ""
    unit_hash: str = ""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an outcome of a batch; status None: refused, and `error` says why."""

    status: Accepted | None
    error: str = ""


def outcome_message(outcome: Outcome) -> pb.Outcome:
    """One outcome, with a key. ValueError unless it is of a response or of a unit in an experiment."""
    units = [unit for unit in (outcome.unit, outcome.unit_hash) if unit]
    by_unit = bool(outcome.experiment or units)
    if bool(outcome.response_id) == by_unit or by_unit != bool(outcome.experiment and len(units) == 1):
        raise ValueError("an outcome is of a response_id, or of an experiment and a unit or a unit_hash")
    made = pb.Outcome(
        metric=outcome.metric,
        value=outcome.value,
        idempotency_key=outcome.key or uuid.uuid4().hex,
        time=None if outcome.time is None else timestamp(outcome.time),
    )
    if by_unit:
        made.unit.experiment = experiment_name(outcome.experiment)
        made.unit.unit, made.unit.unit_hash = outcome.unit, outcome.unit_hash
    else:
        made.response_id = outcome.response_id
    return made


def batches(outcomes: Iterable[Outcome]) -> Iterator[pb.RecordOutcomesRequest]:
    """Numbered batches of outcomes."""
    left = iter(outcomes)
    for number in count(1):
        if not (batch := list(islice(left, BATCH))):
            return
        yield pb.RecordOutcomesRequest(sequence=number, outcomes=map(outcome_message, batch))


def recorded_of(message: pb.RecordOutcomesResponse) -> Iterator[Recorded]:
    """One for each outcome of a batch; errors stand with those that were refused."""
    errors = iter(message.errors)
    for status in message.statuses:
        found = ACCEPTED.get(status)
        yield Recorded(found, "" if found else next(errors, "refused"))


def outcome_of(message: pb.Outcome, field: str, now: float, declared: Declared) -> model.Outcome:
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
    outcome = model.Outcome(key, message.metric, value, at, response, experiment, unit, received=now)
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


def _with_key(outcome: model.Outcome, timed: bool) -> model.Outcome:
    """The key that the server makes: the same for the same subject, metric and time.

    Without a time nothing tells two outcomes apart, so each has a key of its own.
    """
    said = (outcome.response_id, outcome.experiment, outcome.unit, outcome.metric, repr(outcome.time))
    made = sha256("\x1f".join(said).encode()).hexdigest()[:32] if timed else uuid.uuid4().hex
    return replace(outcome, key=f"auto-{made}")
