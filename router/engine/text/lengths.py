"""How many tokens a text has at least, before it is encoded, and where it may be cut to be encoded in pieces.

Both are read off the tokenizer when it is loaded. Where it does not allow one of them, that is not used: a
text is refused for its length only if that is certain, and pieces give the very tokens of the whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.engine.text.detokenize import byte_letters

PIECE = 1 << 14  # characters
_SPACE = "▁"  # as SentencePiece writes it
_CUT = re.compile("[A-Za-z](?= [A-Za-z])")  # behind a word, so that the next piece begins with the space
_CROSSED = re.compile("[A-Za-z][ Ġ▁]")  # in a token that a cut could go through
_KEEPING = ("ByteLevel", "Digits", "Punctuation", "UnicodeScripts", "Metaspace")  # every letter
# What a regular expression sees of its left, or of the ends of a text. `^` in brackets is none of it.
_LOOKS_BACK = re.compile(r"\(\?<[=!]|\\[ABbGKZz]|[\^$](?![^\[]*\])")
# Every kind of neighbour that a cut may have, so that a tokenizer can be tried on it.
_SAMPLE = (
    "The quick brown fox jumps over the lazy dog. It's what I'll say, isn't it? THEY'RE here, he'd go\n"
    "a b c d  two spaces   three\tand tabs \n\n newlines\r\nand more \n end of line \nx y\n"
    "1 2 345 words 6789 and 3.14 apples, 50% off: a1 b2 3c 4d CamelCase snake_case kebab-case x = y + z;\n"
    "def add(a, b):\n    return a + b  # sum of a and b\n<b>bold text</b> [link](http://example.com/a b)\n"
    "na\u00efve caf\u00e9 na\u0131ve \u00fcber alles \u4f60\u597d world \u4e16\u754c of emoji \U0001f642\n"
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 families \u2013 dashes \u201cquotes of mine\u201d\n"
    "e\u0301 x \u0301y @me #tag of mine\n"
    "Hello hello HELLO  Hello internationalization of the antidisestablishmentarianism zzzz qqqq aaaa bb\n"
)


class LeastTokens:
    """A lower bound on the tokens of texts.

    Each letter counts as its part of the longest token that has it, so those of one token count as one at
    most. The letters are UTF-8 bytes for byte-level vocabularies, characters for SentencePiece BPE with
    byte fallback. A letter that may vanish counts nothing.
    """

    def __init__(self, shares: NDArray[np.float64], of_bytes: bool, composed: bool) -> None:
        """`shares` by byte or by code point; `composed`: the tokenizer composes characters first (NFC)."""
        self._shares, self._of_bytes, self._composed = shares, of_bytes, composed

    def of(self, texts: Iterable[str]) -> int:
        """Of all texts together, wherever tokens begin and end."""
        total = math.fsum(self._one(text) for text in texts if text)
        return math.ceil(total * (1 - 1e-9))

    def _one(self, text: str) -> float:
        if self._of_bytes:
            letters = np.frombuffer(text.encode(errors="replace"), np.uint8)
            letters = letters[_unchanged(letters)] if self._composed else letters
            return float(np.bincount(letters, minlength=256) @ self._shares)
        codes = np.frombuffer(text.encode("utf-32-le", errors="replace"), np.uint32)
        return float(self._shares[codes].sum())


def _unchanged(letters: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which bytes composing characters (NFC) surely leaves: ASCII before ASCII, and Chinese characters.

    Python could compose the text itself, but takes quadratic time for some.
    """
    plain = letters < 0x80
    plain[:-1] &= letters[1:] < 0x80
    leads = (letters >= 0xE4) & (letters <= 0xE9)  # of three bytes: U+4000 to U+9FFF
    plain |= leads
    plain[1:] |= leads[:-1]
    plain[2:] |= leads[:-2]
    return plain


