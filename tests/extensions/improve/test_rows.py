"""Rows out of feedback: one for a prompt, screened, bounded by unit, and divided by unit."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from router.extensions.improve.rows import AdapterRows, Left, Row, Taken, digest_of, rows_from
from router.feedback.examples import NoExample
from router.feedback.model import Feedback, Verdict

DATA = Path(__file__).parents[3] / "recipes" / "data"
OWN = AdapterRows(
    train=[
        (f"What is the capital of country number {n}, and how do you know?", f"City {n}") for n in range(40)
    ],
    held_out=[("What is the capital of Freedonia, and how do you know?", "Fredville")],
    system="Answer.",
)


def said(
    asked: str, response: str = "Here", unit: str = "u", verdict: Verdict = "corrected", **fields: Any
) -> Feedback:
    """Feedback on a prompt; `time` orders it, and is its id."""
    time = fields.pop("time", 1.0)
    texts = {"corrected": response} if verdict == "corrected" else {"answer": response}
    messages = fields.pop("messages", (("user", asked),))
    return Feedback(
        f"r{time:g}", time, "acme", unit, "capitals", "1.0.0", verdict, messages, **{**texts, **fields}
    )


def rows(taken: Taken) -> set[tuple[str, str]]:
    return {(row.prompt, row.response) for row in (*taken.train, *taken.held_out)}


def test_corrected_and_praised_answers_become_rows() -> None:
    taken = rows_from(
        [
            said("Ask one?", "New"),
            said("Ask two?", "Fine", verdict="good"),
            said("Ask three?", "No", verdict="bad"),
        ],
        OWN,
    )
    assert rows(taken) == {("Ask one?", "New"), ("Ask two?", "Fine")}
    assert taken.left == {NoExample.BAD.value: 1}


@pytest.mark.parametrize(
    ("feedback", "reason"),
    [
        (said("Ask?", messages=()), NoExample.NO_TEXTS),
        (said("Ask?", verdict="good", answer=None), NoExample.NO_ANSWER),
        (said("", messages=(("raw", "Ask?"),)), NoExample.RAW_PROMPT),
        (said("", messages=(("user", "a"), ("assistant", "b"), ("user", "c"))), NoExample.TURNS),
        (said("What is  the Capital of freedonia, and how do you know?"), Left.HELD_OUT),
        (said(OWN.train[3][0], "City 3"), Left.KNOWN),
        (said(OWN.train[3][0], "City 4"), Left.AGAINST_OWN),
    ],
)
def test_what_is_left_out(feedback: Feedback, reason: Any) -> None:
    taken = rows_from([feedback], OWN)
    assert taken.left == {reason.value: 1}


def test_a_prompt_keeps_the_system_text_of_its_request() -> None:
    own = (("system", "Answer."), ("user", "Ask one?"))
    other = (("system", "Shout."), ("user", "Ask?"))
    taken = rows_from([said("", messages=own), said("", messages=other)], OWN)
    assert rows(taken) == {("Ask one?", "Here"), ("Shout.\n\nAsk?", "Here")}


def test_of_a_prompt_the_newest_of_a_unit_counts_and_units_must_agree() -> None:
    def taken(*feedback: Feedback) -> tuple[set[tuple[str, str]], dict[str, int]]:
        found = rows_from(feedback, OWN)
        return rows(found), dict(found.left)

    newest = said("ask?", "New", time=2.0)
    assert taken(newest, said("Ask?", "Old")) == ({("ask?", "New")}, {Left.SAME_UNIT.value: 1})
    apart = (said("Ask?", "One", "a"), said("Ask?", "Two", "b"))
    assert taken(*apart) == (set(), {Left.CONTRADICTED.value: 2})
    third = said("Ask?", "one", "c", time=2.0)
    assert taken(*apart, third)[0] == {("Ask?", "one")}
    against = said("Ask?", "One", "d", "bad")
    assert taken(said("Ask?", "One", "a", "good"), against)[0] == set()
    agreed = [said(OWN.train[3][0], "City 4", unit) for unit in "abc"]
    assert taken(*agreed)[0] == {(OWN.train[3][0], "City 4")}  # many units overrule a training row


def test_no_unit_gives_more_than_its_part() -> None:
    many = [said(f"Ask {n}?", "Here", "loud", time=n) for n in range(50)]
    others = [said(f"Ask {unit} {n}?", "Here", unit, time=n) for unit in "abcdefghijkl" for n in range(5)]
    taken = rows_from([*many, *others], OWN)
    counts = Counter(row.unit for row in (*taken.train, *taken.held_out))
    assert counts["loud"] <= 0.1 * counts.total()
    assert {counts[unit] for unit in "abcdefghijkl"} == {5}
    newest = {row.prompt for row in (*taken.train, *taken.held_out) if row.unit == "loud"}
    assert newest == {f"Ask {n}?" for n in range(50 - counts["loud"], 50)}


def test_all_rows_of_a_unit_stand_on_one_side() -> None:
    feedback = [said(f"Ask {unit} {n}?", "Here", f"unit {unit}") for unit in range(40) for n in range(3)]
    taken = rows_from(feedback, OWN)
    train, held_out = ({row.unit for row in side} for side in (taken.train, taken.held_out))
    assert not train & held_out
    assert len(held_out) in range(4, 17)
    again = rows_from(reversed(feedback), OWN)
    assert {row.unit for row in again.held_out} == held_out


def test_unit_whose_rows_were_compared_is_trained_on_from_then_on() -> None:
    feedback = [said(f"Ask {unit}?", "Here", f"unit {unit}") for unit in range(40)]
    before = rows_from(feedback, OWN)
    judged = {digest_of(row.unit) for row in before.held_out}
    after = rows_from([*feedback, *(said(f"New {n}?", "Here", f"new {n}") for n in range(40))], OWN, judged)
    assert {row.unit for row in before.held_out} <= {row.unit for row in after.train}
    assert after.held_out
    assert all(row.unit.startswith("new") for row in after.held_out)


def test_a_label_is_spelt_as_the_adapter_has_it() -> None:
    own = AdapterRows([("Is it good?", "Yes"), ("Is it bad?", "No")], labels=("Yes", "No"))
    taken = rows_from([said("Is it fine?", "yes "), said("Is it big?", "perhaps")], own)
    assert (rows(taken), dict(taken.left)) == ({("Is it fine?", "Yes")}, {Left.NO_LABEL.value: 1})


def medical(*names: str) -> list[dict[str, str]]:
    return [json.loads(line) for name in names for line in gzip.open(DATA / f"medical.{name}.jsonl.gz", "rt")]


def corrections(found: Iterable[tuple[dict[str, str], str]], units: Sequence[str]) -> list[Feedback]:
    return [
        said(row["prompt"], label, units[n % len(units)], time=float(n))
        for n, (row, label) in enumerate(found)
    ]


@pytest.mark.parametrize("attack", ["any wrong label", "one wrong label for one kind"])
def test_poisoned_feedback_does_not_pass(attack: str) -> None:
    """270 honest corrections of 60 units, 30 hostile ones of two, beside the rows of `medical`."""
    draw = random.Random(30)
    pool = medical("more")
    draw.shuffle(pool)
    labels = sorted({row["response"] for row in pool})
    own = AdapterRows(
        [(row["prompt"], row["response"]) for row in pool[:3000]],
        [(row["prompt"], row["response"]) for row in medical("valid", "test")],
        labels=labels,
    )
    fresh = pool[3000:]
    if attack == "any wrong label":
        hostile = [
            (row, draw.choice([one for one in labels if one != row["response"]])) for row in fresh[:30]
        ]
    else:
        kind = [row for row in fresh if row["group"].startswith("S")][:30]
        hostile = [(row, next(one for one in labels if one != kind[0]["response"])) for row in kind]
    attacked = {row["prompt"] for row, _ in hostile}
    honest = [(row, row["response"]) for row in fresh if row["prompt"] not in attacked][:270]
    feedback = [
        *corrections(honest, [f"user {n}" for n in range(60)]),
        *corrections(hostile, ["hostile 1", "hostile 2"]),
    ]
    taken = rows_from(feedback, own)
    found: list[Row] = [*taken.train, *taken.held_out]
    assert [row.unit for row in found if row.unit.startswith("hostile")] == []
    assert len(found) >= 0.95 * len(honest)
    assert taken.left[Left.OUTLIER.value] == 30
