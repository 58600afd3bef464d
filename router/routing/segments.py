"""Where in a request the instruction may stand: its first and its last sentence.

What a text is about fills the middle of a long request; what is asked for stands before or after it. So
classifiers look at three parts: the whole, the first sentence, the last one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from router.routing.texts import ends

HEAD, TAIL = 600, 300  # characters of a long text that are read
WORDS = 14  # of a sentence
LEAST = 2  # a sentence of fewer words takes its neighbour with it
PARTS = 3
_CUT = re.compile(r"(?<=[.!?:;>])\s+|\s[-–—=]+>?\s|(?<=\?)")
_FRAME = " \"'`-–=>"
_OPTION = re.compile(r"\s*[\[(]?(?:[A-Ea-e]|[1-5]|[ivx]{1,3})[\]).:](?:\s|$)")


def parts(text: str) -> tuple[str, str, str]:
    """The ends of the whole text, its first sentence and its last. A single sentence is all three.

    Lines with the options of a multiple-choice question are passed over: they say little of what is asked.
    """
    whole = ends(text, HEAD, TAIL)
    lines = whole.splitlines()
    found = _pieces([line for line in lines if not _OPTION.match(line)]) or _pieces(lines)
    if not found:
        return whole, whole, whole
    return whole, " ".join(_first(found)[:WORDS]), " ".join(_last(found)[-WORDS:])


def _pieces(lines: Sequence[str]) -> list[str]:
    stripped = (piece.strip(_FRAME) for line in lines for piece in _CUT.split(line))
    return [piece for piece in stripped if any(map(str.isalnum, piece))]


def _first(pieces: Sequence[str]) -> list[str]:
    words: list[str] = []
    for piece in pieces:
        words += piece.split()
        if len(words) >= LEAST:
            break
    return words


def _last(pieces: Sequence[str]) -> list[str]:
    words: list[str] = []
    for piece in reversed(pieces):
        words = piece.split() + words
        if len(words) >= LEAST:
            break
    return words
