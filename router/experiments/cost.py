"""What a response costs: its tokens and its seconds, by the server's prices.

Seconds are those on the device, in a batch with others, and before that those until its adapter was loaded
and its prompt read in. Time in the engine's queue costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.experiments.model import COST, Spec
from router.types import Usage

MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Prices:
    """In any unit of account: of a million prompt tokens that were computed (not cached), of a million
    completion tokens, and of a second."""

    prompt: float = 0.0
    completion: float = 0.0
    second: float = 1.0

    def cost(self, usage: Usage, before: float) -> float:
        """Of a response; `before`: seconds until the engine had it."""
        prompt = max(0, usage.prompt_tokens - usage.cached_tokens) * self.prompt
        tokens = (prompt + usage.completion_tokens * self.completion) / MILLION
        return tokens + (max(0.0, usage.total_time - usage.queue_time) + before) * self.second


def reads_cost(spec: Spec) -> bool:
    """Whether a plan has a metric of what responses cost."""
    return any(COST in (metric.name, metric.per) for metric in spec.metrics)
