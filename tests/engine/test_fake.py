from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any
from unittest.mock import ANY

import pytest

from router.engine.base import (
    AdapterArtifact,
    Finished,
    PoolingRequest,
    Prompt,
    with_grammar,
)
from router.engine.fake import FakeEngine
from router.errors import (
    DeadlineExceeded,
    EngineFailed,
    FailedPrecondition,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from router.types import Constraint, FinishReason, PromptTemplate, Turn
from tests.engine.contract import answer, job


def started(**options: Any) -> FakeEngine:
    engine = FakeEngine(**options)
    engine.start()
    return engine


async def test_answer_tells_adapter_and_prompt() -> None:
    engine = started()
    await engine.load(AdapterArtifact("a", "1", "feedbeef00", {}))
    assert (await answer(engine, job(engine)))[0] == "[base] one two three"
    assert (await answer(engine, job(engine, adapter="feedbeef00")))[0] == "[feedbeef] one two three"


async def test_limits_and_stop_strings() -> None:
    engine = started()
    text, end = await answer(engine, job(engine, max_tokens=2))
    assert (text, end.reason, end.usage.completion_tokens) == ("[base] one", FinishReason.LENGTH, 2)
    text, end = await answer(engine, job(engine, stop=("wo th",)))
    assert (text, end.reason, end.stop) == ("[base] one t", FinishReason.STOP, "wo th")
    text, end = await answer(engine, job(engine, min_tokens=6))
    assert text == "[base] one two three one two"


def test_encode_applies_template_and_system() -> None:
    template = PromptTemplate("Be brief.", "Q: {prompt}")
    tokens = FakeEngine().encode(Prompt((Turn("user", "why {prompt}?"),), template=template))
    assert bytes(tokens).decode() == "Be brief.\nQ: why {prompt}?"


async def test_tenants_take_turns() -> None:
    engine = started(max_running=2, max_queue=20)
    ended: list[str] = []

    async def ask(tenant: str) -> None:
        async for _ in engine.submit(replace(job(engine, "one two"), tenant=tenant)):
            pass
        ended.append(tenant)

    await asyncio.gather(*(ask(tenant) for tenant in "aaaaaabb"))
    assert ended == ["a", "b", "a", "b", "a", "a", "a", "a"]


def test_what_every_prompt_under_a_template_begins_with() -> None:
    engine, template = FakeEngine(), PromptTemplate("Be brief.", "Q: {prompt}")
    prompt = Prompt((Turn("user", "why?"),), template=template)
    tokens = engine.encode(prompt)
    assert bytes(tokens[: engine.shared(prompt, tokens)]) == b"Be brief.\nQ: "
    assert engine.shared(Prompt(raw="Be brief.\nQ: why?", template=template), tokens) == 0


async def test_failed_step_fails_only_its_rows() -> None:
    engine = started()
    engine.fail_step("boom")
    with pytest.raises(EngineFailed):
        await answer(engine, job(engine))
    assert (await answer(engine, job(engine)))[0].startswith("[base]")


async def test_readings_are_numbers_of_the_bytes() -> None:
    engine = started()
    like, alike, other = (list(text) for text in (b"a sore throat", b"a sore throat!", b"SELECT 1"))
    one, two, three = [
        await engine.read(PoolingRequest(tokens, depth=0.5)) for tokens in (like, alike, other)
    ]
    assert one @ two > 0.9 > one @ three


async def test_readings_end_like_jobs() -> None:
    engine = started(step_seconds=0.005)
    with pytest.raises(InvalidRequest):
        await engine.read(PoolingRequest([]))
    with pytest.raises(DeadlineExceeded):
        await engine.read(PoolingRequest([1], depth=1.0, deadline=time.monotonic() - 1))
    engine.fail_step("boom")
    with pytest.raises(EngineFailed):
        await engine.read(PoolingRequest([1], depth=1.0))
    engine.hold()
    waiting = asyncio.ensure_future(engine.read(PoolingRequest([1], depth=1.0)))
    await asyncio.sleep(0)
    engine.close()
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await engine.read(PoolingRequest([1], depth=1.0))


async def test_background_jobs_take_what_is_left_and_give_way() -> None:
    engine = started(max_running=4, max_queue=0, step_seconds=0.001)
    requests = [engine.submit(job(engine, min_tokens=400, max_tokens=400)) for _ in range(2)]
    first, second = (engine.submit(replace(job(engine), background=True)) for _ in range(2))
    assert [e.reason async for e in second if isinstance(e, Finished)] == [FinishReason.CANCELLED]
    assert [e.reason async for e in first if isinstance(e, Finished)] == [FinishReason.STOP]
    late = engine.submit(replace(job(engine, min_tokens=400, max_tokens=400), background=True))
    await asyncio.sleep(0.01)
    assert (engine.status().running, engine.status().background) == (2, 1)
    requests.append(engine.submit(job(engine, min_tokens=400, max_tokens=400)))  # has its place
    assert [e.reason async for e in late if isinstance(e, Finished)] == [FinishReason.CANCELLED]
    assert (engine.status().running, engine.status().background_dropped) == (3, 2)
    with pytest.raises(Overloaded):
        [engine.submit(replace(job(engine), background=True)) for _ in range(5)]
    engine.close()


async def test_constrained_answers() -> None:
    engine = started()
    for constraint, text in (
        (Constraint("choices", choices=("größer", "kleiner")), "größer"),
        (Constraint("regex", "[a-z]{3}"), "aaa"),
        (Constraint("json_schema", '{"enum": [[1, {"a": null}]]}'), '[1,{"a":null}]'),
    ):
        ready = await with_grammar(engine, job(engine, constraint=constraint))
        assert await answer(engine, ready) == (text, ANY)
    assert (await answer(engine, job(engine)))[0] == "[base] one two three"
    with pytest.raises(FailedPrecondition, match="not been compiled"):
        engine.submit(job(engine, constraint=Constraint("regex", "a")))
    engine.close()
    odd = started(unconstrained="its tokens are odd")
    with pytest.raises(FailedPrecondition, match="its tokens are odd"):
        await odd.compile(Constraint("regex", "a"))
