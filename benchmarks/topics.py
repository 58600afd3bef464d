"""Synthetic specialists: each has three words of its own, and requests that are about them.

Words are whole words of the base's vocabulary, drawn so that topics share some of them: with 10,000 topics
every word belongs to several. Requests to learn from and requests to ask are worded differently.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from transformers import AutoTokenizer

from router.models import DEFAULT_BASE, resolve_model
from router.types import AdapterProfile

SEED = 20261127
LEAST_LETTERS = 4
LEARN = (
    "My {b} breaks when I use {a}, please help with {c}",
    "How do I set up {a} for a new {c}?",
    "The {c} shows an error after the {b} was changed",
    "Explain the difference between {a} and {b}",
    "Write a note to the team about {b} and {c}",
    "What does {a} cost for one {c} a year?",
)
ASK = (
    "Can somebody look at our {c}? Since yesterday {a} and {b} do not work together",
    "I need a short guide to {b}, with {a} in mind",
    "Which {a} fits a {b} with {c}?",
    "Tell me what to check first when {c} fails because of {a}",
)


@dataclass(frozen=True, slots=True)
class Topic:
    """A specialist, and requests that are meant for it."""

    profile: AdapterProfile
    asked: tuple[str, ...]


def topics(count: int, seed: int = SEED) -> list[Topic]:
    """The first `count` of them; the same for every count."""
    drawn, vocabulary = random.Random(seed), words()
    return [_topic(f"topic-{i:05d}", drawn.sample(vocabulary, 3)) for i in range(count)]


def _topic(name: str, own: Sequence[str]) -> Topic:
    a, b, c = own
    profile = AdapterProfile(
        name=name,
        version="1",
        domain=name,
        description=f"{a}, {b} and {c}",
        examples=tuple(text.format(a=a, b=b, c=c) for text in LEARN),
    )
    return Topic(profile, tuple(text.format(a=a, b=b, c=c) for text in ASK))


@cache
def words() -> list[str]:
    """Whole words of letters only, in order."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(DEFAULT_BASE), local_files_only=True)
    found = {token[1:] for token in tokenizer.get_vocab() if token.startswith("Ġ")}
    return sorted(w for w in found if len(w) >= LEAST_LETTERS and w.isascii() and w.isalpha() and w.islower())
