"""Streamed text: whole characters, nothing of a stop string, equal to decoding the whole answer."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.engine.text.detokenize import Detokenizer, shared_vocabulary
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
