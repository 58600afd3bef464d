"""Answers nobody waits for, and why there may be none."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from router.engine.base import Delta, EngineStatus, Finished
from router.errors import AdapterNotFound, DeadlineExceeded, EngineFailed, Overloaded
from router.experiments.live.shadow import Answered, NotAnswered, ShadowAnswers
from router.types import AdapterRef, AdapterState, Decision, FinishReason, Reason, Request, Sampling, Usage

REF = AdapterRef("medical", "1.1.0")
REQUEST = Request("r", raw_prompt="q")
USAGE = Usage(completion_tokens=2)


class Engine:
    """Gives the events it is told, or raises."""

    def __init__(self, *events: Delta | Finished | Exception) -> None:
        self.events, self.closed = events, False

    async def complete(self, request: Request, decision: Decision) -> AsyncGenerator[Delta | Finished, None]:
        self.sampling = request.sampling
        try:
            for event in self.events:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.closed = True


async def answered(
    engine: Engine,
    ref: AdapterRef | None = REF,
    state: AdapterState | None = AdapterState.READY,
    request: Request = REQUEST,
    **status: int,
) -> Answered | NotAnswered:
    def get(name: str, version: str) -> Any:
        if state is None:
            raise AdapterNotFound(name)
        return SimpleNamespace(state=state)

    registry: Any = SimpleNamespace(get=get)
    made = ShadowAnswers(engine.complete, registry, lambda: EngineStatus(**status))
    return await made.answer(request, Decision(ref, Reason.CLASSIFIED))


@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH])
async def test_a_whole_answer(reason: FinishReason) -> None:
    engine = Engine(Delta("two "), Delta("words"), Finished(reason, USAGE))
    assert await answered(engine, running=3, waiting=1) == Answered("two words", USAGE)
    assert engine.closed


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (Finished(FinishReason.CANCELLED), "load"),
        (Finished(FinishReason.DEADLINE), "deadline"),
        (Finished(FinishReason.ERROR), "failed"),
        (Overloaded("enough runs in the background"), "load"),
        (DeadlineExceeded("late"), "deadline"),
        (EngineFailed("broken"), "failed"),
    ],
)
async def test_why_there_is_none(event: Finished | Exception, why: str) -> None:
    engine = Engine(Delta("half"), event)
    assert await answered(engine) == NotAnswered(why)
    assert engine.closed


async def test_an_end_that_never_comes_is_a_failure() -> None:
    assert await answered(Engine(Delta("half"))) == NotAnswered("failed")


async def test_nothing_is_begun_while_requests_wait() -> None:
    engine = Engine(Finished(FinishReason.STOP))
    assert await answered(engine, running=4, waiting=2) == NotAnswered("load")
    assert not engine.closed


@pytest.mark.parametrize(
    ("state", "why"),
    [(AdapterState.OFFLOADED, "cold"), (AdapterState.LOADING, "cold"), (None, "failed")],
)
async def test_what_is_not_in_memory_is_not_brought_in(state: AdapterState | None, why: str) -> None:
    engine = Engine(Finished(FinishReason.STOP))
    assert await answered(engine, state=state) == NotAnswered(why)
    assert not engine.closed


async def test_nobody_reads_its_logprobs() -> None:
    engine = Engine(Finished(FinishReason.STOP, USAGE))
    await answered(engine, request=replace(REQUEST, sampling=Sampling(seed=3, logprobs=5)))
    assert engine.sampling == Sampling(seed=3)


async def test_the_base_is_always_there() -> None:
    engine = Engine(Delta("x"), Finished(FinishReason.STOP, USAGE))
    assert await answered(engine, None, state=None) == Answered("x", USAGE)
