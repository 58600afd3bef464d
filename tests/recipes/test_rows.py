"""The labelled requests in recipes/routing."""

from __future__ import annotations

import json
import re
import runpy
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2] / "recipes"
ALL = [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("*.toml"))]
RECIPES = [recipe for recipe in ALL if "like" not in recipe]  # which repeats the adapter of another
NAMES = {recipe["adapter"]["name"] for recipe in RECIPES}


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "routing" / name).read_text().splitlines()]


def test_every_label_often_enough_and_none_unknown() -> None:
    for name, least in (("calibration.jsonl", 60), ("dev.jsonl", 30)):
        counts = Counter(row["label"] for row in rows(name))
        assert set(counts) == NAMES | {""}
        assert min(counts.values()) >= least


def test_no_request_stands_on_two_sides() -> None:
    examples = {text for recipe in RECIPES for text in recipe["routing"]["examples"]}
    sides = [examples, *({row["text"] for row in rows(f"{name}.jsonl")} for name in ("calibration", "dev"))]
    sides += [
        {r["text"] for r in rows("ood.jsonl") if r["split"] == s} for s in ("calibration", "evaluation")
    ]
    for i, one in enumerate(sides):
        for other in sides[i + 1 :]:
            assert not one & other


@pytest.fixture(scope="module")
def compose() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "routing"))
        yield runpy.run_path(str(ROOT / "routing" / "compose.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["calibration", "dev"])
def test_the_files_are_what_compose_makes(compose: dict[str, Any], name: str, tmp_path: Path) -> None:
    compose["write"](tmp_path / "made.jsonl", compose["composed"](name))
    assert (tmp_path / "made.jsonl").read_bytes() == (ROOT / "routing" / f"{name}.jsonl").read_bytes()


def test_rows_about_one_text_are_a_group() -> None:
    grouped: dict[str, list[dict[str, str]]] = {}
    for row in rows("calibration.jsonl"):
        if "group" in row:
            grouped.setdefault(row["group"], []).append(row)
    assert all(len(found) > 1 for found in grouped.values())
    labels = [{row["label"] for row in found} for found in grouped.values()]
    assert {"qa", "summarization"} in labels
    assert {"legal", "translation"} in labels


def test_requests_for_no_adapter_are_those_of_the_parts(compose: dict[str, Any], tmp_path: Path) -> None:
    files = [compose["read_parts"](ROOT / "routing" / "parts" / f"{name}.txt") for name in compose["OOD"]]
    compose["write_ood"](tmp_path / "ood.jsonl", files)
    assert (tmp_path / "ood.jsonl").read_bytes() == (ROOT / "routing" / "ood.jsonl").read_bytes()


def test_no_two_requests_say_nearly_the_same(compose: dict[str, Any]) -> None:
    read = {path.stem: compose["read_parts"](path) for path in (ROOT / "routing" / "parts").glob("*.txt")}
    compose["check"]([text for parts in read.values() for text in compose["written"](parts)])


@pytest.mark.parametrize("name", ["ood2", "ood3", "calibration3"])
def test_later_requests_repeat_nothing_that_is_taught(compose: dict[str, Any], name: str) -> None:
    parts = compose["read_parts"](ROOT / "routing" / "parts" / f"{name}.txt")
    taught = compose["taught"]()
    mix = compose["FILES"]["calibration"][1].get(name)
    gone = compose["taught_texts"](compose["rows"](parts, Nothing(), mix), taught) if mix else set()
    later = {text for text in compose["written"](parts) if text.split(compose["PART"])[0] not in gone}
    pairs = {*compose["same_words"]([*taught, *later]), *compose["same_runs"]([*taught, *later])}
    assert not [pair for pair in pairs if later & set(pair)]


class Nothing:
    """A lender that has nothing."""

    def texts(self, name: str, count: int, key: str = "x") -> list[str]:
        return []


def test_what_is_taught_leaves_with_all_that_are_about_the_same(compose: dict[str, Any]) -> None:
    about = "Ferries stop at noon."
    found = [
        (f"When do ferries stop? {about}", "qa", "passage", about),
        (f"Sum up: {about}", "summarization", "passage", about),
        ("Who is liable?", "legal", "written", "Who is liable?"),
    ]
    assert compose["taught_texts"](found, {f"Sum up: {about}", "Hi"}) == {about}
    texts = {row["text"] for row in rows("calibration.jsonl")}
    assert not texts & compose["taught"]()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I descale a kettle?", "how do i descale the kettle"),
        ("今天晚上吃什么好呢", "今天晚上吃什么好"),
        (
            "Ring the bell, then wait for the guard at the gate.",
            "Before noon: ring the bell, then wait for the guard at the gate. "
            + "He is slow and his boots are loud, so listen.",
        ),
        ("🙂 🙂", "🙂"),
    ],
)
def test_the_check_names_both_of_a_pair(compose: dict[str, Any], one: str, other: str) -> None:
    with pytest.raises(ValueError, match="nearly the same") as raised:
        compose["check"](["Invent a sport for ladders.", one, "Name my boat.", other])
    assert f"{one!r}\n  {other!r}" in str(raised.value)
    assert "boat" not in str(raised.value)


