"""Contestants of a benchmark: each in a process of its own that lives for the whole run; one works at a time.

libgomp lets threads spin between parallel regions only while a process has no more of them than there are
CPUs. Two libraries in one process therefore slow each other several times over, even while one of them rests.
So every contestant loads its base alone, gets an environment without anybody else's settings for threads, and
waits in a read while another works.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

import psutil
from rich.console import Console
from rich.progress import Progress

from benchmarks.answering import NEW_TOKENS, prompts, threading_settings

ROOT = Path(__file__).parents[1]
LOOK_SECONDS = 1.0  # between looks at whether a contestant that says nothing is still there
LAST_LINES = 15
END_SECONDS = 10.0
QUIET_SECONDS = 0.2  # without work of the others before a round begins
SETTLE_SECONDS = 10.0  # until it begins all the same; the result then tells what they used
GUARD = 'read _; kill -s KILL -- "-$0"'  # waits until no process can write to it; ends a group
ALONE = 0.05  # of a core: more than this beside a contestant is told as a fault of the measurement


class Died(Exception):
    """A contestant ended before it had answered; the message has its last lines of standard error."""


@dataclass(frozen=True, slots=True)
class Entry:
    """How to start a contestant. `settings`: environment as its own documentation has it; `why`: in words."""

    name: str
    command: Sequence[str]
    settings: Mapping[str, str] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Arm:
    """A line of the table: which contestant works, with how many adapters."""

    name: str
    contestant: str
    adapters: int


def ours(module: str, *arguments: str) -> list[str]:
    """The command of a contestant that runs in this environment."""
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process' environment without any setting for threads, and then `settings`."""
    given = dict(os.environ)
    for name in threading_settings(given):
        del given[name]
    return given | dict(settings)


