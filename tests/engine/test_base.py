"""Where an activated LoRA begins to act: the last occurrence of its invocation tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora.variants import calculate_alora_offsets

from router.engine.base import Job, check_job, last_occurrence, tokens_before
from router.errors import InvalidRequest, NotActivated
from router.types import SamplingParams

few = st.integers(0, 2)  # so that much repeats


@given(st.lists(few, max_size=40), st.lists(few, min_size=1, max_size=6))
def test_it_is_where_peft_finds_it(tokens: list[int], wanted: list[int]) -> None:
    config = {"a": LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=wanted)}
    (offset,) = calculate_alora_offsets(config, "a", torch.tensor([tokens], dtype=torch.long))
    assert last_occurrence(tokens, tuple(wanted)) == (-1 if offset is None else len(tokens) - offset)


def test_without_invocation_tokens_it_acts_from_the_beginning() -> None:
    assert tokens_before([1, 2, 3], ()) == 0
    assert tokens_before([1, 2, 3], (2, 3)) == 1


@pytest.mark.parametrize("tokens", [[], [2], [1, 3], [2, 1]])
def test_a_prompt_on_which_it_would_never_act_is_refused(tokens: list[int]) -> None:
    with pytest.raises(NotActivated, match="from the tokens 1, 2 on") as refused:
        tokens_before(tokens, (1, 2))
    (violation,) = refused.value.violations
    assert violation.field == "input"
    with pytest.raises(NotActivated) as refused:
        tokens_before(tokens, tuple(range(4, 260)))
    assert len(refused.value.message) < 300


class Counted(int):
    """Counts its comparisons."""

    count = 0

    def __eq__(self, other: object) -> bool:
        Counted.count += 1
        return int(self) == other

    def __ne__(self, other: object) -> bool:
        Counted.count += 1
        return int(self) != other

    __hash__ = int.__hash__


def test_a_prompt_that_nearly_has_them_everywhere_takes_no_longer() -> None:
    assert last_occurrence([Counted(1)] * 10_000, (2, *[1] * 255)) == -1
    assert 10_000 <= Counted.count <= 40_000  # 2.5 million one by one


def test_a_job_without_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="has no tokens"):
        check_job(Job("r", [], SamplingParams()), 100)
