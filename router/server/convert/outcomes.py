"""Outcomes: proto to model, every bad field named."""

from __future__ import annotations

import math
import uuid
from hashlib import sha256

from router.errors import InvalidRequest
from router.experiments.assignment import is_missing, unit_hash
from router.experiments.management.declared import Declared
from router.experiments.model import Accepted, Outcome
from router.experiments.names import SERVER_KEYS, outcome_problem, parse_experiment
from router.server.convert.findings import Findings
from router.v1 import experiments_pb2 as pb

AHEAD = 300.0  # seconds that a client's clock may be ahead of ours
MAX_KEY, MAX_RESPONSE_ID, MAX_UNIT = 128, 128, 256  # bytes
STATUSES = {
    Accepted.COUNTED: pb.OUTCOME_STATUS_COUNTED,
    Accepted.DUPLICATE: pb.OUTCOME_STATUS_DUPLICATE,
    Accepted.LATE: pb.OUTCOME_STATUS_LATE,
    Accepted.UNKNOWN: pb.OUTCOME_STATUS_UNKNOWN,
}


def outcome_of(message: pb.Outcome, field: str, now: float, declared: Declared) -> Outcome:
    """The outcome under a key; `now` is unix seconds. Raises InvalidRequest naming every bad field."""
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
    key = _name(found, f"{field}.idempotency_key", message.idempotency_key, MAX_KEY)
    if key.startswith(SERVER_KEYS):
        found.add(f"{field}.idempotency_key", f"{SERVER_KEYS} is what keys of the server's own begin with")
    found.check()
    outcome = Outcome(key, message.metric, value, now if time is None else time, response, experiment, unit)
    return outcome if key else _with_key(outcome, timed=time is not None)


def _subject(message: pb.Outcome, field: str, found: Findings) -> tuple[str, str, str]:
    """Response id, experiment and unit's hash; what is not given is empty."""
    kind = message.WhichOneof("subject")
    if kind == "response_id":
        if not message.response_id:
            found.add(f"{field}.response_id", "must not be empty")
        return _name(found, f"{field}.response_id", message.response_id, MAX_RESPONSE_ID), "", ""
    if kind is None:
        found.add(field, "one of response_id and unit must be set")
        return "", "", ""
    name, unit = "", message.unit.unit
    try:
        name = parse_experiment(message.unit.experiment, f"{field}.unit.experiment")
    except InvalidRequest as error:
        for v in error.violations:
            found.add(v.field, v.description)
    if is_missing(unit):
        found.add(f"{field}.unit.unit", "must be a unit as in routing.unit, not empty or a word for nobody")
    found.text(f"{field}.unit.unit", unit, MAX_UNIT)
    return "", name, unit_hash(unit)


def _name(found: Findings, field: str, value: str, most: int) -> str:
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


def _with_key(outcome: Outcome, timed: bool) -> Outcome:
    """The key that the server makes: the same for the same subject, metric and time.

    Without a time nothing tells two outcomes apart, so each has a key of its own.
    """
    said = (outcome.response_id, outcome.experiment, outcome.unit, outcome.metric, repr(outcome.time))
    made = sha256("\x1f".join(said).encode()).hexdigest()[:32] if timed else uuid.uuid4().hex
    return Outcome(
        f"auto-{made}",
        outcome.metric,
        outcome.value,
        outcome.time,
        outcome.response_id,
        outcome.experiment,
        outcome.unit,
    )
