"""Life of jobs in the engine: ends, refusals, cancellation, failing steps, slots, background, closing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import current_thread
from typing import Any

import pytest

from router.engine import torch_engine
from router.engine.base import EngineStatus, Job, PoolingRequest
from router.engine.torch_engine import TorchEngine
from router.errors import (
    AdapterRejected,
    EngineFailed,
    Overloaded,
    PromptTooLong,
    Unavailable,
)
from router.types import FinishReason, SamplingParams
from tests.engine import tiny
from tests.engine.contract import answer, read, until


@pytest.fixture
def made() -> Iterator[TorchEngine]:
    engine = tiny.engine("llama", slots=2, max_running=4, max_queue=4)
    yield engine
    engine.close()


def idle(status: EngineStatus) -> bool:
    return not status.busy and status.cache_blocks_free == status.cache_blocks


def job(tokens: list[int] | None = None, adapter: str | None = None, **params: Any) -> Job:
    deadline = params.pop("deadline", None)
    params = {"max_tokens": 50} | params
    return Job("r", tokens or [1, 2, 3], SamplingParams(**params), adapter, deadline=deadline)


async def test_every_thread_that_works_on_the_device_is_given_to_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    threads: list[str] = []
    monkeypatch.setattr(torch_engine, "use_device", lambda device: threads.append(current_thread().name))
    engine = tiny.engine("llama")
    tiny.save_adapter("llama", tmp_path / "a")
    await engine.load(tiny.artifact(tmp_path / "a", engine))
    engine.close()
    assert len(threads) == len(set(threads)) == 3
    assert "engine" in threads


async def test_prefix_is_reused_and_changes_nothing(made: TorchEngine) -> None:
    tokens = list(range(50))
    first, _ = await answer(made, job(tokens, max_tokens=8))
    second, end = await answer(made, job(tokens, max_tokens=8))
    assert end.usage.cached_tokens == 48
    assert second == first


async def test_a_failing_step_fails_its_rows_only(made: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made._loop is not None
    run = made._loop._runner.run
    poisoned = list(range(7))

    def sometimes(chunks: Any, pooling: bool) -> Any:
        if any(c.row.job.tokens == poisoned for c in chunks):
            raise RuntimeError("secret path /etc/x")
        return run(chunks, pooling=pooling)

    monkeypatch.setattr(made._loop._runner, "run", sometimes)
    with pytest.raises(EngineFailed) as error:
        await answer(made, job(poisoned))
    assert "secret" not in str(error.value)
    assert (await answer(made, job(max_tokens=2)))[1].reason is FinishReason.LENGTH
    assert made.status().failed == ""
    for _ in range(3):
        with pytest.raises(EngineFailed):
            await answer(made, job(poisoned))
    await until(lambda: bool(made.status().failed))
    await answer(made, job(max_tokens=2))
    await until(lambda: not made.status().failed)


async def test_a_fault_outside_a_step_fails_its_jobs_and_the_loop_goes_on(
    made: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made._loop is not None
    schedule, faults = made._loop._scheduler.schedule, iter([True])

    def once() -> Any:
        if made._loop and made._loop._scheduler.waiting and next(faults, False):
            raise IndexError("secret")
        return schedule()

    monkeypatch.setattr(made._loop._scheduler, "schedule", once)
    with pytest.raises(EngineFailed):
        await answer(made, job(max_tokens=4))
    assert (await answer(made, job(max_tokens=4)))[1].reason is FinishReason.LENGTH


async def test_a_job_that_cannot_be_prepared_fails_alone(
    made: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "Detokenizer", lambda *_: 1 / 0)
    with pytest.raises(EngineFailed):
        await answer(made, job(max_tokens=4))
    monkeypatch.undo()
    assert (await answer(made, job(max_tokens=4)))[1].reason is FinishReason.LENGTH


async def test_more_adapters_than_slots(made: TorchEngine, tmp_path: Path) -> None:
    tiny.save_adapter("llama", tmp_path / "x")
    artifact = tiny.artifact(tmp_path / "x", made)
    copies = [type(artifact)("x", str(i), f"copy-{i}", artifact.sites) for i in range(6)]
    sizes = [await made.load(copy) for copy in copies]
    assert made.status().host_bytes == sum(sizes)
    expected, _ = await answer(made, job(adapter="copy-0", max_tokens=6))
    for _ in range(2):
        answers = await asyncio.gather(*(answer(made, job(adapter=c.digest, max_tokens=6)) for c in copies))
        assert {text for text, _ in answers} == {expected}
    assert len(made.status().device_adapters) == 2
    for copy, size in zip(copies, sizes, strict=True):
        assert await made.unload(copy.digest) == size
    assert await made.unload("copy-0") == 0
    await until(lambda: made.status().device_adapters == () and made.status().host_bytes == 0)


async def test_an_adapter_for_other_shapes_is_refused(made: TorchEngine, tmp_path: Path) -> None:
    tiny.save_adapter("llama", tmp_path / "x")
    artifact = tiny.artifact(tmp_path / "x", made)
    site, delta = next(iter(artifact.sites.items()))
    wrong = {site.replace("q_proj", "o_proj").replace("v_proj", "gate_proj"): delta}
    other = type(artifact)("x", "1", "other", {**wrong, "model.layers.9.self_attn.q_proj": delta})
    with pytest.raises(AdapterRejected, match=r"layers\.9"):
        await made.load(other)


async def test_a_request_larger_than_the_whole_cache_is_too_long_for_this_server() -> None:
    engine = tiny.engine("llama-long", cache_tokens=256)
    try:
        assert engine.info.context_length == 256  # the base alone would have 1024
        with pytest.raises(PromptTooLong, match="need 257 tokens, the limit is 256"):
            engine.submit(job([1] * 57, max_tokens=200))
        _, end = await answer(engine, job([1] * 56, max_tokens=200, min_tokens=200))
        assert end.usage.completion_tokens == 200
    finally:
        engine.close()


@pytest.mark.parametrize("kind", ["llama", "llama-narrow"])
async def test_a_head_size_without_native_operations_is_served_all_the_same(kind: str) -> None:
    slow, fast = tiny.engine(kind), tiny.engine(kind, native=True)
    expected = await tiny.answer(slow, [5, 6, 7, 8], max_tokens=8)
    assert (await tiny.answer(fast, [5, 6, 7, 8], max_tokens=8))[0] == expected[0]
    if kind == "llama-narrow":
        assert "torch: no native operations for heads of 24" in fast.info.kernels
    slow.close()
    fast.close()


# -- Background jobs: the same answer as ever where there is room, an early end where not.


def exactly(first: int, new: int, background: bool = False) -> Job:
    params = SamplingParams(max_tokens=new, min_tokens=new)
    return Job("r", [first, 2, 3], params, background=background)


async def test_the_same_answer_beside_a_request(made: TorchEngine) -> None:
    alone, _ = await read(made.submit(exactly(1, 12)))
    request, shadow = made.submit(exactly(5, 24)), made.submit(exactly(1, 12, background=True))
    (_, first), (text, second) = await asyncio.gather(read(request), read(shadow))
    assert (text, second.reason, first.reason) == (alone, FinishReason.LENGTH, FinishReason.LENGTH)
    assert made.status().background_dropped == 0


async def test_requests_end_it_and_wait_for_nothing(made: TorchEngine) -> None:
    shadow = made.submit(exactly(1, 200, background=True))
    requests = [made.submit(exactly(i, 30)) for i in range(2, 6)]
    _, end = await read(shadow)
    assert end.reason is FinishReason.CANCELLED
    for request in requests:
        assert (await read(request))[1].reason is FinishReason.LENGTH
    assert made.status().background_dropped == 1


async def test_they_take_no_place_in_the_queue_and_are_not_endless(made: TorchEngine) -> None:
    with pytest.raises(Overloaded, match="background"):
        [made.submit(exactly(1, 100, background=True)) for _ in range(5)]
    requests = [made.submit(replace(exactly(2, 100))) for _ in range(8)]
    with pytest.raises(Overloaded, match="queue"):
        made.submit(exactly(2, 100))
    for request in requests:
        request.cancel()
        assert (await read(request))[1].reason is FinishReason.CANCELLED


# -- An engine that has stopped answers anyone who still asks: nobody waits for a thread that is gone.


JOB = Job("late", [5, 6, 7], SamplingParams(max_tokens=4))


async def test_late_jobs_and_readings_are_refused() -> None:
    engine = tiny.engine("llama")
    engine.close()
    with pytest.raises(Unavailable, match="the engine has stopped"):
        await asyncio.wait_for(read(engine.submit(JOB)), 5)
    with pytest.raises(Unavailable, match="the engine has stopped"):
        await asyncio.wait_for(engine.read(PoolingRequest([5, 6, 7], (), 0.5)), 5)
    assert not engine._live
    assert not engine._pooling


async def test_late_unload_returns(tmp_path: Path) -> None:
    engine = tiny.engine("llama")
    tiny.save_adapter("llama", tmp_path / "a")
    artifact = tiny.artifact(tmp_path / "a", engine)
    await engine.load(artifact)
    engine.close()
    assert await asyncio.wait_for(engine.unload(artifact.digest), 5) > 0
    assert await asyncio.wait_for(engine.unload(artifact.digest), 5) == 0


@pytest.mark.slow
async def test_what_was_asked_beside_the_stop_is_answered() -> None:
    """Commands in the same turn as the stop, before and after it."""
    for _ in range(20):
        engine = tiny.engine("llama")
        asked = [asyncio.ensure_future(read(engine.submit(JOB))) for _ in range(3)]
        stopped = asyncio.ensure_future(asyncio.to_thread(engine.close))
        asked += [asyncio.ensure_future(read(engine.submit(JOB))) for _ in range(3)]
        dropped = asyncio.ensure_future(engine.unload("nobody"))
        ends = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
        assert all(isinstance(end, Unavailable | tuple) for end in ends)
        assert await asyncio.wait_for(dropped, 5) == 0
        await stopped
        engine.close()
