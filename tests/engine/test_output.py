"""Streamed text: whole characters, nothing of a stop string, equal to decoding the whole answer."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.engine.base import Delta, Finished
from router.engine.output import Detokenizer, EventDispatcher, Events, EventStream, deliver, shared_vocabulary
from router.errors import EngineFailed
from router.types import FinishReason
from tests.engine import small_tokenizers as small

KINDS = [small.byte_level, small.sentencepiece, small.unigram, small.word_piece, small.pure_python]
words = st.sampled_from(["hello", " ", "  ", "\n", "naïve", "你好", "🙂", "🙃é", "12", "END", "EN", "a"])
answers = st.lists(words, max_size=12).map("".join)


def stream(
    tokenizer: Any, ids: list[int], stop: tuple[str, ...] = (), min_tokens: int = 0
) -> tuple[list[str], Any]:
    detokenizer = Detokenizer(tokenizer, stop, min_tokens)
    pushed = [detokenizer.push(i) for i in ids]
    return [*pushed, detokenizer.flush()], detokenizer


def encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("make", KINDS)
@given(text=answers)
def test_pushes_together_are_the_whole_decode(make: Any, text: str) -> None:
    tokenizer = make()
    ids = encode(tokenizer, text)
    parts, _ = stream(tokenizer, ids)
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(parts) == whole


@pytest.mark.parametrize("make", [small.byte_level, small.sentencepiece, small.pure_python])
def test_a_replacement_character_that_the_model_wrote_is_text(make: Any) -> None:
    tokenizer = make()
    parts, _ = stream(tokenizer, encode(tokenizer, "a \ufffd\ufffd b\ufffd"))
    assert "".join(parts) == "a \ufffd\ufffd b\ufffd"


@given(data=st.data())
def test_any_tokens_of_a_byte_level_vocabulary(data: st.DataObject) -> None:
    tokenizer = small.byte_level()
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    parts, _ = stream(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


@pytest.mark.parametrize("make", [small.byte_level, small.sentencepiece, small.pure_python])
@given(text=st.text(alphabet="aé你🙂", max_size=10))
def test_no_push_splits_a_character(make: Any, text: str) -> None:
    tokenizer = make()
    parts, _ = stream(tokenizer, encode(tokenizer, text))
    assert all("\ufffd" not in part for part in parts)
    assert "".join(parts).removeprefix(" ") == text


@pytest.mark.parametrize("make", [small.byte_level, small.sentencepiece])
def test_unfinished_character_becomes_one_mark_at_the_end(make: Any) -> None:
    tokenizer = make()
    ids = encode(tokenizer, "a🙂")
    parts, detokenizer = stream(tokenizer, ids[:-1])
    assert "".join(parts).strip() == "a\ufffd"
    assert parts[-1] == "\ufffd"
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("make", [small.byte_level, small.sentencepiece])
def test_endless_invalid_bytes_are_not_held_for_ever(make: Any) -> None:
    tokenizer = make()
    token = "<0x80>" if make is small.sentencepiece else "Ģ"
    broken = tokenizer.convert_tokens_to_ids(token)
    parts, _ = stream(tokenizer, [broken] * 40)
    assert len("".join(parts[:12])) >= 8


@given(
    text=answers, stops=st.lists(st.sampled_from(["END", "EN", "llo", "好", "ab", "aa", "\n"]), max_size=3)
)
@example(text="aaab", stops=["aab"])
@example(text="xabc", stops=["abc", "b"])
@example(text="xab", stops=["b", "ab"])
def test_the_answer_ends_before_the_first_completed_stop_string(text: str, stops: list[str]) -> None:
    tokenizer = small.byte_level()
    ids = encode(tokenizer, text)
    parts, detokenizer = stream(tokenizer, ids, tuple(stops))
    ends = [(text.index(s) + len(s), -len(s), s) for s in stops if s in text]
    if not ends:
        assert ("".join(parts), detokenizer.stopped) == (text, None)
    else:
        end, _, word = min(ends)
        assert ("".join(parts), detokenizer.stopped) == (text[: end - len(word)], word)


@given(text=answers, min_tokens=st.integers(0, 6))
def test_min_tokens_only_delay_the_stop(text: str, min_tokens: int) -> None:
    tokenizer = small.byte_level()
    ids = encode(tokenizer, text)
    detokenizer = Detokenizer(tokenizer, ["EN", "a"], min_tokens)
    for count, token_id in enumerate(ids, start=1):
        detokenizer.push(token_id)
        if detokenizer.stopped:
            assert count > min_tokens
            break
    else:
        later = tokenizer.decode(ids[min_tokens:])
        assert "EN" not in later
        assert "a" not in later


def test_a_stop_string_may_begin_inside_one_that_came_too_early() -> None:
    tokenizer = small.byte_level()
    parts, detokenizer = stream(tokenizer, encode(tokenizer, "a") * 3, ("aa",), min_tokens=2)
    assert ("".join(parts), detokenizer.stopped) == ("a", "aa")


def test_text_is_held_only_while_it_may_begin_a_stop_string() -> None:
    tokenizer = small.byte_level()
    ids = [i for letter in "aEaENx" for i in encode(tokenizer, letter)]
    parts, detokenizer = stream(tokenizer, ids, ("END",))
    assert parts == ["a", "", "Ea", "", "", "ENx", ""]
    assert detokenizer.stopped is None


def test_special_tokens_are_left_out_but_may_be_named_as_stops() -> None:
    tokenizer = small.byte_level()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    a, b = encode(tokenizer, "a"), encode(tokenizer, "b")
    assert "".join(stream(tokenizer, [*a, end, *b])[0]) == "ab"
    parts, detokenizer = stream(tokenizer, [*a, end, *b], ("<|im_end|>",))
    assert ("".join(parts), detokenizer.stopped) == ("a", "<|im_end|>")
    parts, detokenizer = stream(tokenizer, [*a, end, *b], ("<|im_end|>",), min_tokens=2)
    assert ("".join(parts), detokenizer.stopped) == ("ab", None)


def test_after_a_stop_nothing_comes() -> None:
    tokenizer = small.byte_level()
    parts, detokenizer = stream(tokenizer, encode(tokenizer, "a\nb\nc"), ("\n",))
    assert "".join(parts) == "a"
    assert detokenizer.push(encode(tokenizer, "b")[0]) == ""


def test_ids_outside_the_vocabulary_are_no_text() -> None:
    tokenizer = small.byte_level()
    parts, _ = stream(tokenizer, [*encode(tokenizer, "a"), 10**6, *encode(tokenizer, "b")])
    assert "".join(parts) == "ab"


def test_one_token_alone_is_spelt_for_people() -> None:
    tokenizer = small.byte_level()
    spell = shared_vocabulary(tokenizer).spell
    assert spell(encode(tokenizer, "a")[0]) == "a"
    assert spell(tokenizer.convert_tokens_to_ids("<|im_end|>")) == "<|im_end|>"
    assert spell(encode(tokenizer, "🙂")[0]) == "\ufffd"


@pytest.mark.parametrize("make", [small.byte_level, small.sentencepiece])
def test_tokens_that_are_part_of_a_character_have_their_bytes(make: Any) -> None:
    tokenizer = make()
    ids = encode(tokenizer, "🙂")
    entries = [shared_vocabulary(tokenizer).logprob(token, -1.0, [(token, -1.0)]) for token in ids]
    whole = b"".join(entry.part or entry.token.encode() for entry in entries)
    assert whole.decode().strip() == "🙂"
    assert all(entry.top_parts == (entry.part,) for entry in entries if entry.part)


@pytest.mark.parametrize("make", KINDS)
def test_cost_of_a_token_does_not_grow_with_the_answer(make: Any) -> None:
    tokenizer = make()
    ids = encode(tokenizer, "capital of France ")
    detokenizer = Detokenizer(tokenizer, ("\n\n", "END"), 0)
    times = []
    for _ in range(60):
        started = time.thread_time()
        for token_id in ids * 5:
            detokenizer.push(token_id)
        times.append(time.thread_time() - started)
    assert min(times[-20:]) < 5 * min(times[:20]) + 0.001


# -- Events on their way from the engine's thread to the event loops.


def event_stream() -> EventStream:
    return EventStream(lambda _: None, lambda _: None)


async def texts(one: EventStream) -> list[str]:
    return [event.text async for event in one if isinstance(event, Delta)]


async def test_events_arrive_in_order_and_all_before_it_closes() -> None:
    dispatcher, streams = EventDispatcher(), [event_stream() for _ in range(3)]
    dispatcher.start()
    readers = [asyncio.ensure_future(texts(one)) for one in streams]
    for step in range(50):
        dispatcher.send([(one, Delta(f"{step} ")) for one in streams])
    dispatcher.send([(one, Finished(FinishReason.STOP)) for one in streams])
    await asyncio.to_thread(dispatcher.close)
    shown = ["".join(found) for found in await asyncio.gather(*readers)]
    assert shown == ["".join(f"{step} " for step in range(50))] * 3


async def test_events_wait_for_the_next_step_or_until_none_follows() -> None:
    bells: list[int] = []
    dispatcher, one = EventDispatcher(bells.append), event_stream()
    dispatcher.start()
    reader = asyncio.ensure_future(one.wait(1))
    dispatcher.send([(one, Delta("a"))])
    await asyncio.sleep(0.02)
    assert not reader.done()
    os.eventfd_write(bells[-1], 1)  # as the step does
    await asyncio.wait_for(reader, 10)
    dispatcher.send([(one, Finished(FinishReason.STOP))])
    dispatcher.flush()
    assert await asyncio.wait_for(texts(one), 10) == ["a"]
    await asyncio.to_thread(dispatcher.close)


async def test_a_loop_is_woken_once_for_all_rows_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, woken = asyncio.get_running_loop(), []
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *call: woken.append(call))
    deliver([(event_stream(), Delta("a")) for _ in range(16)])
    assert len(woken) == 1


async def test_who_cannot_be_reached_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        @property
        def loop(self) -> asyncio.AbstractEventLoop:
            raise RuntimeError("a bug")

    dispatcher, one = EventDispatcher(), event_stream()
    dispatcher.start()
    broken: Any = Broken()
    with caplog.at_level(logging.ERROR):
        dispatcher.send([(broken, Delta("lost"))])
        dispatcher.send([(one, Delta("shown")), (one, Finished(FinishReason.STOP))])
        assert await texts(one) == ["shown"]
    assert "cannot be delivered" in caplog.text
    await asyncio.to_thread(dispatcher.close)


def test_a_loop_that_is_closed_is_passed_over() -> None:
    async def begun() -> EventStream:
        return event_stream()

    events: Events = [(asyncio.run(begun()), Delta("nobody"))]
    deliver(events)


async def test_who_sends_does_not_wait_for_the_loop() -> None:
    dispatcher, one, sent = EventDispatcher(), event_stream(), threading.Event()
    dispatcher.start()

    def send() -> None:
        dispatcher.send([(one, Delta("a"))])
        sent.set()

    thread = threading.Thread(target=send)
    thread.start()
    assert sent.wait(10), "the loop is held up here, and the sender must not be"
    thread.join()
    await asyncio.to_thread(dispatcher.close)


async def test_a_reader_that_leaves_and_an_error() -> None:
    left: list[EventStream] = []
    one = EventStream(left.append, lambda _: None)
    reader = asyncio.ensure_future(texts(one))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert left == [one]
    one.put(Delta("nobody reads it"))
    failed = event_stream()
    failed.put(EngineFailed("a bug"))
    with pytest.raises(EngineFailed):
        await texts(failed)
