"""What classifiers read of a text: its words, and of a long one head, tail, first and last sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

HEAD, TAIL = 600, 300  # characters of a long text that are read
SENTENCE_WORDS = 14  # that are read of a sentence
LEAST_WORDS = 2  # a sentence of fewer takes its neighbour with it
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?[+#]*")
_CUT = re.compile(r"(?<=[.!?:;>])\s+|\s[-–—=]+>?\s|(?<=\?)")
_FRAME = " \"'`-–=>"
_OPTION = re.compile(r"\s*[\[(]?(?:[A-Ea-e]|[1-5]|[ivx]{1,3})[\]).:](?:\s|$)")


def whole_first_last(text: str) -> tuple[str, str, str]:
    """The ends of the whole text, its first sentence and its last. A single sentence is all three.

    Lines with the options of a multiple-choice question are passed over: they say little of what is asked.
    """
    whole = cut_middle(text, HEAD, TAIL)
    lines = whole.splitlines()
    found = _pieces([line for line in lines if not _OPTION.match(line)]) or _pieces(lines)
    if not found:
        return whole, whole, whole
    return whole, " ".join(_first(found)[:SENTENCE_WORDS]), " ".join(_last(found)[-SENTENCE_WORDS:])


def _pieces(lines: Sequence[str]) -> list[str]:
    stripped = (piece.strip(_FRAME) for line in lines for piece in _CUT.split(line))
    return [piece for piece in stripped if any(map(str.isalnum, piece))]


def _first(pieces: Sequence[str]) -> list[str]:
    found: list[str] = []
    for piece in pieces:
        found += piece.split()
        if len(found) >= LEAST_WORDS:
            break
    return found


def _last(pieces: Sequence[str]) -> list[str]:
    found: list[str] = []
    for piece in reversed(pieces):
        found = piece.split() + found
        if len(found) >= LEAST_WORDS:
            break
    return found


def cut_middle(text: str, head: int, tail: int) -> str:
    """The first `head` and last `tail` characters: an instruction stands before or after what it is about."""
    if len(text) <= head + tail:
        return text
    return f"{text[:head]} … {text[-tail:]}"


def words(text: str) -> list[str]:
    """Words of `text`, case folded; `C++`, `c#` and `don't` stay whole."""
    return WORD.findall(text.casefold().replace("’", "'"))
