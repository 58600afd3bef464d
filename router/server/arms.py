"""From a request to who answers it: the arm of its experiment, and what stands in if the arm cannot."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

from router.errors import (
    DataLoss,
    FailedPrecondition,
    NotFound,
    PromptTooLong,
    ResourceExhausted,
    RouterError,
)
from router.ports import AdapterRegistry, Assignment, Experiments, Lease, RequestRouter
from router.server.interceptors.call import Call
from router.types import AdapterRef, Decision, Request

FAULTS = (NotFound, FailedPrecondition, DataLoss)  # of the version: gone, quarantined, damaged
TOO_LARGE = (ResourceExhausted, PromptTooLong)  # the request, for this version's template; not for another's
REST_SECONDS = 5.0  # an arm's version that could not answer is left alone for so long
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice:
    """Who is to answer. `degraded` is the reason of the error that kept the arm from it."""

    decision: Decision
    assignment: Assignment | None = None
    degraded: str = ""


class Arms:
    """Routing and experiments together, as the pipeline sees them."""

    def __init__(
        self, router: RequestRouter, registry: AdapterRegistry, experiments: Experiments | None = None
    ) -> None:
        self._router, self._registry, self._experiments = router, registry, experiments
        self._resting: dict[AdapterRef, tuple[float, RouterError]] = {}

    async def serve(
        self, request: Request, call: Call, attempt: Callable[[Choice], Awaitable[T]], counted: bool = False
    ) -> tuple[Choice, T]:
        """The first choice for which `attempt` works, and what came of it.

        The arm's version is tried first, then control's, then the one that routing chose: a user of an arm
        sees no error that a user of control would not have seen. `counted`: an answer will be generated.
        """
        decision, assignment = await self._routed(request, counted)
        call.decision = decision
        if assignment is None or not assignment.versions:
            choice = Choice(decision, assignment)
            return choice, await attempt(choice)
        *before, last = dict.fromkeys((*assignment.versions, decision.adapter))
        degraded = ""
        for ref in before:
            try:
                self._check(ref)
                choice = Choice(self._placed(decision, ref), assignment, degraded)
                call.decision = choice.decision
                return choice, await attempt(choice)
            except FAULTS as error:
                degraded = degraded or error.reason
                self._rest(ref, error)
            except TOO_LARGE as error:  # says nothing of the next request
                degraded = degraded or error.reason
        choice = Choice(self._placed(decision, last), assignment, degraded)
        call.decision = choice.decision
        return choice, await attempt(choice)

    async def lease(self, held: AsyncExitStack, ref: AdapterRef) -> Lease:
        """A lease for as long as `held` is open. A version that there is no memory to load for rests."""
        try:
            return await held.enter_async_context(self._registry.lease(ref))
        except ResourceExhausted as error:
            self._rest(ref, error)
            raise

    async def _routed(self, request: Request, counted: bool) -> tuple[Decision, Assignment | None]:
        """With the experiment's and the arm's name in the decision."""
        live = self._experiments
        if live is None or not live.running:
            return await self._router.route(request), None
        return await live.choose(request, self._router, counted)

    def _placed(self, decision: Decision, ref: AdapterRef | None) -> Decision:
        """The decision with that version. Raises AdapterNotFound, FailedPrecondition (quarantined)."""
        if ref == decision.adapter:
            return decision
        if ref is None:
            return replace(decision, adapter=None, digest="", domain="", task="")
        info = self._registry.resolve(ref.name, ref.version)
        return replace(decision, adapter=ref, digest=info.digest, domain=info.domain, task=info.task)

    def _check(self, ref: AdapterRef | None) -> None:
        """Raise again what a version failed with a moment ago."""
        if ref is None or ref not in self._resting:
            return
        until, error = self._resting[ref]
        if time.monotonic() < until:
            raise error.with_traceback(None)
        del self._resting[ref]

    def _rest(self, ref: AdapterRef | None, error: RouterError) -> None:
        if ref is not None and ref not in self._resting:
            self._resting[ref] = (time.monotonic() + REST_SECONDS, error)
