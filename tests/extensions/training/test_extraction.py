"""The further rows that adapters learn from: where they come from, and what stays out."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

RECIPES = Path(__file__).parents[3] / "recipes"
SCRIPTS = RECIPES / "extraction"
TABULAR = """<ICD10CM.tabular><chapter><desc>Injuries (S00-T88)</desc><section>
  <diag><name>%s</name><desc>Cut of hand</desc><inclusionTerm><note>Gash of palm</note></inclusionTerm>
    <diag><name>%s.111</name><desc>Cut of right hand</desc></diag></diag>
  <diag><name>%s</name><desc>Burn</desc><inclusionTerm><note>Scald of arm</note></inclusionTerm>
</diag></section></chapter></ICD10CM.tabular>"""


@pytest.fixture(scope="module")
def scripts() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        names = ("near", "icd_rows", "debian_rows", "translation_rows")
        yield {name: importlib.import_module(name) for name in names}


def rows_of(name: str) -> list[dict[str, str]]:
    text = gzip.decompress((RECIPES / "data" / f"{name}.jsonl.gz").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["medical", "summarization", "translation"])
def test_shipped_rows_are_far_from_the_other_splits(scripts: dict[str, ModuleType], name: str) -> None:
    near = scripts["near"]
    train, more = rows_of(f"{name}.train"), rows_of(f"{name}.more")
    other = rows_of(f"{name}.valid") + rows_of(f"{name}.test")
    assert more[: len(train)] == train
    assert len(more) > 1.9 * len(train)
    assert all(near.for_training(row["group"]) for row in more)
    assert not any(near.for_training(row["group"]) for row in other)
    known = near.Known(row["x"] for row in other)
    assert [row["x"] for row in more[len(train) :] if known.near(row["x"])] == []
    assert len({row["prompt"] for row in more}) == len(more)


def test_medical_learns_no_chapter_that_its_rows_had_not(scripts: dict[str, ModuleType]) -> None:
    assert {row["response"] for row in rows_of("medical.more")} == {
        row["response"] for row in rows_of("medical.train")
    }


def jaccard(one: str, two: str) -> float:
    a, b = set(one.split()), set(two.split())
    return len(a & b) / len(a | b) if a | b else 0.0


TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"]), min_size=1).map(" ".join)


@given(st.lists(TEXTS), TEXTS)
def test_near_finds_exactly_the_texts_that_share_enough_words(known: list[str], text: str) -> None:
    sys.path.insert(0, str(SCRIPTS))
    near = importlib.import_module("near")
    sys.path.remove(str(SCRIPTS))
    assert near.Known(known).near(text) == any(jaccard(text, other) >= 0.7 for other in known)


def test_splits_hash_is_that_of_the_data(scripts: dict[str, ModuleType]) -> None:
    assert not scripts["near"].for_training("F94")  # of the test split
    assert scripts["near"].for_training("S62")


def test_icd_terms_of_other_splits_stay_out(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    file = tmp_path / "tabular.xml"
    file.write_text(TABULAR % ("S62", "S62", "F94"))
    terms = list(scripts["icd_rows"].read_terms(file))
    assert {(term.text, term.category, term.kind) for term in terms} == {
        ("Cut of hand", "S62", "title"),
        ("Gash of palm", "S62", "inclusion"),
        ("Burn", "F94", "title"),
        ("Scald of arm", "F94", "inclusion"),
    }  # S62.111 is too long
    train = [{"prompt": "p", "response": "Injuries", "group": "S62", "x": "gash of palm"}]
    made = scripts["icd_rows"].more_rows(train, terms, inclusions=4, titles=4, seed=1)
    assert [row["x"] for row in made] == ["gash of palm", "Cut of hand"]
    assert made[1]["response"] == "Injuries"


def test_debian_paragraphs_with_a_list_are_left_out(scripts: dict[str, ModuleType]) -> None:
    text = " Plays songs\n loudly.\n .\n It can:\n  - shout\n  - sing\n .\n Made of  tin."
    assert scripts["debian_rows"].running_text(text) == "Plays songs loudly. Made of tin."


def test_debian_synopsis_that_is_copied_or_of_other_length_is_left_out(
    scripts: dict[str, ModuleType],
) -> None:
    description = scripts["debian_rows"].Description
    text = "word " * 24 + "loud tin player"
    assert description("p", "s", text, "plays songs loudly").usable()
    assert not description("p", "s", text, "loud tin player").usable()
    assert not description("p", "s", text, "loud player").usable()
    assert not description("p", "s", "too short", "plays songs loudly").usable()


def test_debian_indexes_are_joined_on_the_package(scripts: dict[str, ModuleType]) -> None:
    texts = "Package: a-bin\nDescription-en: does a\n First.\n .\n Second.\n\n"
    texts += "Package: b\nDescription-en: b\n B.\n"
    found = list(scripts["debian_rows"].descriptions(texts, "Package: a-bin\nSource: a (1.0)\n"))
    assert [(item.package, item.source, item.text, item.synopsis) for item in found] == [
        ("a-bin", "a", "First. Second.", "does a")
    ]


def test_debian_takes_one_package_of_a_new_training_source(scripts: dict[str, ModuleType]) -> None:
    debian, near = scripts["debian_rows"], scripts["near"]
    ours = [name for name in map(str, range(40)) if near.for_training(name)][:3]
    theirs = next(name for name in map(str, range(40)) if not near.for_training(name))

    def text(name: str) -> str:
        return " ".join(f"{name}w{at}" for at in range(30))

    found = [
        debian.Description(f"{name}-{n}", name, text(name), "a short line") for name in ours for n in "ab"
    ]
    found += [debian.Description("t", theirs, text("kept-out"), "a short line")]
    found += [debian.Description("c", ours[2] + "copy", text("kept-out"), "a short line")]
    train = [{"group": ours[0], "x": "x", "pkg": "p"}]
    made = debian.more_rows(train, found, rows=9, seed=1)
    assert sorted(row["group"] for row in made[1:]) == sorted(ours[1:])
    assert len(debian.more_rows(train, found, rows=2, seed=1)) == 2


def test_translations_are_joined_on_the_description(scripts: dict[str, ModuleType]) -> None:
    english = "Package: a-bin\nDescription-md5: 1\nDescription-en: loud tin player\n First.\n .\n  - list\n"
    english += "\nPackage: b\nDescription-md5: 2\nDescription-en: not translated\n B.\n"
    french = "Package: a-bin\nDescription-md5: 1\nDescription-fr: lecteur\u22c5bruyant\n Un.\n .\n  - liste\n"
    translation = scripts["translation_rows"]
    found = list(translation.descriptions(english, french, "Package: a-bin\nSource: a (1.0)\n"))
    assert list(translation.synopses(found)) == [translation.Pair("a", "loud tin player", "lecteur bruyant")]
    assert list(translation.running_paragraphs(found)) == [translation.Pair("a", "First.", "Un.")]


@pytest.mark.parametrize(
    ("english", "french", "usable"),
    [
        ("loud tin player", "lecteur bruyant en fer-blanc", True),
        ("loud player", "lecteur bruyant de musique", False),
        ("Tin Music Player", "Tin music player", False),
        ("tin - transitional package", "tin – paquet de transition", False),
        ("dummy video driver for X", "pilote vidéo factice pour X", True),
    ],
)
def test_synopses_worth_learning_from(
    scripts: dict[str, ModuleType], english: str, french: str, usable: bool
) -> None:
    assert scripts["translation_rows"].Pair("s", english, french).usable_synopsis() is usable


@pytest.mark.parametrize(
    ("english", "french", "usable"),
    [
        ("It plays 2 songs. Loudly.", "Il joue 2 chansons. Très fort.", True),
        ("It plays 2 songs. Loudly.", "Il joue 2 chansons très fort.", False),
        ("It plays 2 songs.", "Il joue 3 chansons.", False),
        ("It plays songs.", "Il joue des chansons de toutes les époques et de tous les pays.", False),
        ("It plays these songs:", "Il joue ces chansons :", False),
        ("It plays songs. " * 13 + "It sings.", "Il joue des airs. " * 13 + "Il chante.", False),
    ],
)
def test_paragraphs_worth_learning_from(
    scripts: dict[str, ModuleType], english: str, french: str, usable: bool
) -> None:
    assert scripts["translation_rows"].Pair("s", english, french).usable_paragraph() is usable


def test_translation_takes_two_synopses_and_a_paragraph_of_a_source(scripts: dict[str, ModuleType]) -> None:
    translation, near = scripts["translation_rows"], scripts["near"]
    ours = next(name for name in map(str, range(40)) if near.for_training(name))
    theirs = next(name for name in map(str, range(40)) if not near.for_training(name))

    def described(source: str, word: str) -> Any:
        english = f"plays {word} songs\n It sings {word}."
        return translation.Pair(source, english, f"joue des airs {word}\n Il chante {word}.")

    found = [described(ours, word) for word in "abcd"] + [described(theirs, "z")]
    found += [translation.Pair(ours, "other English words", "joue des airs z")]  # French as in the test split
    train = [{"group": ours, "x": "Plays a songs"}]
    made = translation.more_rows(train, found, rows_of_paragraphs=5, seed=1)
    assert made[0] == train[0]
    assert [row["group"] for row in made] == [ours] * 3
    assert made[1]["x"] in {"plays b songs", "plays c songs", "plays d songs"}
    assert made[2]["source"].endswith("paragraph")
    assert len(translation.more_rows(train, found, rows_of_paragraphs=0, seed=1)) == 2
