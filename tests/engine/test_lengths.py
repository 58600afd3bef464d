"""The pieces of a text give the tokens of the whole, and reading ends at the piece with one too many."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from router.engine.base import Prompt
from router.engine.lengths import (
    _LINES,
    _WORDS,
    MOST_UNCUT,
    PIECE,
    cut_in_pieces,
    places_to_cut,
)
from router.engine.output import byte_letters
from router.engine.prompt import PromptEncoder
from router.errors import InvalidRequest, PromptTooLong
from router.types import PromptTemplate, Turn
from tests.engine import small_tokenizers as small
from tests.engine import tiny

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def composing() -> Any:
    """Like Qwen: NFC, then a regular expression of its own, over bytes."""
    from tokenizers import Regex

    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(small.CORPUS, trainer)
    raw.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return small._wrap(raw, small.CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>")


@cache
def greedy() -> Any:
    """An added word that swallows the spaces before it."""
    raw = Tokenizer.from_str(small.byte_level().backend_tokenizer.to_str())
    raw.add_tokens([AddedToken("<mask>", lstrip=True)])
    return small._wrap(raw, small.CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>")


@cache
def wide() -> Any:
    """Tokens of several words, which no cut may go through."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(small.CORPUS * 3, trainer)
    return small._wrap(raw, None, eos_token="!")