def physical_cores() -> int:
    """Physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0))
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


class Contestant:
    """One process, spoken to in lines of JSON."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  a file: nobody reads it during a round
        self._process = subprocess.Popen(
            entry.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env=environment(entry.settings),
            start_new_session=True,  # a group of its own, which is ended as a whole
        )
        # It ends the group, too, where this process is killed and cannot.
        guard = ["sh", "-c", GUARD, str(self._process.pid)]
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)
        try:
            self.about: dict[str, Any] = self._read()
        except BaseException:
            self.kill()
            raise

    def ask(self, work: Mapping[str, Any]) -> dict[str, Any]:
        """One round. Raises Died."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(work) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._died()
        return self._read()

    def used(self) -> float:
        """Processor seconds of this process and its children so far."""
        total = 0.0
        try:
            here = psutil.Process(self._process.pid)
            for process in (here, *here.children(recursive=True)):
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:  # what died is told when it is asked
            pass
        return total

    def end(self) -> None:
        """Let it end by itself: its input is over."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self._process.stdin.close()
            self._process.wait(END_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it and all its children at once."""
        self._guard.kill()
        self._guard.communicate()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):  # a line that it never read
                pipe.close()

    def _read(self) -> dict[str, Any]:
        """Its next line. Children of a dead process may keep the pipe open: the process is looked at, too."""
        assert self._process.stdout is not None
        while not select.select([self._process.stdout], [], [], LOOK_SECONDS)[0]:
            if self._process.poll() is not None:
                self._died()
        try:
            said: dict[str, Any] = json.loads(self._process.stdout.readline())
        except ValueError:  # the end, or half a line
            self._died()
        return said

    def _died(self) -> NoReturn:
        try:
            code = self._process.wait(END_SECONDS)
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        except subprocess.TimeoutExpired:
            how = "no answer, though it still runs"
        if how == "SIGKILL":
            how += " (perhaps memory ran out)"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()[-LAST_LINES:]
        said = "\n".join(f"  {line}" for line in lines) or "  (nothing)"
        raise Died(f"{self.entry.name} ended: {how}. Its last lines of standard error:\n{said}")


class Field:
    """All contestants. While one works, the others and the rest of the machine are watched."""

    def __init__(self) -> None:
        self._contestants: dict[str, Contestant] = {}
        self.idle = 0.0  # the most of a core that waiting contestants used together during a round
        self.others = 0.0  # the most of a core that all else on the machine used

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for contestant in self._contestants.values():
            contestant.kill() if kind else contestant.end()

    def start(self, entry: Entry) -> dict[str, Any]:
        """Start one and wait until it is ready; returns what it says of itself. Raises Died."""
        with told(f"starting {entry.name}", None):
            self._contestants[entry.name] = contestant = Contestant(entry)
        return contestant.about

    def ask(self, name: str, work: Mapping[str, Any]) -> dict[str, Any]:
        """One round of one contestant. Raises Died."""
        everybody = list(self._contestants.values())
        self._settle([c for c in everybody if c.entry.name != name])
        begin, busy, used = time.monotonic(), _busy(), [c.used() for c in everybody]
        answer = self._contestants[name].ask(work)
        seconds = time.monotonic() - begin
        spent = {c.entry.name: c.used() - u for c, u in zip(everybody, used, strict=True)}
        waiting = sum(spent.values()) - spent[name]
        self.idle = max(self.idle, waiting / seconds)
        self.others = max(self.others, (_busy() - busy - sum(spent.values())) / seconds)
        return answer

    def _settle(self, others: Sequence[Contestant]) -> None:
        """Wait until those who worked last are asleep: a worker of vLLM looks for more work for a second."""
        limit = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < limit:
            used = sum(c.used() for c in others)
            time.sleep(QUIET_SECONDS)
            if sum(c.used() for c in others) == used:
                return

    def rows(self) -> list[dict[str, Any]]:
        """What each contestant is, as it said itself."""
        return [
            {
                "contestant": name,
                "process": "of its own",
                "threads": c.about["threads"],
                "settings for threads": _pairs(c.about["settings"], "=") or "none: the library's defaults",
                "as": c.entry.why,
                "libraries": _pairs(c.about["libraries"], " "),
            }
            for name, c in self._contestants.items()
        ]

    def notes(self) -> list[str]:
        """Whether each had the machine to itself."""
        lines = [
            f"during a round, contestants that waited used at most {self.idle:.1%} of a core together, "
            f"all else on the machine at most {self.others:.1%}"
        ]
        if max(self.idle, self.others) > ALONE:
            lines.append(f"NOT ALONE: more than {ALONE:.0%} of a core went elsewhere; measure again")
        return lines


@dataclass(slots=True)
class Measured:
    """What the counted rounds gave, by arm."""

    speeds: dict[str, list[float]]  # tokens a second
    steps: dict[str, list[dict[str, float]]]  # milliseconds of a step by part, of contestants that tell


def measure(contestants: Field, arms: Sequence[Arm], vocabulary: int, rounds: int) -> Measured:
    """Every round asks every arm once, the first is warm-up.

    The first token of every prompt is another one each time, so that nobody can answer from a prefix cache.
    """
    tokens = prompts(vocabulary)
    found = Measured({arm.name: [] for arm in arms}, {})
    with told("rounds", (rounds + 1) * len(arms)) as step:
        for run in range(rounds + 1):
            for place, arm in enumerate(arms):
                step(f"round {run} of {rounds}: {arm.name}")
                first = (1000 + run * len(arms) + place) % vocabulary
                asked = [[first, *prompt[1:]] for prompt in tokens]
                work = {"prompts": asked, "new": NEW_TOKENS, "adapters": arm.adapters}
                answer = contestants.ask(arm.contestant, work)
                if not run:
                    continue
                found.speeds[arm.name].append(answer["tokens"] / answer["seconds"])
                if answer.get("step"):
                    found.steps.setdefault(arm.name, []).append(answer["step"])
    return found


def measure_alone(
    contestants: Field, name: str, vocabulary: int, rounds: int, new: int = 256
) -> dict[int, list[float]]:
    """What one request alone makes of the memory, without and with an adapter, in every round.

    1: a step takes as long as reading what it reads.
    """
    tokens = prompts(vocabulary, seed=1, count=2 * rounds)
    shares: dict[int, list[float]] = {0: [], 1: []}
    with told("one request alone", 2 * rounds) as step:
        for run in range(rounds):
            for adapters in shares:
                step(f"round {run + 1} of {rounds}: {adapters} adapters")
                work = {
                    "prompts": [tokens[2 * run + adapters]],
                    "new": new,
                    "adapters": adapters,
                    "alone": True,
                }
                answer = contestants.ask(name, work)
                shares[adapters].append(answer["memory"] / answer["step"])
    return shares


@contextmanager
def told(what: str, steps: int | None) -> Iterator[Callable[[str], None]]:
    """Show on standard error what is worked on; call what it yields as each step begins. Lines in a log."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        print(what, file=sys.stderr, flush=True)
        yield lambda step: print(step, file=sys.stderr, flush=True)
        return
    with Progress(console=screen, transient=True) as progress:
        task = progress.add_task(what, total=steps, completed=0 if steps is None else -1)

        def begin(step: str) -> None:
            progress.update(task, description=step, advance=1)

        yield begin


@contextmanager
def ending() -> Iterator[None]:
    """A contestant's death as one message; Ctrl-C and SIGTERM as an exit, so that all processes are ended."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    usual = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except Died as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGTERM, usual)


def _busy() -> float:
    """Processor seconds that the whole machine has worked."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "steal", 0.0))


def _pairs(values: Mapping[str, str], between: str) -> str:
    return ", ".join(f"{name}{between}{value}" for name, value in values.items())
