"""What may be known of one answer while it is given, by whoever wants to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from router.experiments.live.assigner import Assignment
from router.types import Decision, FinishReason, Request, SamplingParams, Usage


@dataclass(frozen=True, slots=True)
class Served:
    """A request that the engine has taken: who answers, with which sampling, for which arm.

    `degraded` says why something else answers for the arm; empty if the arm does.
    """

    request: Request
    decision: Decision
    params: SamplingParams
    assignment: Assignment | None = None
    degraded: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """How an answer ended. `usage` counts what was given until then.

    Without `reason` it did not come to an end: `error` names the reason of the error, or the user
    `cancelled` it.
    """

    reason: FinishReason | None
    text: str
    usage: Usage
    error: str = ""
    cancelled: bool = False


class Watcher(Protocol):
    """Called on the event loop; must return at once and not raise."""

    def began(self) -> None:
        """The first token is there. Not called for an answer that never began."""
        ...

    def ended(self, end: End) -> None:
        """Called once for every answer, begun or not."""
        ...
