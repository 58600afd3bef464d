"""A base's tokens as llguidance wants them, or why it cannot have them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer

BYTES = "byte"  # a vocabulary of single bytes
_SAMPLES = ('Yes, 12 of them: {"a": [1.5, null]}', "naïve café\n\tÜber 你好 🙂", "  def f(x):\n    return x")


@dataclass(frozen=True, slots=True)
class VocabularySpec:
    """What tokens are made from: a tokenizer's JSON, how many logits there are, what ends an answer."""

    tokenizer: str
    width: int
    ends: tuple[int, ...]

    def tokens(self) -> LLTokenizer:
        """Reads it, which takes a third of a second for 50,000 tokens. Raises ValueError."""
        from llguidance import LLTokenizer

        if self.tokenizer == BYTES:
            return LLTokenizer(BYTES)
        return LLTokenizer(self.tokenizer, n_vocab=self.width, eos_token=list(self.ends))


def limits() -> LLParserLimits:
    """What one grammar may take at most while it is compiled, and of each mask."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=300_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def spec_of(tokenizer: Any, width: int, ends: Iterable[int]) -> VocabularySpec | str:
    """The spec of a transformers tokenizer, or why answers cannot be constrained with it.

    Tokens are bytes to llguidance. That they are the same bytes as in the texts that are served is
    tried on a few samples; a space at the beginning of a text is not one of its own to SentencePiece.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "its tokenizer is written in Python, and only those of the tokenizers library are read"
    known = tuple(sorted(end for end in ends if 0 <= end < width))
    if not known:
        return "no token ends its answers"
    if len(tokenizer) > width:
        return f"its tokenizer has {len(tokenizer)} tokens, its logits only {width}"
    spec = VocabularySpec(_without_padding(backend), width, known)
    try:
        tokens = spec.tokens()
    except ValueError as error:
        return f"its tokenizer is not of a kind whose tokens are bytes: {str(error)[:200]}"
    for text in _SAMPLES:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if tokens.decode_bytes(ids).lstrip(b" ") != text.encode().lstrip(b" ") and _lossless(tokenizer, text):
            return "the texts of its tokens are not the bytes that its vocabulary says"
    return spec


def _without_padding(backend: Any) -> str:
    from tokenizers import Tokenizer

    copied = Tokenizer.from_str(backend.to_str())
    copied.no_padding()
    copied.no_truncation()
    text: str = copied.to_str()
    return text


def _lossless(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer gives a text back as it was: not every vocabulary knows every letter."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    again: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return again.lstrip(" ") == text.lstrip(" ")