def _with_byte_fallback(raw: Tokenizer) -> Any:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*special, *bytes_], show_progress=False)
    raw.train_from_iterator([text for text in small.CORPUS if "你" not in text], trainer)
    raw = Tokenizer.from_str(small._only_special(raw.to_str(), special))
    return small._wrap(raw, None, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def prepending() -> Any:
    """Like Llama 2: a normalizer writes SentencePiece's marks, one before all text."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _with_byte_fallback(raw)


@cache
def merging() -> Any:
    """Like Gemma: marks for spaces, and words that keep the space behind them."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return _with_byte_fallback(raw)


# Each with where text is cut.
KINDS: dict[Any, Any] = {
    small.byte_level: _LINES,
    small.sentencepiece: None,
    small.unigram: _WORDS,
    small.word_piece: _LINES,
    small.pure_python: None,
    small.eager_right: _LINES,
    tiny.tokenizer: _LINES,
    composing: _LINES,
    greedy: None,
    wide: None,
    prepending: None,
    merging: None,
}
PARTS = (
    "the capital of France|Paris| is|What|'ll |12|3|\n|\n\n|a\nb|1\n2|你\n好|。\n|  | |\t|é|e\u0301|你好|"
    "🙂|a b|<think>|<mask>|</s>|-|_|x|\u00a0|▁|Ġ|\u0301|가|\u1100\u1161"
)
WORDS = [*PARTS.split("|"), "<|im_end|>"]
texts = st.lists(
    st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=30
)


@cache
def encoder(make: Any) -> PromptEncoder:
    return PromptEncoder(make())


@pytest.mark.parametrize("make", KINDS)
def test_where_text_of_each_kind_of_tokenizer_is_cut(make: Any) -> None:
    assert encoder(make)._text._plain.places == KINDS[make]


@pytest.mark.slow
@pytest.mark.parametrize("make", [make for make, places in KINDS.items() if places])
@given(parts=texts, size=st.integers(1, 8))
def test_pieces_give_the_tokens_of_the_whole(make: Any, parts: list[str], size: int) -> None:
    text, plain = "".join(parts), encoder(make)._text._plain
    assert plain.places is not None
    first, *others = cut_in_pieces(text, plain.places, size)
    assert "".join([first, *others]) == text
    assert plain.first(first) + [t for piece in others for t in plain.later(piece)] == plain.first(text)


def test_pieces_end_with_a_word_or_a_line_and_are_long_enough() -> None:
    text = "ab cd, ef 12 gh ij"
    assert list(cut_in_pieces(text, _WORDS, 1)) == ["ab", " cd, ef 12 gh", " ij"]
    assert list(cut_in_pieces(text, _WORDS, 3)) == ["ab cd, ef 12 gh", " ij"]
    assert list(cut_in_pieces(text, _WORDS, 15)) == ["ab cd, ef 12 gh", " ij"]
    assert list(cut_in_pieces(text, _WORDS, 16)) == [text]
    assert list(cut_in_pieces("", _WORDS, 1)) == [""]
    lines = "1,2\n34\n\n5 6\n你好\n，a\n \nb"
    assert list(cut_in_pieces(lines, _WORDS, 1)) == [lines]
    assert list(cut_in_pieces(lines, _LINES, 1)) == ["1,2", "\n34\n\n5 6", "\n你好\n，a\n \nb"]


def test_a_token_that_goes_through_the_end_of_a_line_leaves_cuts_between_words() -> None:
    """Those of punctuation do not."""
    spec = json.loads(composing().backend_tokenizer.to_str())
    plain = encoder(composing)._text._plain
    spell = {byte: letter for letter, byte in byte_letters().items()}
    for text, places in (
        (b"x\n", _WORDS),
        ("好\n".encode(), _WORDS),
        ("好\n".encode()[1:], _WORDS),
        ("好\n".encode()[2:], _WORDS),
        ("。\n\n".encode(), _LINES),
        (b"}\n", _LINES),
    ):
        token = "".join(spell[byte] for byte in text)
        changed = {**spec, "model": {**spec["model"], "vocab": {**spec["model"]["vocab"], token: 9999}}}
        assert places_to_cut(changed, plain.first, plain.later) is places


def test_rules_that_look_back_forbid_cuts() -> None:
    spec = json.loads(composing().backend_tokenizer.to_str())
    plain = encoder(composing)._text._plain
    assert places_to_cut(spec, plain.first, plain.later)
    for rule in (r"(?<=\w)x", r"\bword", r"^a", r"a|(?<!b)c"):
        spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": rule}
        assert not places_to_cut(spec, plain.first, plain.later)


def test_a_token_that_goes_through_a_cut_forbids_cuts() -> None:
    """Though the sample does not have it."""
    spec = json.loads(composing().backend_tokenizer.to_str())
    plain = encoder(composing)._text._plain
    for token in ("qĠv", "q▁v"):
        changed = {**spec, "model": {**spec["model"], "vocab": {**spec["model"]["vocab"], token: 9999}}}
        assert not places_to_cut(changed, plain.first, plain.later)
    word = {"content": "New York", "special": False, "lstrip": False, "rstrip": False}
    assert not places_to_cut({**spec, "added_tokens": [word]}, plain.first, plain.later)


class Counting:
    """Letters that an encoder's tokenizer has been given."""

    def __init__(self, made: PromptEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.letters = 0
        plain = made._text._plain
        first, later = plain.first, plain.later
        for name, encode in (("first", first), ("later", later)):
            object.__setattr__(plain, name, self._counted(encode))
        monkeypatch.setattr(made._text, "_plain", plain)

    def _counted(self, encode: Any) -> Any:
        def counted(text: str) -> list[int]:
            self.letters += len(text)
            found: list[int] = encode(text)
            return found

        return counted


@pytest.mark.parametrize("turns", [False, True])
def test_reading_stops_when_there_are_too_many_tokens(turns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made, text = PromptEncoder(small.byte_level()), "zq xv " * 20_000
    prompt = Prompt((Turn("user", text),)) if turns else Prompt(raw=text)
    tokens = made.encode(prompt)
    counting = Counting(made, monkeypatch)
    with pytest.raises(PromptTooLong, match="at least") as refused:
        made.encode(prompt, 1000)
    assert 1000 < refused.value.got < len(tokens)
    assert refused.value.metadata["limit"] == "1000"
    assert counting.letters <= PIECE + 1000
    assert made.encode(prompt, len(tokens)) == tokens


def test_a_piece_too_long_to_be_encoded_at_once_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer can neither be interrupted within it, nor bounded in memory."""
    made = PromptEncoder(small.byte_level())
    assert len(made.encode(Prompt(raw="a" * MOST_UNCUT))) >= MOST_UNCUT / 10
    assert len(made.encode(Prompt(raw="a b\n" * MOST_UNCUT))) > MOST_UNCUT
    counting = Counting(made, monkeypatch)
    for text in ("a" * (MOST_UNCUT + 1), "你" * (MOST_UNCUT - 1)):
        with pytest.raises(InvalidRequest, match=f"has {len(text)} characters without a place to cut it"):
            made.encode(Prompt(raw=text))
    assert counting.letters == 0


def test_a_check_that_raises_ends_the_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    made = PromptEncoder(small.byte_level())
    counting = Counting(made, monkeypatch)
    seen: list[int] = []

    def check() -> None:
        seen.append(counting.letters)
        if len(seen) == 4:
            raise TimeoutError

    text = "a b\n" * (1 << 18)
    for prompt in (Prompt(raw=text), Prompt((Turn("user", text),))):
        seen.clear()
        counting.letters = 0
        with pytest.raises(TimeoutError):
            made.encode(prompt, check=check)
        assert seen[0] == 0
        assert seen[3] == counting.letters < 4 * PIECE + 1000


@pytest.mark.parametrize("make", [small.byte_level, small.sentencepiece, small.pure_python])
def test_what_fits_is_whole(make: Any) -> None:
    made, turns = PromptEncoder(make()), (Turn("user", "What is the capital of France?"),)
    prompt = Prompt(turns, template=PromptTemplate("Be brief"))
    tokens = made.encode(prompt)
    for most in (len(tokens), 10_000):
        assert made.encode(prompt, most) == tokens
