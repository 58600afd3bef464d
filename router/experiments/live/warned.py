"""What deserves a second look, by experiment: said once in the log, and shown until a new phase begins."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from router.experiments.live.snapshot import Running

log = logging.getLogger(__name__)
MOST = 8  # of one experiment


class Warned:
    """Texts by experiment. Those of one that has stopped stay, for whoever reads its report."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._phases: dict[str, int] = {}

    def use(self, running: Iterable[Running]) -> None:
        """Forget what was said of an earlier phase."""
        for one in running:
            if self._phases.get(one.name) != one.phase:
                self._phases[one.name] = one.phase
                self._texts.pop(one.name, None)

    def add(self, name: str, text: str) -> None:
        """Say it, unless it was said. `text` is the same for the same fault, so without numbers that grow."""
        known = self._texts.setdefault(name, [])
        if text not in known and len(known) < MOST:
            known.append(text)
            log.warning("experiment %s: %s", name, text)

    def of(self, name: str) -> tuple[str, ...]:
        """All of one experiment, in the order in which they were found."""
        return tuple(self._texts.get(name, ()))
