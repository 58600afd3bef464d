"""Who is served next: the higher priority, then the tenant that was served least, then who came first.

vLLM serves in the order of arrival, so no more is handed to it than it can run, and the others wait here.
"""

from __future__ import annotations

from collections.abc import Callable

from router.engine.fairness import ANSWER_COST, VirtualCounters
from router.engine.vllm.answers import Answer

PATIENCE = 1.0  # seconds


class Line:
    """Requests that wait. Background jobs never do."""

    def __init__(self) -> None:
        self._waiting: list[Answer] = []
        self._served = VirtualCounters()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, answer: Answer) -> None:
        """It waits from now on."""
        self._waiting.append(answer)
        self._served.enter(answer.job.tenant)

    def remove(self, answer: Answer) -> bool:
        """It waits no longer; False if it did not."""
        if answer not in self._waiting:
            return False
        self._waiting.remove(answer)
        self._served.leave(answer.job.tenant)
        return True

    def next(self, fits: Callable[[Answer], bool] = lambda answer: True) -> Answer | None:
        """Who is served now, None if nobody waits or has to.

        Who does not fit is overtaken by those who do, but not for long: then all wait until it fits.
        """
        ranked = sorted(self._waiting, key=self._rank)
        first = next((answer for answer in ranked if fits(answer) or answer.waited > PATIENCE), None)
        if first is None or not fits(first):
            return None
        self.remove(first)
        self._served.charge(first.job.tenant, len(first.job.tokens) / first.job.share)
        return first

    def charge(self, answer: Answer, tokens: int) -> None:
        """Its answer has grown by so many."""
        self._served.charge(answer.job.tenant, ANSWER_COST * tokens / answer.job.share)

    def _rank(self, answer: Answer) -> tuple[int, float, int]:
        return -answer.job.priority, self._served.served(answer.job.tenant), answer.number
