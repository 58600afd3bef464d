"""A run and what is known of it, in a folder of its own, so that a later call goes on where one ended."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from router.errors import FailedPrecondition

STATE, LOCK = "run.json", "lock"
WORK = Path("runs") / "improve"
TRAIN, SELECT, NEW, TASK = "train.jsonl", "select.jsonl", "held_out.jsonl", "task.jsonl"
TEXTS = (TRAIN, NEW)  # files with texts of users


class Result(StrEnum):
    """How far a run came. `NONE`, `BETTER` and `CANARY` go on at the next call; the others are ends."""

    NONE = "not finished"
    TOO_FEW = "too few rows"
    NO_BETTER = "no better"
    BETTER = "better, not before users yet"
    CANARY = "better, a canary runs"
    PROMOTED = "better, and it serves"
    LOST = "users did not find it better"

    @property
    def goes_on(self) -> bool:
        """Whether the next call goes on with the run."""
        return self in (Result.NONE, Result.BETTER, Result.CANARY)


@dataclass(slots=True)
class Run:
    """All of a run but the rows themselves. Times in unix seconds; empty values are of steps to come."""

    number: int
    name: str
    began: float
    base: str  # the version that serves
    first: str  # the version that it is trained from
    version: str  # of what it makes
    verdict: int = 0  # the n-th against the version that serves; 0: none was begun
    read: int = 0  # records
    train: int = 0  # rows
    held_out: int = 0
    own: int = 0  # rows of the recipe that are mixed in; 0: no rows were written yet
    left: dict[str, int] = field(default_factory=dict)  # records that were left out, by reason
    steps: int = 0  # of training
    trained: float = 0.0  # seconds
    task: str = ""  # what the task rows show
    judged: Sequence[str] = ()  # digests of the users whose feedback was compared: they judge once
    feedback: Mapping[str, Any] = field(default_factory=dict)  # comparison on the feedback of these users
    result: Result = Result.NONE
    why: str = ""
    folder: str = ""  # of the new version among the adapters
    experiment: str = ""
    ended: float = 0.0


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path, run: Run) -> None:
        self.path, self.run = path, run

    def save(self) -> None:
        """Write the state in one step."""
        self.path.mkdir(parents=True, exist_ok=True)
        aside = self.path / f"{STATE}.tmp"
        aside.write_text(json.dumps(asdict(self.run), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        aside.replace(self.path / STATE)

    def end(self, result: Result, why: str) -> None:
        """Note how it ended, and forget the users' texts."""
        self.run.result, self.run.why, self.run.ended = result, why, time.time()
        self.save()
        for name in TEXTS:
            (self.path / name).unlink(missing_ok=True)

    def file(self, name: str) -> Path:
        """A file of the run."""
        return self.path / name


def runs_of(work: Path, name: str) -> list[RunFolder]:
    """All runs of an adapter, the oldest first. A state that cannot be read is an error that names it."""
    found = []
    for file in sorted((work / name).glob(f"*/{STATE}"), key=lambda file: int(file.parent.name)):
        try:
            run = Run(**json.loads(file.read_text(encoding="utf-8")))
            run.result = Result(run.result)
        except (OSError, ValueError, TypeError) as error:
            raise FailedPrecondition(f"{file} cannot be read: {error}; remove its folder") from error
        found.append(RunFolder(file.parent, run))
    return found


def first_of(runs: Sequence[RunFolder], version: str) -> str:
    """The version that runs of `version` train from: itself, or the first one of the run that made it."""
    return next((one.run.first for one in runs if one.run.experiment and one.run.version == version), version)


@contextmanager
def alone(work: Path, name: str) -> Iterator[None]:
    """One call for an adapter at a time. Raises FailedPrecondition while another one runs."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise FailedPrecondition(f"{name} is being improved by process {lock.read() or '?'}") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