def test_the_check_passes_what_only_begins_alike(compose: dict[str, Any]) -> None:
    compose["check"](
        ["What is the best way to dry figs?", "What is the best way to Ghent by boat, with a cello?"]
    )


def test_nothing_is_lent_twice_by_a_lender_that_avoids_what_was_lent(compose: dict[str, Any]) -> None:
    heldout = compose["HeldOut"].read()
    first = compose["Lender"]("train", heldout)
    lent = first.texts("qa", 24, key="prompt")
    assert first.texts("qa", 24, key="prompt") == lent
    second = compose["Lender"]("train", heldout, avoid=first.used, used=first.used)
    before = set(first.used)
    lent += second.texts("qa", 24, key="prompt")
    lent += second.texts("qa", 6, key="prompt")
    passages = [text.split("Question: ")[0] for text in lent]
    assert not set(passages[:24]) & set(passages[24:48])
    assert not set(passages[:48]) & set(passages[48:])
    assert before < second.used


def test_nothing_that_repeats_the_test_is_lent(compose: dict[str, Any]) -> None:
    lent = compose["Lender"]("train", compose["HeldOut"]([])).texts("qa", 24, key="prompt")
    repeats = compose["HeldOut"]([sys.modules["heldout"].runs(lent[3])])
    assert compose["Lender"]("train", repeats).texts("qa", 24, key="prompt") == lent[:3] + lent[4:]


def test_a_request_that_repeats_the_test_is_named(compose: dict[str, Any]) -> None:
    row = sys.modules["heldout"].runs("How many moons has Mars, and who found them?")
    heldout = compose["HeldOut"]([row])
    with pytest.raises(ValueError, match="nearly a row of the held-out test") as raised:
        compose["check_heldout"](["Hi", "how many moons has mars and who found it?", "Who is it?"], heldout)
    assert str(raised.value).splitlines()[1:] == ["  0.86 'how many moons has mars and who found it?'"]


def test_an_exam_stem_stands_with_options_and_alone_only_if_it_asks_by_itself(
    compose: dict[str, Any],
) -> None:
    made = compose["exam"](
        [
            "What is a lien?||| a claim||| a loan",
            "A lien is||| a loan||| a claim",
            "Which of these is a lien?||| x||| y",
        ],
        "legal",
    )
    assert [text for text, *_ in made] == [
        "What is a lien?\nA. a claim\nB. a loan",
        "What is a lien?",
        "A lien is\n(a) a claim\n(b) a loan",
        "Which of these is a lien? a) x b) y",
    ]


def test_every_text_meets_frames_of_its_own_kind(compose: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "part.txt"
    path.write_text(
        "## legal notice frames\nWhich one? {text}\n{text} Name it.\n## legal notice texts\nUse it freely.\n"
    )
    parts = compose["read_parts"](path)
    assert compose["kinds"](parts, " texts") == ["legal notice"]
    made = compose["around"](parts["legal notice frames"], parts["legal notice texts"], "legal", "written", 2)
    assert set(made) == {
        ("Which one? Use it freely.", "legal", "written", "Use it freely."),
        ("Use it freely. Name it.", "legal", "written", "Use it freely."),
    }


def test_counts_in_the_readme() -> None:
    text = (ROOT / "routing" / "README.md").read_text()
    for name in ("calibration", "dev", "ood"):
        assert re.search(rf"^\| `{name}\.jsonl` \|.*\| {len(rows(f'{name}.jsonl'))} \|$", text, re.M)
