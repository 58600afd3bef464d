"""Router experiments: the unit's router decides, and what the others would have chosen is logged.

Classifiers are asked once: a request's votes are shared by all routers. The user waits for the assigned
router alone; the others decide when the answer has begun.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from router.experiments.assignment import ArmAssignment
from router.experiments.model import BASE, Disagreement
from router.experiments.modes import ExperimentMode
from router.experiments.runtime import LiveExperiments, leave_tasks
from router.ports import End, Served, Watcher
from router.types import Decision, Request, VotesByClassifier

if TYPE_CHECKING:
    from router.routing.router import Router

log = logging.getLogger(__name__)
MOST_PENDING = 4096  # decisions whose answers have not begun


@dataclass(frozen=True, slots=True)
class _Pending:
    assignment: ArmAssignment
    decision: Decision
    votes: VotesByClassifier = field(default_factory=dict)


class Routers(ExperimentMode):
    """The mode `routers` of a server's experiments."""

    def __init__(self, live: LiveExperiments, router: Router) -> None:
        self._live, self._router = live, router
        self._pending: OrderedDict[str, _Pending] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    async def choose(
        self, request: Request, router: Router, counted: bool = True
    ) -> tuple[Decision, ArmAssignment | None]:
        """The decision of the router that the request's unit has; by `router` if it takes no part.

        Without `counted` nothing will be generated.
        """
        live = self._live
        if not live.availability.up:
            return await router.route(request), None
        assignment = live.admitted(live.assigner.router(request, time.time()), counted)
        if assignment is None:
            return await router.route(request), None
        votes: VotesByClassifier = {}
        decision = await self._router.route(request, assignment.arm.router, votes)
        if counted:
            self._pending[request.request_id] = _Pending(assignment, decision, votes)
        if len(self._pending) > MOST_PENDING:
            self._pending.popitem(last=False)
        return decision, assignment

    def beside(self, served: Served) -> Watcher | None:
        """The watcher that has the other routers decide once the answer has begun."""
        pending = self._pending.pop(served.request.request_id, None)
        if pending is None or served.assignment is not pending.assignment:
            return None
        return _Began(self, served.request, pending)

    def began(self, request: Request, pending: _Pending) -> None:
        """Log what all routers say."""
        task = asyncio.create_task(self._compare(request, pending), name="other routers")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def close(self) -> None:
        """Leave what is under way."""
        await leave_tasks(self._tasks)

    async def _compare(self, request: Request, pending: _Pending) -> None:
        assignment, choices = pending.assignment, {pending.assignment.arm.name: _target(pending.decision)}
        for name, arm in assignment.running.arms.items():
            if name not in choices:
                decision = await self._router.route(request, arm.router, pending.votes)
                choices[name] = _target(decision)
        running = assignment.running
        control = choices[running.spec.control]
        treatments = [choices[name] for name in running.arms if name != running.spec.control]
        # With several treatments a request counts as differing if any of them differs: the same for all arms.
        treatment = next((t for t in treatments if t != control), control)
        self._live.recorder.disagree(
            (
                Disagreement(
                    running.name,
                    running.phase,
                    assignment.unit,
                    request.request_id,
                    time.time(),
                    control,
                    treatment,
                ),
            )
        )

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("what the other routers say is not known", exc_info=error)


class _Began:
    """Tells `Routers` of the first token."""

    def __init__(self, routers: Routers, request: Request, pending: _Pending) -> None:
        self._routers, self._request, self._pending = routers, request, pending

    def began(self) -> None:
        """An exposure: from now on the disagreement counts."""
        self._routers.began(self._request, self._pending)

    def ended(self, end: End) -> None:
        """Nothing more to be known."""


def _target(decision: Decision) -> str:
    return decision.adapter.resource if decision.adapter else BASE
