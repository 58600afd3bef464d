"""Where a text may be cut to be encoded in pieces, which give the same tokens as the whole.

The places are derived from the tokenizer when it is loaded; some tokenizers allow none. A tokenizer takes up
to 300 bytes of memory for a character of one piece, and cannot be interrupted within one. So a piece has a
bound of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from router.engine.output import byte_letters
from router.errors import FieldViolation, InvalidRequest

PIECE = 1 << 14  # characters
MOST_UNCUT = 1 << 17  # characters that are encoded at once; of bytes twice as many
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


def _parts(step: Any, name: str) -> Iterator[Any]:
    """The steps of a sequence of normalizers or pre-tokenizers."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for part in step[name]:
            yield from _parts(part, name)
    else:
        yield step
