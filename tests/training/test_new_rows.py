"""Columns, cleaning, splitting and the numbers that follow from the data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ConfigError
from router.training.batch import Example
from router.training.new.rows import Columns, Pair, Record, choose_columns, clean, require_enough, split
from router.training.new.scaffold import in_words
from router.training.new.writing import default_system, guess_metric, labels_of, make_plan


@pytest.mark.parametrize(
    ("names", "said", "chosen"),
    [
        (("id", "Question", "ANSWER"), {}, ("Question", "ANSWER")),
        (("mail", "team"), {}, ("mail", "team")),
        (("mail", "team", "customer"), {"group": "customer"}, ("mail", "team")),
        (("mail", "team"), {"response": "mail"}, ("team", "mail")),
        (("id", "mail", "team"), {"prompt": "mail", "response": "team"}, ("mail", "team")),
    ],
)
def test_columns(names, said, chosen) -> None:
    columns = choose_columns(names, **said)
    assert (columns.prompt, columns.response) == chosen


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({}, "say --prompt-column NAME and --response-column NAME; the columns are 'id', 'mail', 'team'"),
        ({"prompt": "mail"}, "say --prompt-column"),
        ({"prompt": "mial"}, "--prompt-column 'mial' is not in the data: the columns are 'id'"),
        ({"prompt": "mail", "response": "mail"}, "must be different columns"),
    ],
)
def test_columns_that_cannot_be_chosen_are_listed(said, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_columns(("id", "mail", "team"), **said)
    assert complaint in caught.value.message


def record(prompt: str, response: str, group: str = "") -> Record:
    return Record("", {"p": prompt, "r": response, "g": group})


def test_cleaning_counts_what_it_leaves_out() -> None:
    rows = [
        record(" How? ", "so", "A"),
        record("", "so"),
        record("Why?", " "),
        record("HOW?", "so"),
        record("how?", "otherwise"),
        record("When?", "now", " a"),
    ]
    cleaned = clean(rows, Columns("p", "r", "g"))
    assert cleaned.pairs == (Pair("How?", "so", "a"), Pair("When?", "now", "a"))
    assert cleaned.left_out() == [
        "2 without prompt or answer",
        "1 repeated",
        "1 repeated with another answer",
    ]


def test_too_few_rows_say_how_many_are_needed() -> None:
    require_enough(50, 60, "x.csv")
    with pytest.raises(ConfigError, match=r"x\.csv has 49 usable rows of 60; 50 are needed at least"):
        require_enough(49, 60, "x.csv")


def pairs(count: int, groups: int = 0) -> list[Pair]:
    return [Pair(f"q{n}", f"a{n % 4}", f"g{n % groups}" if groups else f"q{n}") for n in range(count)]


@given(count=st.integers(50, 5000), groups=st.integers(30, 300))
def test_splits_are_whole_and_groups_stay_together(count: int, groups: int) -> None:
    rows = pairs(count, groups)
    made = split(rows)
    assert sum(map(len, made.values())) == count
    sides = [{row.group for row in side} for side in made.values()]
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_shares() -> None:
    made = split(pairs(1000))
    assert all(110 <= len(made[name]) <= 190 for name in ("valid", "test"))
    large = split(pairs(20_000))
    assert all(240 <= len(large[name]) <= 360 for name in ("valid", "test"))


@pytest.mark.parametrize("more", [60, 3000, 20_000])
def test_a_training_row_never_becomes_a_test_row_when_data_grow(more: int) -> None:
    before = {pair.prompt for pair in split(pairs(50))["train"]}
    after = split(pairs(more))
    assert not before & {pair.prompt for name in ("valid", "test") for pair in after[name]}


def test_too_few_groups_are_told() -> None:
    with pytest.raises(ConfigError, match=r"the 1 groups of rows .* choose another --group-column"):
        split(pairs(100, groups=1))


@pytest.mark.parametrize(
    ("answers", "labels", "metric"),
    [
        (["b", "a", "a", "a", "b", "a", "a", "b"] * 5, ("a", "b"), "exact_match"),
        ([f"name {n}" for n in range(40)], (), "token_f1"),
        ([f"{n} " + "word " * 30 for n in range(40)], (), "rouge_l"),
        (["a much too long label of nine words indeed"] * 40, (), "token_f1"),
    ],
)
def test_the_metric_follows_the_answers(answers: list[str], labels: tuple[str, ...], metric: str) -> None:
    train = [Pair(str(n), answer.strip(), str(n)) for n, answer in enumerate(answers)]
    assert labels_of(train) == labels
    assert guess_metric(train, labels) == metric


def test_system_text() -> None:
    assert default_system(("b", "a"), Columns("x", "y")) == "Answer with one of these and nothing else: a, b."
    assert default_system((), Columns("job_title", "Team")) == "Given the job title, answer with the team."
    assert default_system((), Columns("question", "answer")) == ""


@pytest.mark.parametrize(
    ("count", "batch", "steps"), [(60, 8, 30), (300, 16, 57), (3000, 16, 188), (20_000, 16, 400)]
)
def test_steps_grow_with_the_data(count: int, batch: int, steps: int) -> None:
    train = pairs(count)
    examples = [Example((1,) * 20, (2,) * 3), Example((1,) * 5, (2,) * 9)]
    plan = make_plan({"train": train, "valid": [], "test": []}, examples, labels_of(train), 0, "")
    assert (plan.batch, plan.steps) == (batch, steps)
    assert (plan.max_tokens, plan.answer_tokens) == (23, 13)
    assert plan.examples[:4] == ("q0", "q1", "q2", "q3")
    assert len(plan.examples) == min(count, 128)


def test_long_prompts_are_no_routing_examples() -> None:
    train = [Pair("long " * 200, "a", ""), *pairs(20)]
    plan = make_plan({"train": train}, [Example((1,), (2,))], (), 7, "chrf")
    assert plan.examples[0] == "q0"
    assert (plan.steps, plan.metric) == (7, "chrf")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "10 seconds"), (44, "40 seconds"), (170, "3 minutes"), (9000, "2.5 hours")],
)
def test_an_estimate_is_rounded(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
