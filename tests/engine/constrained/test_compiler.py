"""Compiled once and kept; refused once and kept; anew where it has to be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from router.engine.constrained import compiler as module
from router.engine.constrained.compiler import CompiledGrammar, Grammars
from router.engine.constrained.source import VocabularySpec
from router.engine.tenant_cache import TenantCache
from router.errors import FailedPrecondition, InvalidRequest, Overloaded, Unavailable
from router.types import Constraint
from tests.engine.constrained.driving import base
from tests.server.helpers import until


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


async def test_the_least_recently_used_go(made: Grammars) -> None:
    made._kept = TenantCache(2)
    first, second = await made.compile(choices("1")), await made.compile(choices("2"))
    assert await made.compile(choices("1")) is first
    await made.compile(choices("3"))
    assert await made.compile(choices("1")) is first
    assert await made.compile(choices("2")) is not second


async def test_fewer_large_ones_are_kept(made: Grammars) -> None:
    made._kept = TenantCache(2, module._size)
    small = await made.compile(Constraint("quote", "a b"))
    await made.compile(Constraint("quote", "a " * 3000))
    assert await made.compile(Constraint("quote", "a b")) is not small


async def test_one_that_broke_is_compiled_again(made: Grammars) -> None:
    grammar = await made.compile(choices("a"))
    grammar.start().accept(ord("b"))
    assert grammar.spoiled
    assert await made.compile(choices("a")) is not grammar


async def test_too_many_at_once(made: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    go = threading.Event()
    compiled = module._compiled
    monkeypatch.setattr(module, "_compiled", lambda *what: go.wait() and compiled(*what))
    waiting = [asyncio.create_task(made.compile(choices(str(i)))) for i in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await made.compile(choices("one more"))
    again = asyncio.create_task(made.compile(choices("0")))
    go.set()
    assert len(await asyncio.gather(*waiting, again)) == 4


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiling]:
    """Compiling of which each waits until it is let go."""
    held = Compiling(module._compiled)
    monkeypatch.setattr(module, "_compiled", held.compiled)
    yield held
    held.go.set()


@dataclass
class Compiling:
    compile: Callable[[Any, Constraint], Any]
    begun: list[str] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)

    def compiled(self, base: Any, constraint: Constraint) -> Any:
        self.begun.append(constraint.choices[0])
        assert self.go.wait(20)
        return self.compile(base, constraint)


def asking(made: Grammars, tenant: str, number: int) -> list[asyncio.Task[CompiledGrammar]]:
    names = [f"{tenant} {i}" for i in range(number)]
    return [asyncio.create_task(made.compile(choices(name), tenant)) for name in names]


async def test_a_tenant_takes_no_places_from_another(made: Grammars, compiling: Compiling) -> None:
    """80 of one tenant fill all 64 places before the other's 25 come."""
    flood = asking(made, "flood", 80)
    await asyncio.sleep(0)
    assert len(made._queues["flood"]) == 62
    others = asking(made, "other", 25)
    await asyncio.sleep(0)
    assert {tenant: len(queue) for tenant, queue in made._queues.items()} == {"flood": 37, "other": 25}
    compiling.go.set()
    ends = await asyncio.gather(*others, return_exceptions=True)
    assert all(isinstance(end, CompiledGrammar) for end in ends)
    ends = await asyncio.gather(*flood, return_exceptions=True)
    assert [isinstance(end, Overloaded) for end in ends] == [False] * 39 + [True] * 41


async def test_tenants_take_turns(made: Grammars, compiling: Compiling) -> None:
    first = asking(made, "flood", 10)
    await until(lambda: len(compiling.begun) == 2)
    others = asking(made, "other", 3)
    await asyncio.sleep(0)
    compiling.go.set()
    await asyncio.gather(*first, *others)
    assert set(compiling.begun[:2]) == {"flood 0", "flood 1"}
    assert {"other 0", "other 1", "other 2"} <= set(compiling.begun[2:8])


async def test_no_tenant_keeps_what_is_its_fair_part(made: Grammars, compiling: Compiling) -> None:
    """Tenants with as much as each other do not push each other aside."""
    tasks = [*asking(made, "a", 33), *asking(made, "b", 31)]
    await asyncio.sleep(0)
    more = asking(made, "b", 40)[31:]
    await asyncio.sleep(0)
    compiling.go.set()
    ends = await asyncio.gather(*tasks, *more, return_exceptions=True)
    assert [isinstance(end, Overloaded) for end in ends] == [False] * 64 + [True] * 9


async def test_one_for_which_no_caller_waits_leaves_the_queue(made: Grammars, compiling: Compiling) -> None:
    running = asking(made, "a", 2)
    leaving, staying = asking(made, "b", 2)
    await until(lambda: len(compiling.begun) == 2)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert [asked.constraint for asked in made._queues["b"]] == [choices("b 1")]
    compiling.go.set()
    await asyncio.gather(*running, staying)
    again = await made.compile(choices("b 0"), "b")
    assert again.constraint == choices("b 0")
    assert compiling.begun.count("b 0") == 1


async def test_each_tenant_has_its_own_compiled(made: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its time tells whether another tenant asked for the same."""
    begun: list[Constraint] = []
    compiled = module._compiled
    monkeypatch.setattr(module, "_compiled", lambda base, what: begun.append(what) or compiled(base, what))
    one = await made.compile(choices("a"), "one")
    assert await made.compile(choices("a"), "one") is one
    assert len(begun) == 1
    for tenant in ("other", ""):
        assert await made.compile(choices("a"), tenant) is not one
    assert len(begun) == 3


async def test_closing_ends_who_waits(made: Grammars, compiling: Compiling) -> None:
    running, waiting = asking(made, "a", 2), asking(made, "b", 2)
    await until(lambda: len(compiling.begun) == 2)
    made.close()
    for task in waiting:
        with pytest.raises(asyncio.CancelledError):
            await task
    compiling.go.set()
    assert len(await asyncio.gather(*running)) == 2
    with pytest.raises(Unavailable):
        await made.compile(choices("late"))


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
