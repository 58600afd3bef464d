"""Answers that are a span of a text: where spans begin and end, and what a prompt's passage is."""

from __future__ import annotations

import gzip
import json
import random
import re
import time
from itertools import accumulate
from pathlib import Path

import pytest

from router.engine.constrained.quote import MAX_UNITS, quote_grammar
from router.passages import passage_of, units
from router.types import Constraint
from tests.engine.constrained.driving import base, compiled, text_of, walked
from tests.engine.constrained.test_source import refusal

DATA = Path(__file__).parents[3] / "recipes" / "data"
TEXT = "The hall, built in 1,450 days, seats 4.5 thousand:\nnaïve 你好 हिन्दी café-goers' 'home'."


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("In 1,450 seats.", ["In", " ", "1,450", " ", "seats", "."]),
        ("at 10:30, 13–7", ["at", " ", "10:30", ",", " ", "13", "–", "7"]),
        ("你好 ok", ["你", "好", " ", "ok"]),
        ("हिन्दी café", ["हिन्दी", " ", "café"]),
        ("x" * 65, ["x" * 64, "x"]),
    ],
)
def test_where_a_span_may_begin_and_end(text: str, cut: list[str]) -> None:
    assert units(text) == cut


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_every_whole_answer_is_a_span(kind: str) -> None:
    grammar, cuts = compiled(Constraint("quote", TEXT), kind), units(TEXT)
    spans = {"".join(cuts[i:j]) for i in range(len(cuts)) for j in range(i + 1, len(cuts) + 1)}
    whole = 0
    for seed in range(60):
        tokens, ended = walked(grammar, seed, kind=kind)
        text = text_of(tokens, kind)
        if ended:
            whole += 1
            assert text in spans
            assert text == text.strip()
    assert whole > 30


@pytest.mark.long
@pytest.mark.timeout(900)
def test_5000_whole_answers_are_spans_of_their_passages() -> None:
    """Of random passages: words, numbers, signs, white space and letters of several scripts."""
    chance, whole, seed = random.Random(5), 0, 0
    pieces = [
        "a",
        "of",
        "Rome",
        "café",
        "1,450",
        "10:30",
        "13–7",
        "你好",
        "हिन्दी",
        "x" * 70,
        "'",
        "(",
        "\n",
        "  ",
    ]
    while whole < 5000:
        text = " ".join(chance.choice(pieces) for _ in range(chance.randint(2, 60))) + "!"
        grammar, stripped = compiled(Constraint("quote", text)), text.strip()
        borders = {0, *accumulate(map(len, units(stripped)))}
        for _ in range(10):
            tokens, ended = walked(grammar, seed)
            seed += 1
            if ended:
                whole += 1
                answer = text_of(tokens)
                places = [found.start() for found in re.finditer(f"(?={re.escape(answer)})", stripped)]
                assert any(at in borders and at + len(answer) in borders for at in places), (answer, text)
                assert answer == answer.strip()


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ("1,450 days", True),
        ("450 days", False),
        ("hall,", True),
        ("hal", False),
        (" hall", False),
        ("", False),
    ],
)
def test_an_answer_is_of_whole_words(answer: str, fits: bool) -> None:
    state = compiled(Constraint("quote", TEXT)).start()
    tokens = base().tokens.tokenize_str(answer)
    assert (
        state._matcher.try_consume_tokens(tokens) == len(tokens) and state._matcher.is_accepting()
    ) is fits


@pytest.mark.slow
@pytest.mark.parametrize("alphabet", ["a", "ab ", ".,!?", "0123456789,", "\n\t ", "你x"])
def test_a_hostile_text_costs_little(alphabet: str) -> None:
    chance = random.Random(1)
    longest = min(MAX_UNITS, 65_536 // max(len(letter.encode()) for letter in alphabet))
    text = "x" + "".join(chance.choice(alphabet) for _ in range(longest - 1))
    began = time.process_time()
    for seed in range(3):
        walked(compiled(Constraint("quote", text)), seed, most=40)
    assert time.process_time() - began < 6.0


def test_a_text_has_a_bound() -> None:
    field, said = refusal("quote", "." * (MAX_UNITS + 1))
    assert (field, said) == ("sampling.quote", f"has more than {MAX_UNITS} words and signs: {MAX_UNITS + 1}")
    assert refusal("quote", "x" * 65_537)[1] == "must have at most 65536 bytes"
    assert refusal("quote", " \n")[1] == "must not be empty"


@pytest.mark.parametrize(
    ("prompt", "passage"),
    [
        ("Answer.\n\nPassage: It rained.\nAll day.\n\nQuestion: When?", "It rained.\nAll day."),
        ("context:\nIt rained.\nQ: When?\nA:", "It rained."),
        ("Question: When?\nText: It rained.", "It rained."),
        ("When did it rain?", ""),
        ("The Passage: is inside a line", ""),
        ("Passage:   \nQuestion: When?", ""),
    ],
)
def test_the_passage_of_a_prompt(prompt: str, passage: str) -> None:
    assert passage_of(prompt) == passage


@pytest.mark.parametrize(("split", "rows", "inside"), [("valid", 138, 1), ("train", 3000, 9)])
def test_gold_answers_are_spans_but_for_those_inside_a_word(split: str, rows: int, inside: int) -> None:
    lines = gzip.decompress((DATA / f"qa.{split}.jsonl.gz").read_bytes()).splitlines()
    refused = 0
    for row in map(json.loads, lines):
        passage, answer = passage_of(row["prompt"]), row["response"]
        borders = {0, *accumulate(map(len, units(passage)))}
        places = [found.start() for found in re.finditer(f"(?={re.escape(answer)})", passage)]
        assert places
        refused += not any({at, at + len(answer)} <= borders for at in places)
    assert (len(lines), refused) == (rows, inside)


def test_the_grammar_is_text_for_any_engine() -> None:
    assert quote_grammar('a "b"').startswith("start: SPAN\n")
