"""Compiled once and kept; refused once and kept; anew where it has to be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from router.engine.constrained import grammars as module
from router.engine.constrained.grammars import Grammars
from router.engine.constrained.vocabulary import VocabularySpec
from router.errors import FailedPrecondition, InvalidRequest, Overloaded
from router.types import Constraint
from tests.engine.constrained.driving import base


def choices(*texts: str) -> Constraint:
    return Constraint("choices", choices=texts)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Grammars]:
    made = Grammars(lambda: base().spec)
    made._read = base()
    yield made
    made.close()


async def test_the_same_is_compiled_once(made: Grammars) -> None:
    one, other = await asyncio.gather(made.compile(choices("a", "b")), made.compile(choices("a", "b")))
    assert one is other
    assert await made.compile(choices("a", "b")) is one
    assert await made.compile(choices("b", "a")) is not one


async def test_who_leaves_takes_it_from_nobody(made: Grammars) -> None:
    leaving = asyncio.create_task(made.compile(choices("a")))
    await asyncio.sleep(0)
    staying = asyncio.create_task(made.compile(choices("a")))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).constraint == choices("a")


async def test_a_refusal_is_kept_and_is_a_new_error_each_time(
    made: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Constraint("regex", "a(")
    with pytest.raises(InvalidRequest) as first:
        await made.compile(bad)
    monkeypatch.setattr(module, "_compiled", None)
    with pytest.raises(InvalidRequest) as second:
        await made.compile(bad)
    assert first.value is not second.value
    assert first.value.violations == second.value.violations


async def test_the_least_recently_used_go(made: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    first, second = await made.compile(choices("1")), await made.compile(choices("2"))
    assert await made.compile(choices("1")) is first
    await made.compile(choices("3"))
    assert await made.compile(choices("1")) is first
    assert await made.compile(choices("2")) is not second


async def test_one_that_broke_is_compiled_again(made: Grammars) -> None:
    grammar = await made.compile(choices("a"))
    grammar.follower().give_up("for a test")
    assert await made.compile(choices("a")) is not grammar


async def test_too_many_at_once(made: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    go = threading.Event()
    monkeypatch.setattr(module, "_compiled", lambda *_: go.wait() and None)
    waiting = [asyncio.create_task(made.compile(choices(str(i)))) for i in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await made.compile(choices("one more"))
    again = asyncio.create_task(made.compile(choices("0")))
    go.set()
    assert len(await asyncio.gather(*waiting, again)) == 4


async def test_why_a_base_cannot() -> None:
    asked = 0

    def find_spec() -> VocabularySpec | str:
        nonlocal asked
        asked += 1
        return "its tokenizer is odd"

    made = Grammars(find_spec)
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="cannot be constrained: its tokenizer is odd"):
            await made.compile(choices("a"))
    assert asked == 1
    made.close()
