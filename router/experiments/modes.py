"""What a plugin adds to experiments: arms that are routers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from router.experiments.model import Mode, Spec

if TYPE_CHECKING:
    from router.experiments.assignment import ArmAssignment
    from router.experiments.runtime import LiveExperiments
    from router.ports import Served, Watcher
    from router.routing.router import Router
    from router.types import Decision, Request

ROUTERS, SHADOW = "routers", "shadow"
MISSING = {
    ROUTERS: "a router experiment needs the extension experiments_routers, which is not there",
}
"""Why an experiment is refused without the mode that it needs."""


class ExperimentMode:
    """One way of running experiments, of one server. A subclass overrides what differs from a plain split.

    `start` and `close` are called on the event loop, with the server's.
    """

    def start(self) -> None:
        """Begin what runs in the background."""

    async def close(self) -> None:
        """End it; the store is still there."""

    async def choose(
        self, request: Request, router: Router, counted: bool = True
    ) -> tuple[Decision, ArmAssignment | None]:
        """Route a request, and say which arm it has. Called for the mode `routers` alone.

        Without `counted` nothing will be generated, and metrics stay as they are.
        """
        return await router.route(request), None

    def beside(self, served: Served) -> Watcher | None:
        """A watcher of an answer that begins, or None."""
        return None


MakeMode = Callable[["LiveExperiments", "Router"], ExperimentMode]


def needed(spec: Spec) -> str:
    """The mode of a plugin that a plan needs; empty if it needs none."""
    return "" if spec.route or spec.mode is Mode.HOLDOUT else ROUTERS
