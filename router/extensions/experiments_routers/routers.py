"""Router experiments: the unit's router decides, and what the others would have chosen is logged.

Classifiers are asked once: a request's votes are shared by all routers. The user waits for the assigned
router alone; the others decide when the answer has begun, or when the request has ended without one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from router.errors import DeadlineExceeded, RouterError
from router.experiments.assignment import ArmAssignment
from router.experiments.model import BASE, Disagreement
from router.experiments.modes import ExperimentMode
from router.experiments.runtime import LiveExperiments, leave_tasks
from router.ports import End, Served, Stage, Watcher
from router.types import Decision, Reason, Request, SamplingParams, Usage, VotesByClassifier

if TYPE_CHECKING:
    from router.routing.router import Router

log = logging.getLogger(__name__)
MOST_PENDING = 4096  # decisions whose answers have not begun


@dataclass(frozen=True, slots=True)
class _PendingDecision:
    assignment: ArmAssignment
    decision: Decision | None  # None: the assigned router did not come to one
    votes: VotesByClassifier = field(default_factory=dict)


class Routers(ExperimentMode):
    """The mode `routers` of a server's experiments."""

    def __init__(self, live: LiveExperiments, router: Router) -> None:
        self._live, self._router = live, router
        self._pending: OrderedDict[str, _PendingDecision] = OrderedDict()
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
        begin = time.monotonic()
        try:
            decision = await self._router.route(request, assignment.arm.router, votes)
        except BaseException as error:
            if counted:
                self._pend(request, _PendingDecision(assignment, None, votes))
                undecided = Served(
                    request, Decision(None, Reason.FALLBACK), SamplingParams(), assignment, since=begin
                )
                self._live.unserved(undecided, _undecided(request, error, time.monotonic() - begin))
            raise
        if counted:
            self._pend(request, _PendingDecision(assignment, decision, votes))
        return decision, assignment

    def _pend(self, request: Request, pending: _PendingDecision) -> None:
        self._pending[request.request_id] = pending
        if len(self._pending) > MOST_PENDING:
            self._pending.popitem(last=False)

    def beside(self, served: Served) -> Watcher | None:
        """The watcher that has the other routers decide once the answer has begun, or has ended."""
        pending = self._pending.pop(served.request.request_id, None)
        if pending is None or served.assignment is not pending.assignment:
            return None
        return _Began(self, served.request, pending)

    def began(self, request: Request, pending: _PendingDecision) -> None:
        """Have all routers decide, and log what they say."""
        task = asyncio.create_task(self._compare(request, pending), name="other routers")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def close(self) -> None:
        """Leave what is under way."""
        await leave_tasks(self._tasks)

    async def _compare(self, request: Request, pending: _PendingDecision) -> None:
        assignment, choices, decided = pending.assignment, dict[str, str](), pending.decision
        if decided is not None:
            choices[assignment.arm.name] = _target(decided)
        request = replace(request, deadline=None)  # nobody waits any more
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

    def __init__(self, routers: Routers, request: Request, pending: _PendingDecision) -> None:
        self._routers, self._request, self._pending = routers, request, pending
        self._begun = False

    def began(self) -> None:
        """An exposure: from now on the disagreement counts."""
        self._begun = True
        self._routers.began(self._request, self._pending)

    def ended(self, end: End) -> None:
        """An exposure, too, where there was no first token: the units for which routers differ must not
        depend on what they chose."""
        if not self._begun:
            self.began()


def _undecided(request: Request, error: BaseException, waited: float) -> End:
    late = request.deadline is not None and request.deadline <= time.monotonic()
    left = isinstance(error, asyncio.CancelledError) and not late
    reason = error.reason if isinstance(error, RouterError) else type(error).__name__
    failed = "" if left else DeadlineExceeded.reason if late else reason
    return End(None, "", Usage(total_time=waited), failed, left, Stage.ROUTING)


def _target(decision: Decision) -> str:
    return decision.adapter.resource if decision.adapter else BASE
