"""Background jobs in the real engine: the same answer as ever where there is room, an early end where not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from router.engine.base import Delta, Finished, Generation, Job
from router.engine.torch_engine import TorchEngine
from router.errors import Overloaded
from router.types import FinishReason, SamplingParams
from tests.engine import tiny


@pytest.fixture
def made() -> Iterator[TorchEngine]:
    engine = tiny.engine("llama", slots=2, max_running=4, max_queue=4)
    yield engine
    engine.close()


def job(first: int, new: int, background: bool = False) -> Job:
    params = SamplingParams(max_tokens=new, min_tokens=new)
    return Job("r", [first, 2, 3], params, background=background)


async def ended(generation: Generation) -> tuple[str, Finished]:
    text = ""
    async for event in generation:
        if isinstance(event, Delta):
            text += event.text
        else:
            return text, event
    raise AssertionError("no Finished")


async def test_the_same_answer_beside_a_request(made: TorchEngine) -> None:
    alone, _ = await ended(made.submit(job(1, 12)))
    request, shadow = made.submit(job(5, 24)), made.submit(job(1, 12, background=True))
    (_, first), (text, second) = await asyncio.gather(ended(request), ended(shadow))
    assert (text, second.reason, first.reason) == (alone, FinishReason.LENGTH, FinishReason.LENGTH)
    assert made.status().background_dropped == 0


async def test_requests_end_it_and_wait_for_nothing(made: TorchEngine) -> None:
    shadow = made.submit(job(1, 200, background=True))
    requests = [made.submit(job(i, 30)) for i in range(2, 6)]
    _, end = await ended(shadow)
    assert end.reason is FinishReason.CANCELLED
    for request in requests:
        assert (await ended(request))[1].reason is FinishReason.LENGTH
    assert made.status().background_dropped == 1


async def test_they_take_no_place_in_the_queue_and_are_not_endless(made: TorchEngine) -> None:
    with pytest.raises(Overloaded, match="background"):
        [made.submit(job(1, 100, background=True)) for _ in range(5)]
    requests = [made.submit(replace(job(2, 100))) for _ in range(8)]
    with pytest.raises(Overloaded, match="queue"):
        made.submit(job(2, 100))
    for request in requests:
        request.cancel()
        assert (await ended(request))[1].reason is FinishReason.CANCELLED
