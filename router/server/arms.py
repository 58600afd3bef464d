"""What an experiment adds to a request: who stands in for an arm that cannot answer, and who is told of it.

A user of an arm sees no error that a user of control would not have seen.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from router.engine.base import Delta, Finished, Generation
from router.errors import (
    DataLoss,
    EngineFailed,
    FailedPrecondition,
    NotFound,
    PromptTooLong,
    ResourceExhausted,
    RouterError,
)
from router.ports import AdapterRegistry, Assignment, End, Watcher
from router.types import AdapterRef, Decision, FinishReason, Usage

log = logging.getLogger(__name__)
FAULTS = (NotFound, FailedPrecondition, DataLoss)  # of the version: gone, quarantined, damaged
TOO_LARGE = (ResourceExhausted, PromptTooLong)  # the request, for this version's template; not for another's
REST_SECONDS = 5.0


class Choices:
    """Decisions for one request, the best first: the arm's version, then control's, then the one routed to.

    Without an arm there is one. Whoever iterates tells `failed` why a choice could not answer; `degraded` is
    the reason of the first such error.
    """

    def __init__(
        self, decision: Decision, assignment: Assignment | None, registry: AdapterRegistry, resting: Resting
    ) -> None:
        self.assignment, self.degraded = assignment, ""
        self._decision, self._registry, self._resting = decision, registry, resting
        arms = assignment.versions if assignment is not None else ()
        self._left = list(dict.fromkeys((*arms, decision.adapter)))
        self._tried: AdapterRef | None = None

    def __iter__(self) -> Iterator[Decision]:
        """Leaves out what rests, is gone or is quarantined; the last raises what is wrong with it."""
        while self._left:
            self._tried = ref = self._left.pop(0)
            if self._left and (error := self._resting.error(ref)) is not None:
                self.degraded = self.degraded or error.reason
                continue
            try:
                decision = self._placed(ref)
            except RouterError as raised:
                self.failed(raised)
            else:
                yield decision

    def failed(self, error: RouterError) -> None:
        """The choice at hand could not answer; raises `error` again where no other could do better.

        A version rests for a fault of its own; a request that is too large says nothing of the next one.
        """
        if not self._left or not isinstance(error, FAULTS + TOO_LARGE):
            raise error
        self.degraded = self.degraded or error.reason
        if isinstance(error, FAULTS):
            self._resting.add(self._tried, error)

    def _placed(self, ref: AdapterRef | None) -> Decision:
        """The decision with that version. Raises AdapterNotFound, FailedPrecondition (quarantined)."""
        decision = self._decision
        if ref == decision.adapter:
            return decision
        if ref is None:
            return replace(decision, adapter=None, digest="", domain="", task="")
        info = self._registry.resolve(ref.name, ref.version)
        return replace(decision, adapter=ref, digest=info.digest, domain=info.domain, task=info.task)


class Resting:
    """Versions that could not answer, each left alone by arms for REST_SECONDS, and with which error."""

    def __init__(self) -> None:
        self._until: dict[AdapterRef, tuple[float, RouterError]] = {}

    def error(self, ref: AdapterRef | None) -> RouterError | None:
        """What the version failed with a moment ago; None if it may be tried."""
        if ref is None or ref not in self._until:
            return None
        until, error = self._until[ref]
        if time.monotonic() < until:
            return error
        del self._until[ref]
        return None

    def add(self, ref: AdapterRef | None, error: RouterError) -> None:
        """Let it rest. A rest is not made longer, and the base needs none."""
        if ref is not None and self.error(ref) is None:
            self._until[ref] = (time.monotonic() + REST_SECONDS, error)


@contextmanager
def telling(
    watchers: Sequence[Watcher], generation: Generation, stopped: Callable[[], str]
) -> Iterator[Generation]:
    """The generation; the watchers hear when it begins, and at the end of the block how it ended.

    `stopped` names the reason for which a cancellation would not be the user's, or ''.
    """
    if not watchers:
        yield generation
        return
    told = Watched(generation, watchers)
    try:
        yield told
    except BaseException as error:
        told.end(error, stopped())
        raise
    told.end(None)


class Watched:
    """The `Generation` protocol around another; `end` must be called once, whatever happened.

    A watcher that raises is logged, and changes nothing for the user.
    """

    def __init__(self, generation: Generation, watchers: Sequence[Watcher]) -> None:
        self._generation, self._watchers = generation, watchers
        self._submitted = time.monotonic()
        self._first = 0.0
        self._began = False
        self._texts: list[str] = []
        self._tokens = 0
        self._finished: Finished | None = None

    async def __aiter__(self) -> AsyncIterator[Delta | Finished]:
        """The same events."""
        try:
            async for event in self._generation:
                if isinstance(event, Delta):
                    self._begin()
                    self._texts.append(event.text)
                    self._tokens += event.tokens
                else:
                    self._finish(event)
                yield event
        except EngineFailed:
            self._begin()  # the step that failed was its own
            raise

    def cancel(self) -> None:
        """Ask the engine to drop it."""
        self._generation.cancel()

    def end(self, error: BaseException | None, stopped: str = "") -> None:
        """Tell the watchers. A cancellation is the user's unless `stopped` names another reason."""
        finished, failed = self._finished, ""
        left = isinstance(error, asyncio.CancelledError) and not stopped
        if error is not None and not left:
            failed = stopped or (error.reason if isinstance(error, RouterError) else type(error).__name__)
        if finished is not None and finished.reason in (FinishReason.STOP, FinishReason.LENGTH):
            left, failed = False, ""  # all was there; what came after is not the answer's
        whole = finished is not None and not failed
        end = End(
            finished.reason if finished is not None and whole else None,
            "".join(self._texts),
            finished.usage if finished is not None else self._so_far(),
            failed,
            left,
        )
        self._each(lambda watcher: watcher.ended(end))

    def _begin(self) -> None:
        if self._began:
            return
        self._began, self._first = True, time.monotonic()
        self._each(lambda watcher: watcher.began())

    def _finish(self, event: Finished) -> None:
        self._finished = event
        if event.usage.completion_tokens or event.reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._begin()  # an answer may be one token that has no text

    def _each(self, tell: Callable[[Watcher], None]) -> None:
        for watcher in self._watchers:
            try:
                tell(watcher)
            except Exception:
                log.exception("a watcher failed; the answer goes on")

    def _so_far(self) -> Usage:
        now = time.monotonic()
        return Usage(
            completion_tokens=self._tokens,
            time_to_first_token=(self._first or now) - self._submitted,
            total_time=now - self._submitted,
        )
