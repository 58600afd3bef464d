"""What goes between an edge and a replica: posts up, batches down. Plain values that pickle.

Clocks of two machines have nothing to do with each other, so times travel as durations: a deadline as the
seconds that are left, the last progress as the seconds since.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from router.engine.base import BaseInfo, Delta, EngineStatus, Finished, Job, Reading
from router.errors import RouterError
from router.types import Constraint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WIRE = 3  # raised with every change of what is written here


@dataclass(frozen=True, slots=True)
class Hello:
    """What a replica says when its base is loaded. Replicas of one fleet say the same."""

    info: BaseInfo
    version: str
    wire: int = WIRE


@dataclass(frozen=True, slots=True)
class Submit:
    """Answer a job. Its deadline is in seconds from now, its constraint is compiled where it runs."""

    key: int
    job: Job


@dataclass(frozen=True, slots=True)
class Read:
    """Do a reading."""

    key: int
    reading: Reading


@dataclass(frozen=True, slots=True)
class Compile:
    """Compile a constraint, and keep the grammar for jobs of the tenant that have it."""

    key: int
    constraint: Constraint
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """Hold an adapter. `weights` is what the edge put down and the replica fetches."""

    key: int
    digest: str
    weights: object


@dataclass(frozen=True, slots=True)
class Unload:
    """Let go of an adapter."""

    key: int
    digest: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for the answer of `key` any more. A job still gets its Finished."""

    key: int


Command = Submit | Read | Compile | Load | Unload | Cancel


@dataclass(frozen=True, slots=True)
class Post:
    """What an edge wants, all of one turn of its event loop; with no commands a sign of life.

    `edge` names the edge and the stream that the answers go to, `number` counts from 0: posts may overtake
    each other on the way.
    """

    edge: str
    number: int
    commands: tuple[Command, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that came of a command. All but a Delta are the last of their key."""

    key: int
    what: Delta | Finished | RouterError | NDArray[np.float32] | int | None


@dataclass(frozen=True, slots=True)
class Batch:
    """What has happened since the last one; now and then how the engine is. `number` counts from 0."""

    number: int
    events: tuple[Event, ...]
    status: EngineStatus | None = None


def sent(job: Job) -> Job:
    """The job as it travels."""
    left = None if job.deadline is None else job.deadline - time.monotonic()
    return replace(job, deadline=left, grammar=None)


def arrived(job: Job) -> Job:
    """The job as it is submitted where it arrived."""
    return job if job.deadline is None else replace(job, deadline=job.deadline + time.monotonic())


def sent_reading(reading: Reading) -> Reading:
    """The reading as it travels."""
    left = None if reading.deadline is None else reading.deadline - time.monotonic()
    return replace(reading, deadline=left)


def arrived_reading(reading: Reading) -> Reading:
    """The reading as it is done where it arrived."""
    left = reading.deadline
    return reading if left is None else replace(reading, deadline=left + time.monotonic())


def flipped(status: EngineStatus) -> EngineStatus:
    """A status with the time of its last progress made a duration, or a duration a time again."""
    return replace(status, last_progress=time.monotonic() - status.last_progress)


def differences(one: Hello, other: Hello) -> Mapping[str, tuple[object, object]]:
    """What two replicas do not have in common, by name; empty for replicas of one fleet."""
    found: dict[str, tuple[object, object]] = {}
    for name in ("version", "wire"):
        found[name] = getattr(one, name), getattr(other, name)
    for field in fields(BaseInfo):
        found[field.name] = getattr(one.info, field.name), getattr(other.info, field.name)
    return {name: (mine, theirs) for name, (mine, theirs) in found.items() if mine != theirs}
