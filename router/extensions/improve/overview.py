"""Runs as the console shows them, and how it starts one: the command, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from router.errors import FailedPrecondition, StoreDown
from router.extensions.improve import state, words
from router.extensions.improve.state import LEAST_ROWS, Result, Run
from router.feedback.model import VERDICTS, Verdict
from router.ports import Improvement, ImprovementRun

if TYPE_CHECKING:
    from router.feedback.store import FeedbackStore

TONES: Mapping[Result, str] = {
    Result.NONE: "warn",
    Result.TOO_FEW: "",
    Result.NO_BETTER: "",
    Result.BETTER: "warn",
    Result.CANARY: "info",
    Result.PROMOTED: "ok",
    Result.LOST: "",
}


class Runs:
    """The runs in a work folder. `flags` are those that the command gets when it is started from here."""

    def __init__(
        self,
        work: Path,
        flags: Sequence[str],
        why_not: str,
        store: Callable[[], FeedbackStore | None] = lambda: None,
    ) -> None:
        """`store` gives the feedback that is counted; None: none is kept."""
        self._work, self._flags, self._why_not, self._store = work, flags, why_not, store
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def why_not(self) -> str:
        """Why no run can be started from here; empty if one can."""
        return self._why_not

    def overview(self, names: Sequence[str]) -> Sequence[Improvement]:
        """These adapters, in their order. Raises FailedPrecondition for a state that cannot be read."""
        return [self._one(name) for name in names]

    def _one(self, name: str) -> Improvement:
        known = state.runs_of(self._work, name)
        since = max((one.run.until for one in known if one.run.result.offered), default=0.0)
        runs = [shown(folder.run) for folder in reversed(known)]
        running = state.is_running(self._work, name)
        running = running or self._is_started(name)
        command = f"lora-router adapters improve {name}"
        return Improvement(name, runs, running, command, self._counts(name, since), LEAST_ROWS)

    def _counts(self, name: str, since: float) -> Mapping[str, int] | None:
        """Feedback by verdict; None where none is kept, or it cannot be read now."""
        store = self._store()
        if store is None:
            return None
        try:
            found = Counter[Verdict]()
            for one in store.counts(since, name):
                found[one.verdict] += one.count
        except StoreDown:
            return None
        return {verdict: found[verdict] for verdict in VERDICTS}

    def start(self, name: str) -> None:
        """Begin a run, or go on with one. Raises FailedPrecondition while one runs, or where none may."""
        if self._why_not:
            raise FailedPrecondition(self._why_not)
        if self._is_started(name) or state.is_running(self._work, name):
            raise FailedPrecondition(f"a run of {name} is at work")
        folder = self._work / name
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "router.cli", "adapters", "improve", name, *self._flags]
        with (folder / "console.log").open("ab") as log:
            self._started[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ,
            )

    def _is_started(self, name: str) -> bool:
        process = self._started.get(name)
        return process is not None and process.poll() is None

    def close(self) -> None:
        """End what was started, as by Ctrl-C: a later run goes on."""
        for process in self._started.values():
            if process.poll() is None:
                process.terminate()


def shown(run: Run) -> ImprovementRun:
    """A run in words."""
    return ImprovementRun(
        run.number,
        run.base,
        run.version,
        run.began,
        words.HEADLINES[run.result],
        run.why,
        TONES[run.result],
        f"{run.train} + {run.held_out} held out" if run.read else "",
        run.left,
        words.points(run.new),
        words.points(run.old),
        run.experiment,
    )
