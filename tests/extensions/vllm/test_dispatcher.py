"""Who is handed to vLLM when, and that whatever comes to a closed dispatcher is ended, not forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.engine.base import Delta, Finished, Job, PoolingRequest
from router.engine.output import PendingPooling
from router.errors import Unavailable
from router.extensions.vllm.answers import VllmAnswer
from router.extensions.vllm.dispatcher import Dispatcher
from router.extensions.vllm.link import VllmLora
from router.types import FinishReason, SamplingParams
from tests.engine.contract import until
from tests.extensions.vllm.script import Script
from tests.extensions.vllm.test_answers import LETTERS


class Trial:
    """A dispatcher over a scripted engine, and the messages that it sent to each receiver."""

    def __init__(self, rows: int = 2, slots: int = 2) -> None:
        self.script = Script()
        self.sent: list[tuple[str, Any]] = []
        self.names: dict[Any, str] = {}
        self.dispatcher = Dispatcher(
            self.script, rows, slots, lambda who, event: self.sent.append((self.names[who], event))
        )

    def add(self, name: str, tokens: int = 3, lora: int = 0, **more: Any) -> Any:
        stream = object()
        self.names[stream] = name
        job = Job(name, [1, 2], SamplingParams(max_tokens=tokens), **more)
        adapter = VllmLora(f"lora {lora}", lora, "path") if lora else None
        self.dispatcher.add(VllmAnswer(job, stream, LETTERS, frozenset(), adapter))  # type: ignore[arg-type]
        return stream

    def ends(self) -> dict[str, Any]:
        return {name: event for name, event in self.sent if not isinstance(event, Delta)}

    async def until(self, count: int) -> None:
        await until(lambda: len(self.ends()) >= count)


async def test_who_leaves_while_waiting_is_never_asked() -> None:
    trial = Trial(rows=1)
    trial.add("a")
    waiting = trial.add("b")
    trial.dispatcher.end(waiting)
    trial.dispatcher.end(waiting)
    await trial.until(2)
    assert trial.ends()["b"].reason is FinishReason.CANCELLED
    assert len(trial.script.asked) == 1
    assert (trial.dispatcher.running, trial.dispatcher.waiting) == (0, 0)


@pytest.mark.parametrize("how", ["fail", "stop"])
async def test_what_comes_too_late_is_ended(how: str) -> None:
    trial = Trial()
    trial.add("running", 1000)
    await asyncio.sleep(0.01)
    if how == "fail":
        trial.dispatcher.fail(Unavailable("dead"))
    else:
        trial.dispatcher.stop()
    trial.add("late")
    pending = PendingPooling(lambda it: None, lambda it: None)
    trial.names[pending] = "reading"
    trial.dispatcher.read(PoolingRequest([1], [2]), pending)
    ends = trial.ends()
    kind = Unavailable if how == "fail" else Finished
    assert {name: type(event) for name, event in ends.items()} == dict.fromkeys(
        ("running", "late", "reading"), kind
    )
    await asyncio.sleep(0.01)
    assert trial.script.running == set()


async def test_no_more_adapters_are_there_at_once_than_slots() -> None:
    trial = Trial(rows=8, slots=2)
    for name, lora in (("a", 1), ("b", 2), ("c", 3), ("d", 1), ("e", 0), ("f", 3), ("g", 2)):
        trial.add(name, lora=lora)
    await trial.until(7)
    assert trial.script.most_adapters == 2
    assert [ask.id.partition("-")[2] for ask in trial.script.asked] == ["a", "b", "d", "e", "g", "c", "f"]


async def test_a_slot_is_free_when_vllm_has_let_go_of_it() -> None:
    trial = Trial(rows=8, slots=1)
    first = trial.add("a", 1000, lora=1)
    trial.add("b", lora=2)
    await until(lambda: trial.script.running)
    trial.script.aborting.clear()
    trial.dispatcher.end(first)
    assert trial.ends()["a"].reason is FinishReason.CANCELLED
    await asyncio.sleep(0.02)
    assert len(trial.script.asked) == 1
    trial.script.aborting.set()
    await trial.until(2)


async def test_a_job_that_never_began_gives_its_slot_back() -> None:
    trial = Trial(rows=8, slots=1)
    trial.dispatcher.end(trial.add("a", lora=1))  # before its task had a turn
    trial.add("b", lora=2)
    await trial.until(2)
    assert trial.ends()["b"].reason is FinishReason.LENGTH


async def test_who_waits_for_a_slot_is_not_overtaken_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.extensions.vllm.dispatcher.PATIENCE", 0.0)
    trial = Trial(rows=8, slots=1)
    for name, lora in (("a", 1), ("b", 2), ("c", 1)):
        trial.add(name, lora=lora)
    await trial.until(3)
    assert [ask.id.partition("-")[2] for ask in trial.script.asked] == ["a", "b", "c"]


async def test_the_background_does_not_wait_for_a_slot() -> None:
    trial = Trial(rows=8, slots=1)
    trial.add("a", lora=1)
    trial.add("b", lora=2, background=True)
    assert trial.ends()["b"].reason is FinishReason.CANCELLED
