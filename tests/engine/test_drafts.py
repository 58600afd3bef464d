"""What is drafted, and for which rows and steps."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from router.engine import drafts
from router.engine.drafts import FEW_TOKENS, CopyIndex, Drafter, Folded, Speculation
from router.engine.rows import AnswerRow, Chunk
from tests.engine.rows import row

WORDS = ["the", " the", "The", " old", " harbour", " bridge", " was", " closed", "\n", " in", " 1987", "."]


def folded() -> Folded:
    return Folded(lambda token: WORDS[token] if token < len(WORDS) else str(token))


def index(tokens: list[int]) -> CopyIndex:
    made = CopyIndex(folded())
    made.extend(tokens)
    return made


def speculating(rows: int = 1, room: int = 99) -> tuple[Speculation, list[Chunk]]:
    """With rows whose answers repeat their prompts, and their chunks."""
    made = Speculation(str, lambda _, wanted: min(room, wanted))
    asked: list[AnswerRow] = []
    for _ in range(rows):
        one = row(30, new=40)
        one.tokens += range(12)
        one.computed = len(one.tokens) - 1
        asked.append(one)
    return made, [Chunk(one, 1, samples=True) for one in asked]


def test_tokens_that_differ_in_case_or_white_space_are_one() -> None:
    numbers = folded()
    assert numbers[0] == numbers[1] == numbers[2]
    assert len({numbers[0], numbers[3], numbers[8]}) == 3


def test_what_followed_the_longest_match_is_copied_and_of_equals_the_first() -> None:
    assert index([20, 21, 22, 30, 21, 22, 31, 22, 32, 20, 21, 22]).following(2) == [30, 21]
    assert index([30, 21, 22, 31, 22, 32, 21, 22]).following(9) == [31, 22, 32, 21, 22]
    assert index([20, 21, 22, 40]).following(9) == []


def test_matches_are_those_of_a_search_from_the_end() -> None:
    rng = random.Random(5)
    for _ in range(50):
        tokens = [rng.randrange(20, 24) for _ in range(40)]
        ends = [at for at in range(len(tokens) - 1) if tokens[at] == tokens[-1]][-drafts._TRIED :]

        def length(at: int, keys: list[int] = tokens) -> int:
            return next((n for n in range(8) if at < n or keys[at - n] != keys[-1 - n]), 8)

        best = max(map(length, ends), default=0)
        place = next((at + 1 for at in ends if length(at) == best), len(tokens))
        assert index(tokens).following(8) == tokens[place : place + 8]


def test_a_passage_is_copied_on_from_a_word_that_begins_the_answer_without_its_space() -> None:
    passage = [1, 3, 4, 5, 6, 7, 9, 10, 11]
    assert Drafter(folded()).propose([*passage, 8, 2], 3) == [3, 4, 5]


def test_a_row_gets_one_draft_more_than_were_right() -> None:
    one, tokens = Drafter(folded()), [*range(50, 70), 50]
    found = []
    for good in (3, 9, 1, 9, 9):
        proposed = one.propose(tokens, 8)
        found.append(len(proposed))
        one.verified(len(proposed), min(good, len(proposed)))
    assert found == [8, 4, 8, 2, 8]


def test_a_row_whose_drafts_are_wrong_is_asked_less_and_less() -> None:
    one, tokens, proposed = Drafter(folded()), [*range(50, 70), 50], 0
    for _ in range(200):
        if found := one.propose(tokens, 8):
            proposed += 1
            one.verified(len(found), 0)
    assert proposed < 200 / drafts._MOST_REST + 10


def test_a_step_of_one_row_gets_as_many_drafts_as_cost_little() -> None:
    made, chunks = speculating()
    (drafted,) = made.add(chunks)
    assert drafted.drafts == [12, 13, 14, 15, 16, 17, 18]
    assert (drafted.count, drafted.samples) == (FEW_TOKENS, True)


def test_rows_share_them_and_a_step_of_many_has_none() -> None:
    made, chunks = speculating(rows=3)
    assert [len(chunk.drafts) for chunk in made.add(chunks)] == [2, 2, 1]
    made, chunks = speculating(rows=FEW_TOKENS)
    assert made.add(chunks) is chunks


def test_no_more_than_the_answer_may_have_and_blocks_hold() -> None:
    made, chunks = speculating(room=1)
    assert len(made.add(chunks)[0].drafts) == 1
    made, chunks = speculating()
    chunks[0].row.total = len(chunks[0].row.tokens) + 2
    assert len(made.add(chunks)[0].drafts) == 1
    chunks[0].row.total -= 1
    assert made.add(chunks) is chunks


def test_a_chunk_that_does_not_end_its_prompt_has_none() -> None:
    made, chunks = speculating()
    part = [replace(chunks[0], samples=False)]
    assert made.add(part) is part


def test_one_whose_masks_are_much_work_has_none() -> None:
    """Each draft makes a mask of its own, all of them in one step."""
    made, chunks = speculating()
    chunks[0].row.skipped = 1
    assert made.add(chunks) is chunks


def test_a_row_that_is_stopped_has_none_and_one_that_ended_is_forgotten() -> None:
    made, chunks = speculating(rows=2)
    stopped: Any = chunks[0].row
    made.stop(stopped)
    assert [len(chunk.drafts) for chunk in made.add(chunks)] == [0, 3]
    for chunk in chunks:
        made.ended(chunk.row)
    assert not made._drafters
