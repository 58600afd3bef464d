"""Grammars and random answers that follow them, without a model."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np

from router.engine.constrained.compiler import CompiledGrammar, _Base, _compiled
from router.engine.constrained.source import VocabularySpec, spec_of
from router.engine.constrained.state import GrammarState
from router.engine.constrained.trial import Trials
from router.types import Constraint, ConstraintKind
from tests.engine import small_tokenizers

SPARE = 7  # logits that are no token's


@cache
def base(kind: str = "byte_level") -> _Base:
    """A small tokenizer as grammars want it."""
    tokenizer = getattr(small_tokenizers, kind)()
    spec = spec_of(tokenizer, len(tokenizer) + SPARE, [tokenizer.eos_token_id])
    assert isinstance(spec, VocabularySpec), spec
    return _Base(spec, spec.tokens(), _NoTrials(spec))


class _NoTrials(Trials):
    """Compiles what tests know to be harmless at once."""

    def run(self, grammar: str, kind: ConstraintKind) -> str:
        return ""


def compiled(constraint: Constraint, kind: str = "byte_level") -> CompiledGrammar:
    """Raises InvalidRequest."""
    return CompiledGrammar(constraint, base(kind).spec, _compiled(base(kind), constraint))


def allowed(follower: GrammarState) -> list[int]:
    """The tokens of its mask."""
    return np.flatnonzero(np.unpackbits(follower.allowed.view(np.uint8), bitorder="little")).tolist()


def walked(
    grammar: CompiledGrammar, seed: int, most: int = 300, kind: str = "byte_level"
) -> tuple[list[int], bool]:
    """Tokens of a random answer, and whether it came to its end; short ends are likelier than long ways."""
    chance, follower = random.Random(seed), grammar.start(forcing=bool(seed % 2))
    (end,) = base(kind).spec.ends
    closing = [i for i in range(base(kind).spec.width) if text_of([i], kind).strip() in tuple('"}]0')]
    tokens: list[int] = []
    while len(tokens) < most:
        tokens += follower.forced()
        if follower.complete:
            return tokens, True
        follower.make_mask(keep_going=False)
        assert follower.error is None, follower.error
        choices = allowed(follower)
        if end in choices and (len(choices) == 1 or chance.random() < 0.3):
            return tokens, True
        soon = [i for i in closing if i in choices]
        pool = soon if soon and chance.random() < 0.5 else [i for i in choices if i != end]
        tokens.append(chance.choice(pool))
        follower.accept(tokens[-1])
        assert follower.error is None, follower.error
    return tokens, False


def text_of(tokens: list[int], kind: str = "byte_level") -> str:
    """What an answer of these tokens shows."""
    tokenizer: Any = getattr(small_tokenizers, kind)()
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
