"""Answers nobody waits for: shadow arms, in the background of the engine."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from router.engine.base import Delta, EngineStatus, Finished
from router.errors import DeadlineExceeded, Overloaded, RouterError
from router.experiments.live.shadow import Answered, NotAnswered
from router.ports import AdapterRegistry
from router.types import AdapterRef, AdapterState, Decision, FinishReason, Request

log = logging.getLogger(__name__)
LOAD, COLD, DEADLINE, FAILED = "load", "cold", "deadline", "failed"
Complete = Callable[[Request, Decision], AsyncGenerator[Delta | Finished, None]]


class Understudy:
    """`complete` is the pipeline's; `status` the engine's.

    A version that is not in memory is not brought in for a shadow: it could cost a user's adapter its place.
    """

    def __init__(
        self, complete: Complete, registry: AdapterRegistry, status: Callable[[], EngineStatus]
    ) -> None:
        self._complete, self._registry, self._status = complete, registry, status

    async def answer(self, request: Request, decision: Decision) -> Answered | NotAnswered:
        """The whole answer, or why there is none."""
        status = self._status()
        if status.running and status.waiting > 1:  # one may be the request itself, on its way in
            return NotAnswered(LOAD)
        try:
            if not self._resident(decision.adapter):
                return NotAnswered(COLD)
            asked = replace(request, sampling=replace(request.sampling, logprobs=None))
            return await self._answer(asked, decision)
        except Overloaded:
            return NotAnswered(LOAD)
        except DeadlineExceeded:
            return NotAnswered(DEADLINE)
        except RouterError as error:
            log.debug("a shadow of %s was not answered: %s", decision.adapter, error.message)
            return NotAnswered(FAILED)

    def _resident(self, ref: AdapterRef | None) -> bool:
        return ref is None or self._registry.get(ref.name, ref.version).state is AdapterState.READY

    async def _answer(self, request: Request, decision: Decision) -> Answered | NotAnswered:
        texts: list[str] = []
        async with aclosing(self._complete(request, decision)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    texts.append(event.text)
                elif event.reason in (FinishReason.STOP, FinishReason.LENGTH):
                    return Answered("".join(texts), event.usage)
                elif event.reason is FinishReason.DEADLINE:
                    return NotAnswered(DEADLINE)
                else:
                    return NotAnswered(LOAD if event.reason is FinishReason.CANCELLED else FAILED)
        return NotAnswered(FAILED)
