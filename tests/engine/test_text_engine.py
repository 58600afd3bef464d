"""Engines whose answers are text: what clients ask of an answer is kept for them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from router.config import Settings
from router.engine import SamplingParams, TextEngine
from router.engine.base import AdapterArtifact, Engine, PoolingRequest
from router.engine.output import StopStrings
from router.errors import AdapterRejected, EngineFailed, FailedPrecondition, PermissionDenied
from router.types import Constraint, FinishReason
from tests.engine.contract import CONTEXT, QUEUE, ROWS, EngineContract, answer, job, read, until


class Repeating(TextEngine):
    context_length = CONTEXT

    async def answer(self, prompt: str, params: SamplingParams) -> AsyncIterator[str]:
        words = prompt.split()
        for word in itertools.islice(itertools.cycle(words), max(params.min_tokens, len(words))):
            await asyncio.sleep(0.001)
            yield f"{word} "


class TestTextEngine(EngineContract):
    # It has none of these.
    test_alternatives_are_told_when_asked_for = None
    test_adapters_come_and_go = None
    test_mixtures_are_made_of_loaded_parts = None
    test_answers_have_the_shape_that_was_asked_for = None

    def make(self) -> Engine:
        return Repeating(Settings(max_running=ROWS, max_queue=QUEUE))

    def artifact(self, engine: Engine, name: str, invocation: tuple[int, ...] = ()) -> AdapterArtifact:
        return AdapterArtifact(name, "1", "5e" * 32, {}, (), invocation)

    async def test_what_it_has_not_is_refused(self, engine: Engine) -> None:
        with pytest.raises(AdapterRejected, match="the engine text serves no adapters"):
            await engine.load(self.artifact(engine, "medical"))
        with pytest.raises(FailedPrecondition, match="cannot be constrained"):
            await engine.compile(Constraint("choices", choices=("a", "b")))
        with pytest.raises(FailedPrecondition, match="no hidden states"):
            await engine.read(PoolingRequest([1], [1]))

    async def test_a_request_takes_the_place_of_a_background_job(self, engine: Engine) -> None:
        long = job(engine, min_tokens=200, max_tokens=200)
        behind = [engine.submit(replace(long, background=True)) for _ in range(ROWS)]
        assert (await read(behind[-1]))[1].reason is FinishReason.CANCELLED
        await until(lambda: engine.status().background == ROWS - 1)
        before = [engine.submit(long) for _ in range(ROWS)]
        ends = [(await read(one))[1].reason for one in behind[:-1]]
        assert set(ends) == {FinishReason.CANCELLED}
        status = engine.status()
        assert (status.running, status.background_dropped) == (ROWS, ROWS)
        for one in before:
            one.cancel()


@pytest.mark.parametrize(
    ("error", "kind"), [(KeyError("secret"), EngineFailed), (PermissionDenied("no"), PermissionDenied)]
)
async def test_an_answer_that_raises_is_an_error_of_its_caller(error: Exception, kind: type) -> None:
    class Failing(TextEngine):
        async def answer(self, prompt: str, params: SamplingParams) -> AsyncIterator[str]:
            yield "so far"
            raise error

    engine = Failing()
    engine.start()
    with pytest.raises(kind) as raised:
        await answer(engine, job(engine))
    assert "secret" not in str(raised.value)
    assert not engine.status().busy


async def test_a_timeout_of_the_answer_is_no_deadline() -> None:
    class Late(TextEngine):
        async def answer(self, prompt: str, params: SamplingParams) -> AsyncIterator[str]:
            yield "so far"
            raise TimeoutError

    engine = Late()
    engine.start()
    with pytest.raises(EngineFailed):
        await answer(engine, job(engine))


@pytest.mark.parametrize(
    ("pieces", "shown", "found"),
    [
        (["a b", " END c"], ["a b", " "], "END"),
        (["a E", "N", "D"], ["a ", "", ""], "END"),
        (["a E", "N", "x"], ["a ", "", "ENx"], ""),
        (["EEN", "D"], ["E", ""], "END"),
    ],
)
def test_the_beginning_of_a_stop_string_is_held_back(pieces: list[str], shown: list[str], found: str) -> None:
    stops = StopStrings(("END", ""))
    assert [stops.push(piece) for piece in pieces] == shown
    assert stops.found == found


def test_what_was_held_back_comes_at_the_end() -> None:
    stops = StopStrings(("END",))
    assert (stops.push("the EN"), stops.rest(), stops.rest()) == ("the ", "EN", "")
