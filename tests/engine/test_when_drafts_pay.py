"""When drafts are computed: what steps cost, and rows and steps in which they would not pay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from router.engine import speculation
from router.engine.rows import AnswerRow, Chunk
from router.engine.speculation import MOST_DRAFTS, Speculation, StepTimes
from tests.engine.rows import row


def times(flat: int, each: float = 1.0) -> StepTimes:
    """Of a machine on which so many tokens take as long as one."""
    made = StepTimes()
    for tokens in (1, 2, 4, 8, 16, 32, 64, 256):
        made.note(tokens, each * max(flat, tokens))
    return made


def speculating(flat: int = 8, rows: int = 1, answer: int = 12, room: int = 99) -> tuple[Speculation, Any]:
    """With rows that repeat their prompts, as earlier answers to them did, and their chunks."""
    made = Speculation(str, lambda _, wanted: min(room, wanted), 512)
    made._times = times(flat)
    asked: list[AnswerRow] = []
    for _ in range(rows):
        one = row(30, new=40)
        one.tokens += range(answer)
        one.computed = len(one.tokens) - 1
        asked.append(one)
        drafter = made._drafter(one)
        assert drafter is not None
        for _ in range(40):
            drafter.propose(one.tokens, one.prompt_length, 4, 0.0)
            drafter.verified(range(answer, answer + 4))
    return made, [Chunk(one, 1, samples=True) for one in asked]


def test_times_between_those_measured_lie_on_lines() -> None:
    made = times(flat=8)
    assert made.curve(1, 7) == pytest.approx([8.0] * 8)
    assert made.curve(8, 16)[::8] == pytest.approx([8.0, 16.0, 24.0])
    assert made.curve(300, 2) == pytest.approx([300.0, 301.0, 302.0])
    made.note(12, 20.0)
    assert made.curve(8, 8) == pytest.approx([8, 10, 12, 14, 16, 16, 16, 16, 16]), "more never takes less"


def test_where_nothing_was_measured_a_roofline_says_what_steps_take() -> None:
    made = StepTimes()
    made.note(200, 200.0)
    made.note(1, 8.0)
    assert made.curve(1, 11) == pytest.approx([8.0] * 8 + [9.0, 10.0, 11.0, 12.0])


def test_before_anything_is_measured_nothing_is_drafted() -> None:
    made, chunks = speculating()
    made._times = StepTimes()
    assert made.add(chunks) is chunks
    made.took(chunks, 8.0)
    assert made.add(chunks) is chunks, "what many tokens cost is not known yet"


def test_a_step_that_was_held_up_changes_little() -> None:
    made = times(flat=8)
    made.note(1, 1e6)
    assert made.of(1) <= 1.2 * 8


def test_a_time_of_long_ago_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "_FRESH", 50)
    made = times(flat=8)
    made.note(12, 99.0)
    for _ in range(51):
        made.note(1, 8.0)
    assert made.of(12) == pytest.approx(12.0), "by the roofline"


def test_one_row_gets_what_costs_nothing() -> None:
    made, chunks = speculating(flat=8)
    (drafted,) = made.add(chunks)
    assert drafted.drafts in ([12, 13, 14, 15, 16, 17, 18], [12, 13, 14, 15, 16, 17, 18, 19])
    assert (drafted.count, drafted.samples) == (1 + len(drafted.drafts), True)


def test_where_each_token_costs_as_much_as_a_step_none_is_drafted() -> None:
    made, chunks = speculating(flat=1)
    assert made.add(chunks) is chunks


def test_rows_share_what_pays() -> None:
    made, chunks = speculating(flat=12, rows=4)
    assert sum(len(chunk.drafts) for chunk in made.add(chunks)) >= 8
    made, chunks = speculating(flat=16, rows=16)
    assert made.add(chunks) is chunks, "one token more costs what an answer's token costs"


def test_no_more_than_the_answer_may_have_and_blocks_hold() -> None:
    made, chunks = speculating(room=3)
    assert len(made.add(chunks)[0].drafts) == 3
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


def test_a_row_whose_drafts_do_not_pay_is_asked_less_and_less() -> None:
    made, chunks = speculating(flat=1, rows=1)
    made._times = times(flat=3)
    one = made._drafter(chunks[0].row)
    assert one is not None
    for source in range(len(one._memory.chances)):
        one._memory.chances[source] = 0.05
    asked = 0
    propose = one.propose

    def counted(*values: Any) -> Any:
        nonlocal asked
        asked += 1
        return propose(*values)

    one.propose = counted  # type: ignore[method-assign]
    many = chunks * 3
    for _ in range(200):
        assert made.add(many) is many
    assert asked < len(many) * 200 / speculation._MOST_REST + 10


def test_drafts_come_from_answers_of_the_adapter_to_the_tenant_or_without_one() -> None:
    made, _ = speculating()

    def after(tenant: str, adapter: str | None) -> list[int]:
        one = row(20, adapter, tenant=tenant, first=100)
        one.tokens.append(50)
        drafter = made._drafter(one)
        assert drafter is not None
        found = [draft.token for draft in drafter.propose(one.tokens, 20, MOST_DRAFTS, 0.01)]
        one.tokens += [51, 52]
        made.ended(one)
        return found

    assert after("clinic", "a") == []
    assert after("clinic", "a")[:2] == [51, 52]
    assert after("bank", "a") == after("clinic", "b") == after("clinic", None) == []
    assert after("", "a") == []  # as the server runs probes
    assert after("school", "a")[:2] == [51, 52]


def test_nothing_is_kept_of_rows_that_ended() -> None:
    made, chunks = speculating(rows=3)
    for chunk in chunks:
        made.ended(chunk.row)
    assert not made._drafters
