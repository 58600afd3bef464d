from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.training.batch import IGNORED, Example, collate

tokens = st.lists(st.integers(2, 5), min_size=1, max_size=6).map(tuple)
examples = st.lists(st.builds(Example, tokens, tokens), min_size=1, max_size=5)


@given(examples)
def test_every_row_can_be_read_back(rows: list[Example]) -> None:
    batch = collate(rows)
    shared = batch.prefix.shape[1]
    for row, example in enumerate(rows):
        whole = example.prompt + example.answer
        seen = batch.prefix[0].tolist() + batch.tokens[row].tolist()
        assert tuple(seen[: len(whole) - 1]) == whole[:-1]
        wanted = [
            (place + shared + 1, token)
            for place, token in enumerate(batch.targets[row].tolist())
            if token != IGNORED
        ]
        assert wanted == list(enumerate(whole))[len(example.prompt) :]


@given(examples)
def test_a_prompt_token_stays_outside_the_prefix(rows: list[Example]) -> None:
    assert collate(rows).prefix.shape[1] < min(len(example.prompt) for example in rows)


def test_prefix_is_as_long_as_it_can_be() -> None:
    batch = collate([Example((1, 2, 3, 4), (9,)), Example((1, 2, 3, 5, 6), (9,))])
    assert batch.prefix.tolist() == [[1, 2, 3]]
