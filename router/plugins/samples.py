"""Adapters and requests to try classifiers on."""

from __future__ import annotations

from collections.abc import Sequence

from router.types import AdapterProfile, Request, Turn

ADAPTERS = (
    AdapterProfile(
        "medical",
        "1.0.0",
        domain="medical",
        task="question-answering",
        examples=(
            "What are the symptoms of anaemia?",
            "Which drug lowers blood pressure?",
            "Is asthma chronic?",
        ),
        negative_examples=("Who plays the doctor in that film?",),
        keywords=("symptoms", "drug", "blood pressure"),
    ),
    AdapterProfile(
        "legal",
        "1.0.0",
        domain="legal",
        examples=("May my landlord enter my flat?", "What is a tort?", "Is this clause enforceable?"),
        keywords=("landlord", "clause", "contract"),
    ),
    AdapterProfile(
        "translation",
        "1.0.0",
        task="translation",
        examples=(
            "Translate to French: good morning",
            "How do I say 'cat' in French?",
            "en français: a window",
        ),
        keywords=("translate", "in french"),
    ),
)

TEXTS = (
    "What are the symptoms of the flu?",
    "Translate to French: the clause in the contract is void",
    "hello",
    "SHOUTING ABOUT MY LANDLORD",
)

ODD_TEXTS = (
    "",
    " \n\t ",
    "?!",
    "a",
    "\x00\x1b[31m\u202e\ufeff",
    "é" * 50,
    "漢字とひらがな 한국어 العربية",
    "👩‍👩‍👧‍👦" * 20,
    "\ud800 lone surrogate",
    "word " * 20_000,
    "x" * 100_000,
)


def requests(texts: Sequence[str]) -> tuple[Request, ...]:
    """One request of one user turn for each text."""
    return tuple(Request(f"sample-{i}", turns=(Turn("user", text),)) for i, text in enumerate(texts))