def least_tokens(spec: Any) -> LeastTokens | None:
    """The bound for a tokenizer, `spec` being its tokenizer.json; None where none is known.

    That is so for vocabularies other than BPE over bytes or with byte fallback, and where text may be changed
    or dropped before it is encoded.
    """
    model, normal = spec["model"], list(_parts(spec["normalizer"], "normalizers"))
    keeping = all(_keeps(part) for part in _parts(spec["pre_tokenizer"], "pretokenizers"))
    # A token that swallows white space beside it has no longest length.
    greedy = any((t["lstrip"] or t["rstrip"]) and not t["special"] for t in spec["added_tokens"])
    if model["type"] != "BPE" or not keeping or greedy:
        return None
    added = [token["content"] for token in spec["added_tokens"] if not token["special"]]
    if _has(spec["pre_tokenizer"], "ByteLevel") and {part["type"] for part in normal} <= {"NFC"}:
        return LeastTokens(_byte_shares(model["vocab"], added), of_bytes=True, composed=bool(normal))
    fallback = model.get("byte_fallback") and all(f"<0x{b:02X}>" in model["vocab"] for b in range(256))
    if fallback and all(_only_marks_spaces(part) for part in normal):
        return LeastTokens(_letter_shares(model["vocab"], added), of_bytes=False, composed=False)
    return None


def cut_in_pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """The text in pieces of `size` characters or more, cut between words."""
    start = 0
    while len(text) - start > size and (found := _CUT.search(text, start + size - 1)):
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


def may_be_cut(spec: Any, first: Callable[[str], list[int]], later: Callable[[str], list[int]]) -> bool:
    """Whether `first` of the first piece and `later` of the others give the tokens of the whole text.

    No token may go through a cut, no rule may look back over one, and it must hold for the sample.
    """
    added = [token for token in spec["added_tokens"] if not token["special"]]
    vocabulary = spec["model"]["vocab"]
    words = vocabulary if isinstance(vocabulary, dict) else (word for word, _ in vocabulary)
    if any(map(_CROSSED.search, words)) or any(_CROSSED.search(t["content"]) for t in added):
        return False
    if any(t["lstrip"] or t["rstrip"] for t in added) or spec["model"].get("dropout"):
        return False
    patterns = [p.get("pattern", {}).get("Regex", "") for p in _parts(spec["pre_tokenizer"], "pretokenizers")]
    if any(map(_LOOKS_BACK.search, patterns)):
        return False
    head, *tail = cut_in_pieces(_SAMPLE, 1)
    return first(_SAMPLE) == first(head) + [token for piece in tail for token in later(piece)]


def _parts(step: Any, name: str) -> Iterator[Any]:
    """The steps of a sequence of normalizers or pre-tokenizers."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for part in step[name]:
            yield from _parts(part, name)
    else:
        yield step


def _has(step: Any, kind: str) -> bool:
    return any(part["type"] == kind for part in _parts(step, "pretokenizers"))


def _keeps(part: Any) -> bool:
    """Whether a pre-tokenizer leaves every letter in the text."""
    return part.get("behavior") != "Removed" and part["type"] in (*_KEEPING, "Split")


def _only_marks_spaces(part: Any) -> bool:
    """Whether a normalizer does no more than write SentencePiece's mark for spaces, or put one before all."""
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    return part in (marks, {"type": "Prepend", "prepend": _SPACE})


def _byte_shares(vocabulary: Mapping[str, int], added: Iterable[str]) -> NDArray[np.float64]:
    table = byte_letters()
    longest = _longest_with(vocabulary)
    shares = np.zeros(256)
    for letter, byte in table.items():
        if letter in vocabulary:  # where a byte has no token of its own, it may be left out
            shares[byte] = 1 / longest[letter]
    for content in added:
        spelt = content.encode()
        for byte in spelt:
            shares[byte] = min(shares[byte], 1 / len(spelt))
    return shares


def _letter_shares(vocabulary: Mapping[str, int], added: Iterable[str]) -> NDArray[np.float64]:
    shares = np.ones(0x110000)  # one that no token has is a byte token at least
    for letter, length in _longest_with([*vocabulary, *added]).items():
        shares[ord(letter)] = 1 / length
    shares[ord(" ")] = min(shares[ord(" ")], shares[ord(_SPACE)])
    return shares


def _longest_with(tokens: Iterable[str]) -> dict[str, int]:
    """For each letter the length of the longest token that has it."""
    longest: dict[str, int] = {}
    for token in sorted(tokens, key=len):
        longest.update(dict.fromkeys(token, len(token)))
    return longest
