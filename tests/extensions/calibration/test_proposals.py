"""What corrections come to: examples, tests of them, and what is left out for which reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.corrections.store import Correction
from router.extensions.calibration.evaluation import Decided
from router.extensions.calibration.learning import learn, score_of, taught
from router.extensions.calibration.proposals import (
    ALIKE,
    CONFLICT,
    FULL,
    HELD_OUT,
    KNOWN,
    LIKE_ANOTHER,
    NO_TEXT,
    TWICE,
    UNKNOWN,
    Addition,
    LabelledRequest,
    NearDuplicates,
    normal,
    propose,
)
from router.extensions.calibration.rows import DataRow
from router.types import AdapterProfile

PROFILES = (
    AdapterProfile("legal", "1", examples=("Who owns the fence?",), negative_examples=("No lawyer here",)),
    AdapterProfile("medical", "1", examples=("Why do ears pop?",)),
)


def correction(text: str, label: str, chosen: str | None = None) -> Correction:
    return Correction(0.0, text, label, chosen, text=text)


def test_examples_for_the_right_one_and_negative_ones_for_the_wrong_one() -> None:
    said = [
        correction("May my neighbour fell my oak?", "legal", "medical"),
        correction("Tell me a joke about surgeons", "", "medical"),
        correction("How long does a cold last?", "medical", ""),
        correction("Is a handshake a contract?", "legal", "legal"),
        correction("What is estoppel?", "legal", "gone"),
    ]
    found = propose(said, PROFILES, (), 0.0, 1000)
    assert found.additions == {
        "legal": Addition(
            ("May my neighbour fell my oak?", "Is a handshake a contract?", "What is estoppel?")
        ),
        "medical": Addition(
            ("How long does a cold last?",),
            ("May my neighbour fell my oak?", "Tell me a joke about surgeons"),
        ),
    }
    assert found.requests[0] == LabelledRequest("May my neighbour fell my oak?", "legal", "medical")
    assert (found.held_back, found.left_out) == ((), {})


@pytest.mark.parametrize(
    ("said", "reason", "count"),
    [
        ([correction("", "legal")], NO_TEXT, 1),
        ([correction(" \n", "legal")], NO_TEXT, 1),
        ([correction("half \ud800", "legal")], NO_TEXT, 1),
        ([correction("Who made the sky?", "astrology")], UNKNOWN, 1),
        ([correction("Who  owns the fence?", "legal", "")], KNOWN, 1),
        ([correction("a b c", "legal"), correction("a  b c", "legal")], TWICE, 1),
        ([correction("a b c", "legal"), correction("a  b c", "medical")], CONFLICT, 2),
        ([correction("a b c", x) for x in ("legal", "medical", "legal")], CONFLICT, 2),
        ([correction("Could a horse vote in any election", "legal")], HELD_OUT, 1),
        (
            [correction("one two three four", "legal"), correction("One, two, three, four!", "legal")],
            LIKE_ANOTHER,
            1,
        ),
    ],
)
def test_what_is_left_out(said: Sequence[Correction], reason: str, count: int) -> None:
    good = correction("May my neighbour fell my oak?", "legal", "medical")
    found = propose([*said, good], PROFILES, ["Could a horse vote in an election?"], 0.0, 1000)
    assert found.left_out[reason] == count
    assert good.text in found.additions["legal"].examples
    if reason not in (TWICE, LIKE_ANOTHER):
        assert len(found.requests) == 1


def test_as_many_as_a_manifest_may_have() -> None:
    said = [correction(f"{n} {'x' * (n + 1)} {'y' * (n + 1)}", "legal", "medical") for n in range(6)]
    found = propose(said, PROFILES, (), 0.0, 3)
    assert len(found.additions["legal"].examples) == 2
    assert len(found.additions["medical"].negative_examples) == 3
    assert found.left_out == {FULL: 4 + 3}


@given(st.lists(st.text("abc d\n", max_size=12), max_size=40), st.floats(0, 1, exclude_max=True))
def test_nothing_is_learned_from_what_it_is_tested_on(texts: list[str], share: float) -> None:
    said = [correction(text, "legal" if len(text) % 2 else "medical", "") for text in texts]
    held_out = ["a b c d", "dd cc"]
    found = propose(said, PROFILES, held_out, share, 1000)
    tests = NearDuplicates([*held_out, *(one.text for one in found.held_back)])
    assert all(tests.like(one.text) is None for one in found.requests)
    assert len({normal(one.text) for one in (*found.requests, *found.held_back)}) == len(
        found.requests
    ) + len(found.held_back)
    examples = [text for name in found.additions for text in found.additions[name].examples]
    assert sorted(examples) == sorted(one.text for one in found.requests)
    assert len(found.requests) + len(found.held_back) + sum(found.left_out.values()) == len(said)


def test_the_share_that_is_held_back() -> None:
    said = [correction(f"{n:b} {n} {'x' * n}", "legal") for n in range(400)]
    counts = [len(propose(said, PROFILES, (), share, 1000).held_back) for share in (0.0, 0.25, 0.5)]
    assert counts[0] == 0
    assert 75 < counts[1] < 125
    assert 170 < counts[2] < 230


WORDS = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=6)


@given(st.lists(WORDS, max_size=8), WORDS)
def test_near_is_the_share_of_common_words(known: list[list[str]], asked: list[str]) -> None:
    texts = [" ".join(words) for words in known]
    found = NearDuplicates(texts).like(" ".join(asked))
    alike = [
        text
        for text, words in zip(texts, known, strict=True)
        if len({*words} & {*asked}) >= ALIKE * len({*words} | {*asked})
    ]
    assert found == (alike[0] if alike else None)


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("Is it a tort?", "is it a TORT", True),
        ("!!!", "!!!", True),
        ("!!!", "???", False),
        ("契約は有効ですか", "契約は有効です", True),
        ("契約は有効ですか", "耳が痛いです", False),
        ("", "", True),
    ],
)
def test_near_in_any_script(one: str, other: str, near: bool) -> None:
    assert (NearDuplicates([one]).like(other) is not None) is near


# -- what is kept of them


ROWS = [DataRow("t1", "legal"), DataRow("t2", "medical"), DataRow("t3", "")]


def decided(*routed: str) -> list[Decided]:
    return [Decided(name, name or "legal", 0.9, 0.1) for name in routed]


def test_scores_count_the_base_too() -> None:
    score = score_of(ROWS, decided("legal", "", "medical"))
    assert (score.requests, score.right, score.wrong, score.routed) == (3, 1, 1, 2)
    assert (score.meant, score.forced) == (2, 1)
    assert score_of(ROWS, decided("legal", "medical", "")).right == 3


def test_an_adapter_whose_examples_do_harm_is_left_out_and_the_next_is_tried_without_them() -> None:
    additions = {
        "legal": Addition(("l1", "l2", "l3")),
        "medical": Addition(("m1",), ("m2",)),
        "none": Addition(("n1",)),
    }
    profiles = [*PROFILES, AdapterProfile("none", "1")]
    asked: list[set[str]] = []

    def judge(now: Sequence[AdapterProfile]) -> list[Decided]:
        new = {text for p in now for text in (*p.examples, *p.negative_examples)} & {"l1", "m1", "m2", "n1"}
        asked.append(new)
        if "l1" in new:
            return decided("legal", "medical", "legal", "")  # right: 2, wrong: 1
        return decided("legal", "medical" if "m1" in new else "", "", "medical" if "m1" in new else "")

    found = learn(judge, profiles, additions, ROWS)
    assert asked == [set(), {"l1"}, {"m1", "m2"}, {"m1", "m2", "n1"}]
    assert [(one.adapter, one.kept, one.before.right, one.after.right) for one in found.tried] == [
        ("legal", False, 2, 2),
        ("medical", True, 2, 3),
        ("none", True, 3, 3),
    ]
    assert found.kept == {name: additions[name] for name in ("medical", "none")}
    assert ([one.routed for one in found.before][-1], [one.routed for one in found.after][-1]) == (
        "",
        "medical",
    )


def test_fewer_right_is_harm_as_more_wrong_is() -> None:
    before = score_of(ROWS, decided("legal", "", ""))
    assert before.harmed_by(score_of(ROWS, decided("", "", "")))
    assert before.harmed_by(score_of(ROWS, decided("legal", "legal", "")))
    assert not before.harmed_by(before)
    assert not before.harmed_by(score_of(ROWS, decided("legal", "medical", "")))


def test_taught_adapters_keep_what_they_had() -> None:
    legal, medical = taught(PROFILES, {"legal": Addition(("new",), ("not",))})
    assert legal == replace(
        PROFILES[0], examples=("Who owns the fence?", "new"), negative_examples=("No lawyer here", "not")
    )
    assert medical is PROFILES[1]
