"""Short prompts do not wait behind long ones, and what waits is bounded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config import Settings
from router.engine.base import Prompt
from router.engine.fake import FakeEngine
from router.engine.prompt import PromptEncoder
from router.errors import DeadlineExceeded, InvalidRequest, Overloaded, PromptTooLong
from router.server import encoding
from router.server.encoding import SHORT, SHORT_THREADS, Check, Encoding
from router.server.pipeline import AT_ONCE, FEW_TURNS, Pipeline
from router.types import PromptTemplate, Request, Turn
from router.v1 import inference_pb2 as pb
from tests.engine import small_tokenizers as small
from tests.fakes import FakeRegistry, FakeRouter, adapter
from tests.server.helpers import Connect, Start, ask, details, failure, until

LONG = SHORT + 1


@dataclass
class Held:
    """An encoder that begins what it is given, and ends it when it is let go."""

    begun: list[str] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)

    def encode(self, prompt: Prompt, most: int | None, check: Check) -> list[int]:
        text = prompt.raw or ""
        self.begun.append(text.strip("."))
        if text.startswith("bad"):
            raise InvalidRequest([])
        assert len(text) <= SHORT or self.go.wait(10)
        return [len(text)]


def long(name: str, more: int = 0) -> Prompt:
    return Prompt(raw=name + "." * (LONG - len(name) + more))


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.go.set()


@pytest.fixture
def room(held: Held) -> Iterator[Encoding]:
    made = Encoding(held.encode)
    yield made
    made.close()


async def begin(room: Encoding, *prompts: Prompt, **options: Any) -> list[asyncio.Task[list[int]]]:
    tasks = [asyncio.create_task(room.encode(prompt, **options)) for prompt in prompts]
    await asyncio.sleep(0)
    return tasks


async def test_a_short_one_does_not_wait_for_long_ones(room: Encoding, held: Held) -> None:
    tasks = await begin(room, *(long(str(i)) for i in range(288)))
    assert await room.encode(Prompt(raw="short")) == [5]
    assert await room.encode(Prompt((Turn("user", "x" * SHORT),))) == [0]
    assert held.begun == ["0", "short", ""]
    held.go.set()
    assert [await task for task in tasks] == [[LONG]] * 288


async def test_the_shorter_goes_first_but_not_for_ever(
    room: Encoding, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await begin(room, long("first"))
    tasks = await begin(room, long("longest", 1 << 19), long("longer", 1000), long("a"), long("b"))
    now = time.monotonic() + 3
    monkeypatch.setattr(encoding.time, "monotonic", lambda: now)
    tasks += await begin(room, long("too late to pass"))
    held.go.set()
    await asyncio.gather(*first, *tasks)
    assert held.begun == ["first", "a", "b", "longer", "longest", "too late to pass"]


async def test_one_that_leaves_is_not_read(room: Encoding, held: Held) -> None:
    first, second, third = await begin(room, long("1"), long("2"), long("3"))
    second.cancel()
    await asyncio.sleep(0)
    held.go.set()
    assert [await first, await third] == [[LONG], [LONG]]
    assert second.cancelled()
    assert held.begun == ["1", "3"]


async def test_one_that_leaves_while_it_is_read_disturbs_nobody(room: Encoding, held: Held) -> None:
    first, second = await begin(room, long("1"), long("2"))
    first.cancel()
    held.go.set()
    assert await second == [LONG]
    assert first.cancelled()


async def test_one_whose_deadline_passes_is_not_read(room: Encoding, held: Held) -> None:
    (first,) = await begin(room, long("1"))
    (late,) = await begin(room, long("2"), deadline=time.monotonic() + 0.01)
    (patient,) = await begin(room, long("3"), deadline=time.monotonic() + 60)
    await asyncio.sleep(0.02)
    held.go.set()
    with pytest.raises(DeadlineExceeded):
        await late
    assert [await first, await patient] == [[LONG], [LONG]]
    assert held.begun == ["1", "3"]


@dataclass
class Endless:
    """An encoder of a text that never ends, in pieces."""

    pieces: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def encode(self, prompt: Prompt, most: int | None, check: Check) -> list[int]:
        try:
            for self.pieces in range(100_000):
                check()
                time.sleep(0.0001)
        finally:
            self.ended.set()
        return []


@pytest.mark.parametrize("size", [SHORT, LONG])
async def test_one_that_leaves_ends_its_encoding(size: int) -> None:
    endless = Endless()
    room = Encoding(endless.encode)
    (leaving,) = await begin(room, Prompt(raw="." * size))
    await until(lambda: endless.pieces > 0)
    leaving.cancel()
    assert await asyncio.to_thread(endless.ended.wait, 5)
    await until(lambda: room._short._busy == room._long._busy == 0)
    assert leaving.cancelled()
    assert endless.pieces < 99_999
    room.close()


@pytest.mark.parametrize(
    ("prompt", "at_once"),
    [
        (Prompt(raw="." * (AT_ONCE - 8)), True),
        (Prompt(raw="." * AT_ONCE), False),
        (Prompt((Turn("user", "."),), template=PromptTemplate(system="." * AT_ONCE)), False),
        (Prompt((Turn("user", "."),) * (FEW_TURNS + 1)), False),
    ],
)
async def test_a_short_prompt_does_not_wait_for_a_thread(
    fakes: SimpleNamespace, prompt: Prompt, at_once: bool
) -> None:
    threads: list[threading.Thread] = []

    def encode(prompt: Prompt, most: int | None, check: Check) -> list[int]:
        threads.append(threading.current_thread())
        return []

    fakes.engine.start()
    fakes.engine.encode = encode
    pipeline = Pipeline(Settings(), fakes.engine, fakes.registry, fakes.router)
    await pipeline._encoded(prompt, Request("r"), None)
    assert (threads == [threading.main_thread()]) is at_once
    pipeline.close()


async def test_a_deadline_that_passes_ends_the_encoding() -> None:
    endless = Endless()
    room = Encoding(endless.encode)
    (late,) = await begin(room, long("1"), deadline=time.monotonic() + 0.05)
    with pytest.raises(DeadlineExceeded, match="not read in time"):
        await late
    assert endless.ended.is_set()
    assert 0 < endless.pieces < 99_999
    room.close()


async def test_what_waits_is_bounded_and_one_alone_always_may(held: Held) -> None:
    room = Encoding(held.encode, most_waiting=3 * LONG)
    tasks = await begin(room, long("read", 10 * LONG), *(long(str(i)) for i in range(3)))
    with pytest.raises(Overloaded, match="too much text") as refused:
        await room.encode(long("4"))
    assert refused.value.retry_after >= 1
    assert await room.encode(Prompt(raw="short")) == [5]
    tasks[1].cancel()
    await asyncio.sleep(0)
    tasks += await begin(room, long("now there is room"))
    held.go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await room.encode(long("and again", 10 * LONG)) == [11 * LONG]
    room.close()


async def test_tenants_take_turns_by_what_was_read_of_each(room: Encoding, held: Held) -> None:
    tasks = await begin(room, *(long(f"flood {i}") for i in range(20)), tenant="flood")
    tasks += await begin(room, long("b 1", LONG), long("b 2", LONG), tenant="b")
    tasks += await begin(room, long("c 1"), tenant="c")
    held.go.set()
    await asyncio.gather(*tasks)
    assert held.begun[:7] == ["flood 0", "flood 1", "c 1", "b 1", "flood 2", "flood 3", "b 2"]
    assert held.begun[7:] == [f"flood {i}" for i in range(4, 20)]


async def test_no_tenant_fills_the_queue(held: Held) -> None:
    room = Encoding(held.encode, most_waiting=8 * LONG)
    tasks = await begin(room, *(long(str(i)) for i in range(7)), tenant="flood")
    with pytest.raises(Overloaded, match="too much text"):
        await room.encode(long("one too many"), tenant="flood")
    tasks += await begin(room, long("another's"), tenant="b")
    tasks += await begin(room, long("one alone, however long", 40 * LONG), tenant="b")
    held.go.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(end, Overloaded) for end in ends] == [False] * 8 + [True]
    room.close()


async def test_errors_are_the_engines_and_end_nothing_else(room: Encoding) -> None:
    with pytest.raises(InvalidRequest):
        await room.encode(Prompt(raw="bad"))
    for _ in range(2 * SHORT_THREADS):
        assert await room.encode(Prompt(raw="good")) == [4]


async def test_closing_ends_who_waits(room: Encoding, held: Held) -> None:
    first, second = await begin(room, long("1"), long("2"))
    room.close()
    with pytest.raises(asyncio.CancelledError):
        await second
    held.go.set()
    assert await first == [LONG]


@given(
    st.lists(st.tuples(st.integers(0, 3 * LONG), st.booleans(), st.sampled_from(["", "a", "b"])), max_size=30)
)
def test_nothing_is_lost_whatever_comes_and_leaves(coming: list[tuple[int, bool, str]]) -> None:
    async def play() -> None:
        room = Encoding(lambda prompt, most, check: [len(prompt.raw or "")])
        tasks = [
            asyncio.create_task(room.encode(Prompt(raw="." * size), tenant=tenant))
            for size, _, tenant in coming
        ]
        await asyncio.sleep(0)
        for task, (_, leaves, _) in zip(tasks, coming, strict=True):
            if leaves:
                task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        for (size, leaves, _), end in zip(coming, ends, strict=True):
            assert end == [size] or (leaves and isinstance(end, asyncio.CancelledError))
        for pool in (room._short, room._long):
            await until(lambda pool=pool: pool._busy == 0)  # type: ignore[misc]
            assert (pool._waiting, +pool._held, pool._queue) == (0, Counter(), [])
        room.close()

    asyncio.run(play())


# -- On a server, beside 288 megabytes of digits.

DIGITS = "7" * (1 << 20)


class Reader(FakeEngine):
    """The fake engine with the encoder of a real tokenizer; counts what is given to the tokenizer."""

    def __init__(self) -> None:
        super().__init__(context_length=8192)
        self.made = PromptEncoder(small.byte_level())
        self.asked: list[int] = []
        self.read = 0
        plain = self.made._text._plain
        for name in ("first", "later"):
            object.__setattr__(plain, name, self._counted(getattr(plain, name)))

    def _counted(self, encode: Any) -> Any:
        def counted(text: str) -> list[int]:
            self.read += len(text)
            found: list[int] = encode(text)
            return found

        return counted

    def encode(self, prompt: Prompt, most: int | None = None, check: Check | None = None) -> list[int]:
        self.asked.append(sum(len(turn.text) for turn in prompt.turns))
        return [token % 256 for token in self.made.encode(prompt, most, check)]  # it answers with bytes


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_288_megabytes_of_digits_are_refused_unread(start_server: Start, connect: Connect) -> None:
    engine = Reader()
    registry = FakeRegistry(engine, [adapter("medical")])
    server = await start_server(engine=engine, registry=registry, router=FakeRouter(registry))
    stubs: SimpleNamespace = connect(server)
    hostile = [asyncio.ensure_future(failure(stubs.inference.Generate(ask(DIGITS)))) for _ in range(287)]
    reply = await stubs.inference.Generate(ask("how are you " * 16))
    assert reply.usage.prompt_tokens > 50
    refused = [details(error)["ErrorInfo"] for error in await asyncio.gather(*hostile)]
    reasons = {info.reason for info in refused}
    assert "INVALID_REQUEST" in reasons, "no place to cut them"
    assert reasons <= {"INVALID_REQUEST", "QUEUE_FULL"}
    assert engine.read < 10_000, "digits were encoded"


async def test_a_short_prompt_is_answered_while_long_ones_are_read(
    start_server: Start, connect: Connect
) -> None:
    engine = FakeEngine(context_length=1 << 17)
    encode, go = engine.encode, threading.Event()

    def slowly(prompt: Prompt, most: int | None = None, check: Check | None = None) -> list[int]:
        assert len(prompt.turns[0].text) <= SHORT or go.wait(30)
        return encode(prompt, most, check)

    engine.encode = slowly  # type: ignore[method-assign]
    registry = FakeRegistry(engine, [adapter("medical")])
    router = FakeRouter(registry)
    # rows for all, so that no request waits for one
    server = await start_server(engine=engine, registry=registry, router=router, max_running=64)
    stubs: SimpleNamespace = connect(server)
    asked = ask("word " * 20_000, sampling={"max_tokens": 1})
    long_ones = [asyncio.ensure_future(stubs.inference.Generate(asked)) for _ in range(40)]
    await until(lambda: len(server.pipeline._encoding._long._queue) == 39)
    for _ in range(5):
        assert (await stubs.inference.Generate(ask("how are you"))).text
    late = await failure(stubs.inference.Generate(asked, timeout=0.2))
    assert late.code().name == "DEADLINE_EXCEEDED"
    await until(lambda: server.pipeline._encoding._long._waiting == 39 * 100_000)
    assert not any(task.done() for task in long_ones)
    go.set()
    assert len(await asyncio.gather(*long_ones)) == 40


async def test_a_prompt_far_beyond_the_context_is_not_even_counted(
    stubs: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.server.pipeline.COUNTED", 10_000)
    asked = pb.CountTokensRequest(input=pb.Input(text="x" * 10_001))
    refused = details(await failure(stubs.inference.CountTokens(asked)))["ErrorInfo"]
    assert (refused.reason, refused.metadata["got"]) == ("PROMPT_TOO_LONG", "10001")


async def test_a_count_is_told_of_what_is_too_long(stubs: SimpleNamespace) -> None:
    counted = await stubs.inference.CountTokens(pb.CountTokensRequest(input=pb.Input(text="x" * 5000)))
    assert (counted.prompt_tokens, counted.context_length) == (5000, 4096)


def test_the_error_says_what_is_certain() -> None:
    assert "need at least 9 tokens, the limit is 8" in str(PromptTooLong(8, 9, at_least=True))
    assert "need 9 tokens, the limit is 8" in str(PromptTooLong(8, 9))
