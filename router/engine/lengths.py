"""How many tokens a text has at least, before it is encoded, and where it may be cut to be encoded in pieces.

Both are derived from the tokenizer when it is loaded. Where it does not allow one of them, that is not used:
a text is refused for its number of tokens only if that is certain, and pieces give the same tokens as the
whole.

The tokenizer takes up to 300 bytes of memory for a character of one piece, and cannot be interrupted within
one. So a piece has a bound of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.engine.output import byte_letters
from router.errors import FieldViolation, InvalidRequest

PIECE = 1 << 14  # characters
MOST_UNCUT = 1 << 17  # characters that are encoded at once; of bytes twice as many
_SLICE = 1 << 16  # characters whose shares are added at once
_SPACE = "▁"  # as SentencePiece writes it
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
    "1,2\n345\n6 x\n7\n\u4f60\u597d\n\u4e16\u754c\u3002\n\n\u4f60\nx\n\u4f60\u3002\nabc\n"
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
        total = math.fsum(self._slice(part) for text in texts for part in _slices(text))
        return math.ceil(total * (1 - 1e-9))

    def _slice(self, text: str) -> float:
        if self._of_bytes:
            letters = np.frombuffer(text.encode(errors="replace"), np.uint8)
            letters = letters[_unchanged(letters)] if self._composed else letters
            return float(np.bincount(letters, minlength=256) @ self._shares)
        codes = np.frombuffer(text.encode("utf-32-le", errors="replace"), np.uint32)
        return float(self._shares[codes].sum())


def _unchanged(letters: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which bytes composing characters (NFC) surely leaves: ASCII before ASCII, and Chinese characters.

    The last byte may be changed by what follows, unknown here. Python could compose the text itself,
    but takes quadratic time for some.
    """
    plain = letters < 0x80
    plain[:-1] &= letters[1:] < 0x80
    plain[-1:] = False
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


def _byte_class(*bounds: tuple[int, int]) -> str:
    """A class of a regular expression: bytes as byte-level vocabularies spell them."""
    letters = {byte: letter for letter, byte in byte_letters().items()}
    return f"[{''.join(re.escape(letters[b]) for low, high in bounds for b in range(low, high + 1))}]"


@dataclass(frozen=True, slots=True)
class Places:
    """Where a text may be cut. `crossed` finds a token of a vocabulary that a cut could go through."""

    cut: re.Pattern[str]
    crossed: re.Pattern[str]


_FOLLOWS = _byte_class((0x80, 0xBF))  # bytes of a character but its first
_WORDS = Places(re.compile("[A-Za-z](?= [A-Za-z])"), re.compile("[A-Za-z][ Ġ▁]"))  # the space begins a piece
_LINES = Places(
    re.compile(rf"{_WORDS.cut.pattern}|[A-Za-z0-9\u4e00-\u9fff](?=\n[A-Za-z0-9\u4e00-\u9fff])"),
    re.compile(
        rf"{_WORDS.crossed.pattern}|[A-Za-z0-9\u4e00-\u9fff][\nĊ]"
        rf"|(?:^|^{_FOLLOWS}|{_byte_class((0xE4, 0xE9))}{_FOLLOWS}){_FOLLOWS}Ċ"
    ),
)


def cut_in_pieces(text: str, places: Places, size: int = PIECE) -> Iterator[str]:
    """The text in pieces of `size` characters or more, cut between words or lines."""
    start = 0
    while len(text) - start > size and (found := places.cut.search(text, start + size - 1)):
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


def check_uncut(piece: str) -> None:
    """Raises InvalidRequest for a piece that is too long to be encoded at once."""
    if len(piece) <= MOST_UNCUT // 2 or (
        len(piece) <= MOST_UNCUT and len(piece.encode(errors="replace")) <= 2 * MOST_UNCUT
    ):
        return
    text = (
        f"has {len(piece)} characters without a place to cut it, which is one space or one line break "
        f"between two words: at most {MOST_UNCUT} ({2 * MOST_UNCUT} bytes) may come without one"
    )
    raise InvalidRequest([FieldViolation("input", text)])


def places_to_cut(
    spec: Any, first: Callable[[str], list[int]], later: Callable[[str], list[int]]
) -> Places | None:
    """Where `first` of the first piece and `later` of the others give the tokens of the whole text.

    No token may go through a cut, no rule may look back over one, and it must hold for the sample.
    """
    added = [token for token in spec["added_tokens"] if not token["special"]]
    if any(t["lstrip"] or t["rstrip"] for t in added) or spec["model"].get("dropout"):
        return None
    patterns = [p.get("pattern", {}).get("Regex", "") for p in _parts(spec["pre_tokenizer"], "pretokenizers")]
    if any(map(_LOOKS_BACK.search, patterns)):
        return None
    vocabulary = spec["model"]["vocab"]
    words = vocabulary if isinstance(vocabulary, dict) else [word for word, _ in vocabulary]
    whole = first(_SAMPLE)
    for places in (_LINES, _WORDS):
        if any(map(places.crossed.search, chain(words, (token["content"] for token in added)))):
            continue
        head, *tail = cut_in_pieces(_SAMPLE, places, 1)
        if whole == first(head) + [token for piece in tail for token in later(piece)]:
            return places
    return None


def _slices(text: str) -> Iterator[str]:
    return (text[at : at + _SLICE] for at in range(0, len(text), _SLICE))


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
