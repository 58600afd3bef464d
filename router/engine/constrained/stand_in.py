"""Answers that follow a grammar without a model, byte by byte, for the fake engine."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import numpy as np

from router.engine.constrained.grammars import CompiledGrammar, Grammars
from router.engine.constrained.vocabulary import BYTES, VocabularySpec
from router.errors import EngineFailed

_END = 261
_LIKED = b'"}])0aA '  # what is soon at an end


def byte_grammars(why_not: str = "") -> Grammars:
    """Compiles for a vocabulary of bytes; with `why_not` nothing is compiled, for that reason."""
    return Grammars(lambda: why_not or VocabularySpec(BYTES, _END + 1, (_END,)))


def pieces_of(grammar: CompiledGrammar) -> Iterator[str]:
    """An answer, the same each time: what is forced in one piece, what is chosen in pieces of one character.

    It ends as soon as it may, which in some grammars is never. Raises EngineFailed at a dead end.
    """
    follower = grammar.follower()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        if piece := decoder.decode(bytes(follower.forced())):
            yield piece
        if follower.complete:
            return
        follower.make_mask(keep_going=False)
        if follower.error is not None:
            raise EngineFailed(follower.error.message)
        allowed = np.flatnonzero(np.unpackbits(follower.allowed.view(np.uint8), bitorder="little")).tolist()
        if _END in allowed:
            return
        chosen = next((byte for byte in _LIKED if byte in allowed), allowed[0])
        follower.accept(chosen)
        if piece := decoder.decode(bytes([chosen])):
            yield piece
