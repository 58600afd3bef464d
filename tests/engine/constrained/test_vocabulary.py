"""Which tokenizers answers can be constrained with, and why not with the others."""

from __future__ import annotations

import pytest

from router.engine.constrained.vocabulary import BYTES, VocabularySpec, spec_of
from tests.engine import small_tokenizers


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "eager_right"])
def test_those_whose_tokens_are_bytes(kind: str) -> None:
    tokenizer = getattr(small_tokenizers, kind)()
    spec = spec_of(tokenizer, len(tokenizer) + 100, [tokenizer.eos_token_id, 10**6])
    assert isinstance(spec, VocabularySpec)
    assert spec.ends == (tokenizer.eos_token_id,)
    tokens = spec.tokens()
    assert tokens.vocab_size == len(tokenizer) + 100
    ids = tokenizer.encode("Paris <think> 12", add_special_tokens=False)
    assert tokens.decode_bytes(ids).strip() == b"Paris <think> 12"


@pytest.mark.parametrize(
    ("kind", "why"),
    [("unigram", "not of a kind"), ("word_piece", "not of a kind"), ("pure_python", "written in Python")],
)
def test_others_say_why(kind: str, why: str) -> None:
    tokenizer = getattr(small_tokenizers, kind)()
    found = spec_of(tokenizer, len(tokenizer), [1])
    assert isinstance(found, str)
    assert why in found


def test_logits_that_do_not_fit() -> None:
    tokenizer = small_tokenizers.byte_level()
    assert spec_of(tokenizer, len(tokenizer) - 1, [3]) == (
        f"its tokenizer has {len(tokenizer)} tokens, its logits only {len(tokenizer) - 1}"
    )
    assert spec_of(tokenizer, len(tokenizer), []) == "no token ends its answers"


def test_a_tokenizer_that_shows_other_texts_than_its_vocabulary_has() -> None:
    class Loud:
        backend_tokenizer = small_tokenizers.byte_level().backend_tokenizer

        def __len__(self) -> int:
            return 300

        def encode(self, text: str, **_: object) -> list[int]:
            return small_tokenizers.byte_level().encode(text.upper(), add_special_tokens=False)

        def decode(self, ids: list[int], **_: object) -> str:
            return small_tokenizers.byte_level().decode(ids).lower()

    found = spec_of(Loud(), 1000, [3])
    assert isinstance(found, str)
    assert "not the bytes" in found


def test_padding_and_truncation_of_the_tokenizer_are_left_behind() -> None:
    tokenizer = small_tokenizers._wrap(
        type(small_tokenizers.byte_level().backend_tokenizer).from_str(
            small_tokenizers.byte_level().backend_tokenizer.to_str()
        ),
        None,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    spec = spec_of(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    assert isinstance(spec, VocabularySpec), spec
    assert len(spec.tokens().tokenize_str("a long text of more tokens than four")) > 8


def test_bytes() -> None:
    tokens = VocabularySpec(BYTES, 262, (261,)).tokens()
    assert (tokens.vocab_size, tokens.tokenize_str("aé")) == (262, [97, 195, 169])
