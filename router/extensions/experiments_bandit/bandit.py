"""The mode `bandit` of a server's experiments."""

from __future__ import annotations

from router.experiments.modes import ExperimentMode
from router.experiments.report.model import ArmReport
from router.experiments.report.source import PhaseEvidence
from router.experiments.runtime import LiveExperiments
from router.extensions.experiments_bandit.epochs import Epochs
from router.extensions.experiments_bandit.judging import judged


class Bandit(ExperimentMode):
    """Sets weights epoch by epoch, and judges by labels of events."""

    def __init__(self, live: LiveExperiments) -> None:
        self._epochs = Epochs(live)

    def start(self) -> None:
        """Follow the clock."""
        self._epochs.start()

    async def close(self) -> None:
        """Stop following it."""
        await self._epochs.close()

    def judge(self, source: PhaseEvidence) -> tuple[ArmReport, ...]:
        """Harm, or nothing yet, of every arm but control."""
        return judged(source)
