"""The latest verdicts of experiments, for pages of the console."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.extensions.experiments.report.model import Report
    from router.extensions.experiments.runtime import LiveExperiments

KEPT_SECONDS = 86_400.0  # an experiment that was stopped for harm is shown for so long


class Verdicts:
    """The latest verdict of each running experiment, as the guardian of experiments found it."""

    def __init__(self, live: LiveExperiments | None = None) -> None:
        self._live = live
        self.decisions: dict[str, str] = {}
        self._said: dict[str, tuple[float, str]] = {}
        if live is not None:
            live.guardian.observers.append(self.note)

    def note(self, report: Report) -> None:
        """A report was made; in the thread of the look."""
        from router.extensions.experiments.words import heading

        self.noted(report.experiment.name, str(report.verdict.decision), heading(report))

    def noted(self, name: str, decision: str, heading: str) -> None:
        """The verdict of an experiment, in one sentence."""
        if decision == "undecided":
            self.decisions.pop(name, None)
        else:
            self._said[name] = time.time(), heading.rstrip(".")
            self.decisions[name] = decision

    def shown(self) -> Iterator[tuple[str, str]]:
        """Name and verdict of those that run, and of those that were stopped for harm within a day."""
        running = (
            {one.name for one in self._live.assigner.snapshot.all()} if self._live is not None else set()
        )
        for name, decision in tuple(self.decisions.items()):
            noted, said = self._said[name]
            if name in running or (decision == "stop for harm" and time.time() - noted < KEPT_SECONDS):
                yield name, said
            else:
                self.decisions.pop(name, None)
