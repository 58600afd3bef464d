"""Hidden states and log-probabilities equal those of transformers, whatever the batch around them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from router.engine import scheduler, torch_engine
from router.engine.base import MAX_POOLING, PoolingRequest
from router.engine.torch_engine import TorchEngine
from router.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    Unavailable,
)
from tests.engine import tiny
from tests.engine.contract import until

LAYERS = tiny.SHAPE["num_hidden_layers"]
PATHS: list[dict[str, Any]] = [
    {"path": "packed"},
    {"path": "packed", "native": True},
    {"path": "generic"},
    {"path": "packed", "max_step_tokens": 16},
    {"path": "generic", "max_step_tokens": 16},
    {"path": "packed", "prefix_cache": False},
]


@pytest.fixture(params=["llama", "qwen2", "gemma3"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=PATHS, ids=lambda p: "-".join(str(v) for v in p.values()))
def made(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[TorchEngine]:
    settings = dict(request.param)
    if settings.pop("path") == "generic":
        monkeypatch.setattr(torch_engine, "why_not_packed", lambda *_: "the test wants it")
    engine = tiny.engine(kind, **settings)
    yield engine
    engine.close()


@pytest.fixture
def llama() -> Iterator[TorchEngine]:
    engine = tiny.engine("llama", max_running=2, max_queue=4)
    yield engine
    engine.close()


def texts(count: int, longest: int = 60) -> list[list[int]]:
    rng = random.Random(count)
    return [[rng.randrange(256) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@torch.inference_mode()
def expected(model: Any, reading: PoolingRequest) -> np.ndarray[Any, Any]:
    """The same by transformers alone."""
    before = len(reading.context)
    tokens = [*reading.context, *reading.tokens]
    out = model(torch.tensor([tokens]), output_hidden_states=True)
    states = out.hidden_states[round(reading.depth * LAYERS)][0, before:]
    n = reading.ends
    return np.concatenate([p.mean(0) for p in ([states, states[:n], states[-n:]] if n else [states])])


async def until_idle(made: TorchEngine) -> None:
    await until(
        lambda: not made.status().busy and made.status().cache_blocks_free == made.status().cache_blocks
    )


@pytest.mark.slow
async def test_readings_beside_answers_equal_transformers(made: TorchEngine, kind: str) -> None:
    model = tiny.model(kind)
    context = texts(1)[0][:1] * 20
    readings = [
        PoolingRequest(tokens, context if i % 2 else (), depth)
        for i, tokens in enumerate(texts(8))
        for depth in (0.0, 0.5, 1.0)
    ]
    readings += [PoolingRequest(tokens, context, 0.5, ends=9) for tokens in texts(8)]
    prompts = texts(6, 40)
    found, answers = await asyncio.gather(
        asyncio.gather(*(made.read(reading) for reading in readings)),
        asyncio.gather(*(tiny.answer(made, tokens, max_tokens=10) for tokens in prompts)),
    )
    for reading, values in zip(readings, found, strict=True):
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected(model, reading), atol=2e-4, rtol=1e-3)
    for tokens, (ids, _) in zip(prompts, answers, strict=True):
        assert ids == [t for t in tiny.reference(model, tokens, 10) if t != tiny.SHAPE["eos_token_id"]]
    await until_idle(made)


async def test_a_reading_alone_equals_transformers(made: TorchEngine, kind: str) -> None:
    """Alone, layers after the one that is wanted are left out."""
    model = tiny.model(kind)
    for depth in (0.0, 0.5, 1.0):
        reading = PoolingRequest(texts(1)[0], [1, 2, 3], depth)
        np.testing.assert_allclose(await made.read(reading), expected(model, reading), atol=2e-4, rtol=1e-3)
    after = await tiny.answer(made, [1, 2, 3, *texts(1)[0]], max_tokens=5, min_tokens=5)
    assert after[0] == tiny.reference(model, [1, 2, 3, *texts(1)[0]], 5)


@pytest.mark.parametrize(
    ("reading", "error"),
    [
        (PoolingRequest([], [1]), InvalidRequest),
        (PoolingRequest([1], depth=1.5), InvalidRequest),
        (PoolingRequest([1], depth=0.5, ends=-1), InvalidRequest),
        (PoolingRequest([1] * 200, [1] * 100), PromptTooLong),
    ],
)
async def test_what_cannot_be_read_is_refused(
    llama: TorchEngine, reading: PoolingRequest, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await llama.read(reading)


async def test_too_many_are_refused_and_a_deadline_ends_the_others(llama: TorchEngine) -> None:
    late = PoolingRequest([1] * 50, depth=1.0, deadline=time.monotonic() - 1)
    asked = [asyncio.ensure_future(llama.read(late)) for _ in range(MAX_POOLING)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await llama.read(PoolingRequest([1], depth=1.0))
    for answer in asked:
        with pytest.raises(DeadlineExceeded):
            await answer
    assert (await llama.read(PoolingRequest([1], depth=1.0))).shape == (tiny.SHAPE["hidden_size"],)


async def test_cancelled_readings_leave_nothing_behind(llama: TorchEngine) -> None:
    asked = [asyncio.ensure_future(llama.read(PoolingRequest([1] * 200, depth=1.0))) for _ in range(40)]
    await asyncio.sleep(0.01)
    for answer in asked:
        answer.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    await until_idle(llama)
    await until(lambda: not llama._pooling)


async def test_a_failing_step_and_the_end_of_the_engine_are_told(
    llama: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert llama._loop is not None
    monkeypatch.setattr(llama._loop._runner, "run", lambda chunks, pooling: 1 / 0)
    with pytest.raises(EngineFailed):
        await llama.read(PoolingRequest([1], depth=1.0))
    monkeypatch.undo()
    monkeypatch.setattr(llama._loop._scheduler, "schedule", list)
    asked = asyncio.ensure_future(llama.read(PoolingRequest([1], depth=1.0)))
    await asyncio.sleep(0.05)
    await asyncio.to_thread(llama.close)
    with pytest.raises(Unavailable):
        await asked


async def test_numbers_that_are_not_finite_fail_alone(llama: TorchEngine) -> None:
    assert llama._loop is not None
    backbone: Any = llama._loop._runner._backbone
    embedding = backbone._model.embed[99]
    before = embedding.clone()
    embedding.fill_(torch.nan)
    try:
        bad, good = await asyncio.gather(
            llama.read(PoolingRequest([99, 1], depth=0.5)),
            llama.read(PoolingRequest([1], [2])),
            return_exceptions=True,
        )
    finally:
        embedding.copy_(before)
    assert isinstance(bad, EngineFailed)
    assert np.isfinite(np.asarray(good)).all()


async def test_readings_take_no_place_of_requests(llama: TorchEngine) -> None:
    """More readings than rows, more answers than places: all are served at once."""
    asked = [asyncio.ensure_future(llama.read(PoolingRequest([1] * 100, [1]))) for _ in range(30)]
    ids, _ = await tiny.answer(llama, [1, 2, 3], max_tokens=4, min_tokens=4)
    assert len(ids) == 4
    assert sum(answer.done() for answer in asked) < 30
    await asyncio.gather(*asked)
    assert scheduler.POOLING_ROWS < 30
