"""A run and what is known of it, in a folder of its own, so that a later call goes on where one ended."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from router.errors import FailedPrecondition

STATE, LOCK = "run.json", "lock"
TRIES, LOOK_SECONDS = 5, 0.1
WORK = Path("runs") / "improve"
LEAST_ROWS = 80  # usable rows that a run takes, unless --least says another number


class Result(StrEnum):
    """How far a run came. `NONE`, `BETTER` and `CANARY` go on at the next call; the others are ends."""

    NONE = ""
    TOO_FEW = "too few rows"
    NO_BETTER = "no better"
    BETTER = "better, not offered yet"
    CANARY = "canary"
    PROMOTED = "promoted"
    LOST = "canary lost"

    @property
    def goes_on(self) -> bool:
        """Whether the next call goes on with the run."""
        return self in (Result.NONE, Result.BETTER, Result.CANARY)

    @property
    def offered(self) -> bool:
        """Whether users saw its version: its feedback is used up."""
        return self in (Result.CANARY, Result.PROMOTED, Result.LOST)


@dataclass(slots=True)
class Run:
    """All of a run but the rows themselves. Times in unix seconds; empty values are of steps to come."""

    number: int
    name: str
    began: float
    base: str = ""  # version that it starts from
    base_folder: str = ""
    version: str = ""  # of what it makes
    until: float = 0.0  # time of the newest feedback that was read
    read: int = 0  # records
    train: int = 0  # rows
    held_out: int = 0
    own: int = 0  # rows of the recipe that are mixed in
    left: dict[str, int] = field(default_factory=dict)  # records that were left out, by reason
    masked: dict[str, int] = field(default_factory=dict)  # prompts with personal data masked, by its kind
    rows_sha256: str = ""
    steps: int = 0  # of training
    trained: float = 0.0  # seconds
    new: Mapping[str, Any] = field(default_factory=dict)  # comparison on feedback that was held out
    old: Mapping[str, Any] = field(default_factory=dict)  # comparison on the recipe's validation rows
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


TRAIN, SELECT, NEW, OLD, CHECKED = (
    "train.jsonl",
    "select.jsonl",
    "held_out.jsonl",
    "validation.jsonl",
    "checked.jsonl",
)
TEXTS = (TRAIN, NEW, CHECKED)  # files with texts of users


def runs_of(work: Path, name: str) -> list[RunFolder]:
    """All runs of an adapter, the oldest first. A state that cannot be read is an error that names it."""
    found = []
    for file in sorted((work / name).glob(f"*/{STATE}"), key=lambda file: int(file.parent.name)):
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            known = {one.name for one in fields(Run)}
            run = Run(**{key: value for key, value in values.items() if key in known})
            run.result = Result(run.result)
        except (OSError, ValueError, TypeError) as error:
            raise FailedPrecondition(f"{file} cannot be read: {error}; remove its folder") from error
        found.append(RunFolder(file.parent, run))
    return found


@contextmanager
def alone(work: Path, name: str) -> Iterator[None]:
    """One call for an adapter at a time. Raises FailedPrecondition while another one runs."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        for _ in range(TRIES):
            if locked := _locked(lock, fcntl.LOCK_EX):
                break
            time.sleep(LOOK_SECONDS)  # somebody only looks
        if not locked:
            lock.seek(0)
            raise FailedPrecondition(f"{name} is being improved by process {lock.read() or '?'}")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def is_running(work: Path, name: str) -> bool:
    """Whether a call for this adapter is at work now."""
    file = work / name / LOCK
    if not file.is_file():
        return False
    with file.open() as lock:
        return not _locked(lock, fcntl.LOCK_SH)


def _locked(file: IO[str], kind: int) -> bool:
    """Lock it until it is closed; False where another process has it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
