"""What is drafted, from where, and how much is remembered."""

from __future__ import annotations

import random
from typing import Any

from router.engine import drafts
from router.engine.drafts import AnswerMemory, CopyIndex, Drafter, Folded

WORDS = ["the", " the", "The", " old", " harbour", " bridge", " was", " closed", "\n", " in", " 1987", "."]


def folded() -> Folded:
    return Folded(lambda token: WORDS[token] if token < len(WORDS) else str(token))


def drafter(memory: AnswerMemory | None = None) -> Drafter:
    return Drafter(folded(), memory or AnswerMemory())


def proposed(one: Drafter, tokens: list[int], prompt: int, floor: float = 0.01) -> list[int]:
    return [draft.token for draft in one.propose(tokens, prompt, 8, floor)]


def test_tokens_that_differ_in_case_or_white_space_are_one() -> None:
    numbers = folded()
    assert numbers[0] == numbers[1] == numbers[2]
    assert len({numbers[0], numbers[3], numbers[8]}) == 3


def test_the_longest_match_is_found_and_of_equals_the_first() -> None:
    index = CopyIndex(folded())
    index.extend([20, 21, 22, 30, 21, 22, 31, 22, 32, 20, 21, 22])
    assert index.find(index.keys) == (3, 3)
    assert index.find(index.keys[-2:]) == (3, 2)
    index.extend([40])
    assert index.find(index.keys) == (0, 0)


def test_matches_are_those_of_a_search_from_the_end() -> None:
    rng = random.Random(5)
    for _ in range(50):
        tokens = [rng.randrange(20, 24) for _ in range(40)]
        index = CopyIndex(folded())
        index.extend(tokens)
        keys = index.keys
        ends = [at for at in range(len(keys) - 1) if keys[at] == keys[-1]][-drafts._TRIED :]

        def length(at: int, keys: list[int] = keys) -> int:
            return next((n for n in range(8) if at < n or keys[at - n] != keys[-1 - n]), 8)

        best = max(map(length, ends), default=0)
        place = next((at + 1 for at in ends if length(at) == best), 0)
        assert index.find(keys[-8:]) == (place, best)


def test_a_passage_is_copied_on_from_a_word_that_begins_the_answer_without_its_space() -> None:
    passage = [1, 3, 4, 5, 6, 7, 9, 10, 11]
    assert proposed(drafter(), [*passage, 8, 2], len(passage) + 1)[:3] == [3, 4, 5]


def test_the_first_token_comes_from_earlier_answers_only() -> None:
    memory = AnswerMemory()
    assert proposed(drafter(memory), [1, 3, 1], 3) == []
    memory.learn([50, 51, 52])
    assert proposed(drafter(memory), [1, 3, 1], 3) == [50, 51, 52]


def test_what_answers_say_most_is_drafted() -> None:
    memory = AnswerMemory()
    for answer in ([50, 51], [50, 52], [50, 52], [50, 52]):
        memory.learn(answer)
    assert proposed(drafter(memory), [1, 3, 50], 2)[:1] == [52]


def test_chances_follow_what_was_right() -> None:
    memory = AnswerMemory()
    memory.learn([50, 51])
    one = drafter(memory)
    (before,) = [draft.chance for draft in one.propose([1, 50], 1, 1, 0.01) if draft.token == 51]
    for _ in range(20):
        one.propose([1, 50], 1, 1, 0.0)
        one.verified([99])
    other = drafter(memory).propose([1, 50], 1, 1, 0.0)
    assert other[0][1] < before / 2
    assert one.propose([1, 50], 1, 1, 0.0)[0].chance < other[0].chance, "a row without luck drafts less"
    assert one.propose([1, 50], 1, 1, before) == []


def test_what_is_not_verified_counts_nothing() -> None:
    memory = AnswerMemory()
    memory.learn([50, 51, 52, 53])
    before = sum(memory._tried), sum(memory._right)
    one = drafter(memory)
    one.propose([1], 1, 8, 0.01)
    one.verified([50, 99])
    after = sum(memory._tried), sum(memory._right)
    assert after == (before[0] + 2, before[1] + 1), "the second was wrong, of those behind nothing is known"


def test_memory_is_bounded() -> None:
    memory, rng = AnswerMemory(), random.Random(1)
    for _ in range(60):
        memory.learn([rng.randrange(1 << 18) for _ in range(1000)])
    assert len(memory._next) <= drafts._CONTEXTS
    memory.learn(last := [70, 71, 72, 73])
    assert proposed(drafter(memory), [1], 1) == last


class Choices:
    """A grammar ahead of an answer, that forces 61 and 62 behind 51 and ends with 52."""

    complete = False

    def ahead(self) -> Choices:
        return self

    def take(self, token: int) -> list[int]:
        self.complete = token == 52
        return [61, 62] if token == 51 else []


def test_a_draft_saves_a_step_where_the_choice_behind_it_needs_one() -> None:
    memory = AnswerMemory()
    for _ in range(4):
        memory.learn([50, 51, 61, 62, 70, 52])
    grammar: Any = Choices()
    found = drafter(memory).propose([1], 1, 8, 0.01, grammar)
    assert [draft.token for draft in found] == [50, 51, 61, 62, 70], "52 makes the answer whole"
    assert [draft.saves > 0 for draft in found] == [True, False, False, True, True]
