"""The base as classifiers see it: blocking calls from threads, on the fake and on a small real engine."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from router.engine.base import PoolingRequest, Prompt
from router.engine.base_model import END, LONGEST, EngineBaseModel
from router.engine.fake import FakeEngine
from router.errors import Overloaded
from tests.engine import tiny


def started(**options: float) -> FakeEngine:
    engine = FakeEngine(**options)
    engine.start()
    return engine


async def test_hidden_states_of_texts_in_their_order() -> None:
    base = EngineBaseModel(started(), 5.0)
    texts = [f"text number {i}" for i in range(40)]
    together = await asyncio.to_thread(base.hidden, texts)
    assert together.shape == (40, 64)
    alone = [await asyncio.to_thread(base.hidden, [text], background=True) for text in texts[:3]]
    np.testing.assert_array_equal(together[:3], np.concatenate(alone))
    assert (await asyncio.to_thread(base.hidden, [])).shape[0] == 0
    parts = await asyncio.to_thread(base.hidden, ["first and last"], ends=5)
    both = await asyncio.to_thread(base.hidden, ["first and last", "first", " last"])
    np.testing.assert_array_equal(parts[0], both.flatten())


async def test_a_long_text_behind_a_context_on_a_model() -> None:
    made = tiny.engine("llama")
    try:
        base = EngineBaseModel(made, 5.0)
        longest = await asyncio.to_thread(base.hidden, ["x" * 10_000], context="say: ")
        assert longest.shape == (1, tiny.SHAPE["hidden_size"])
    finally:
        made.close()


async def test_a_cut_text_keeps_both_ends() -> None:
    engine = started(context_length=60)
    seen: list[PoolingRequest] = []
    read = engine.read

    async def watched(reading: PoolingRequest) -> Any:
        seen.append(reading)
        return await read(reading)

    engine.read = watched  # type: ignore[method-assign]
    await asyncio.to_thread(EngineBaseModel(engine, 5.0).hidden, ["a" * 50 + "b" * 50], context="c")
    assert bytes(seen[0].tokens) == b"a" * 20 + b"b" * 10
    assert bytes(seen[0].context) == b"c"


async def test_of_a_very_long_text_only_the_ends_are_encoded() -> None:
    engine = started(context_length=4 * LONGEST)
    seen: list[int] = []
    encode = engine.encode

    def watched(prompt: Prompt, most: int | None = None, check: Any = None) -> list[int]:
        seen.append(len(prompt.raw or ""))
        return encode(prompt, most, check)

    engine.encode = watched  # type: ignore[method-assign]
    base = EngineBaseModel(engine, 5.0)
    text = "a" * END + "7" * 1_000_000 + "b" * END
    whole = await asyncio.to_thread(base.hidden, [text])
    assert max(seen) == 2 * END
    np.testing.assert_array_equal(whole, await asyncio.to_thread(base.hidden, ["a" * END + "b" * END]))


async def test_the_timeout_holds_and_leaves_nothing_behind() -> None:
    engine = started()
    engine.hold()
    base = EngineBaseModel(engine, 0.05)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(base.hidden, ["slow", "slower"])
    engine.resume()
    await asyncio.sleep(0.02)
    assert not engine.busy


async def test_a_deadline_that_passes_in_the_engine_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(EngineBaseModel(started(step_seconds=0.05), 0.04).hidden, ["a"])


async def test_an_empty_text_is_refused() -> None:
    with pytest.raises(ValueError, match="decline"):
        await asyncio.to_thread(EngineBaseModel(started(), 5.0).hidden, ["fine", ""])


async def test_a_refusal_of_the_engine_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.engine.base.MAX_POOLING", 1)
    with pytest.raises(Overloaded):
        await asyncio.to_thread(EngineBaseModel(started(step_seconds=0.01), 5.0).hidden, ["a", "b", "c"])


async def test_lone_surrogates_are_read_as_something() -> None:
    found = await asyncio.to_thread(EngineBaseModel(started(), 5.0).hidden, ["\ud800 alone"])
    assert np.isfinite(found).all()


async def test_a_call_on_the_event_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="blocks"):
        EngineBaseModel(started(), 5.0).hidden(["a"])


def test_after_the_server_is_gone() -> None:
    from router.errors import Unavailable

    async def make() -> EngineBaseModel:
        return EngineBaseModel(started(), 5.0)

    base = asyncio.run(make())
    with pytest.raises(Unavailable):
        base.hidden(["a"])
