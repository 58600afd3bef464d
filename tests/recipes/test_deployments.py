"""The labelled requests in recipes/routing for adapters that nothing was tuned on, and for conversations."""

from __future__ import annotations

import importlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from router.registry.format.folder import MANIFEST
from router.registry.format.manifest import Manifest, parse_manifest

ROOT = Path(__file__).parents[2]
ROUTING = ROOT / "recipes" / "routing"
DEPLOYMENTS = ("company", "hospital", "software_vendor")
ROWS = {"more_examples": 136, "labelled": 160, "test": 150, "none": 60}  # rows of each deployment
EXAMPLES = 8  # of each adapter, in its manifest
RUN = 6  # words in a row that a test request may not share with an example or a labelled request
KINDS = {
    "keyword-stuffing": 24,
    "other-language": 22,
    "middle-instruction": 22,
    "topic-is-not-task": 22,
    "answer-form": 22,
    "injection": 22,
    "typos": 22,
    "mixed-language": 22,
    "code-inside": 22,
}
LANGUAGES = ("de", "es", "fr", "zh")  # of foreign.jsonl
CHATS = {"follow-up": 40, "topic-change": 20}
LONG = 1_200  # characters at least of a text with the instruction in its middle
SHORT = 5  # words: a turn of a chat up to here is a follow-up that may occur twice


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file in recipes/routing."""
    lines = (ROUTING / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def manifests(folder: Path) -> dict[str, Manifest]:
    """The manifests under a folder of adapters, by folder name; each must be read without a finding."""
    read = {}
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        manifest, findings = parse_manifest(path.read_bytes(), path.parent.name)
        assert not findings, (path, findings)
        read[path.parent.name] = manifest
    return read


def user_turns(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"] if message["role"] == "user"]


def written() -> Iterator[tuple[str, str]]:
    """Each text of these files that must be unique, with the place it is in."""
    for deployment in DEPLOYMENTS:
        for name, manifest in manifests(ROUTING / deployment / "adapters").items():
            yield from ((f"{deployment}/{name}", text) for text in manifest.routing.examples)
        for file in ROWS:
            yield from ((f"{deployment}/{file}", row["text"]) for row in rows(f"{deployment}/{file}"))
    for file in ("hard", "foreign"):
        yield from ((file, row["text"]) for row in rows(file))
    for file in ("chats", "system_prompts"):
        for row in rows(file):
            yield from ((file, text) for text in user_turns(row) if len(text.split()) > SHORT)


@pytest.fixture(scope="module")
def heldout() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROUTING))
        yield importlib.import_module("heldout")


@pytest.fixture(scope="module")
def shipped() -> set[str]:
    return {manifest.name for manifest in manifests(ROOT / "adapters").values()}


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_a_deployment_has_eight_adapters_whose_manifests_can_be_read(deployment: str) -> None:
    read = manifests(ROUTING / deployment / "adapters")
    assert len(read) == 8
    for folder, manifest in read.items():
        assert manifest.name == folder
        assert manifest.description
        assert manifest.domain or manifest.task
        assert len(manifest.routing.examples) == EXAMPLES


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
@pytest.mark.parametrize("file", ROWS)
def test_a_file_of_a_deployment_has_its_rows_and_known_labels(deployment: str, file: str) -> None:
    found = rows(f"{deployment}/{file}")
    assert len(found) == ROWS[file]
    assert all(row.keys() == {"text", "adapter"} and row["text"].strip() for row in found)
    labels = Counter(row["adapter"] for row in found)
    if file == "none":
        assert labels.keys() == {""}
    else:
        assert labels.keys() == manifests(ROUTING / deployment / "adapters").keys()
        assert max(labels.values()) - min(labels.values()) <= 1


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_a_test_request_shares_no_run_of_words_with_what_is_taught(
    deployment: str, heldout: ModuleType
) -> None:
    def runs(text: str) -> set[str]:
        words = heldout.words(unicodedata.normalize("NFKC", text))
        return {" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}

    read = manifests(ROUTING / deployment / "adapters").values()
    taught = [text for manifest in read for text in manifest.routing.examples]
    taught += [row["text"] for file in ("more_examples", "labelled") for row in rows(f"{deployment}/{file}")]
    known = set().union(*map(runs, taught))
    asked = [row["text"] for file in ("test", "none") for row in rows(f"{deployment}/{file}")]
    assert not [(text, shared) for text in asked if (shared := runs(text) & known)]


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_test_requests_are_short_and_long(deployment: str) -> None:
    lengths = [len(row["text"].split()) for row in rows(f"{deployment}/test")]
    assert min(lengths) <= 3
    assert sum(length >= 40 for length in lengths) >= 15


def test_no_text_occurs_twice(heldout: ModuleType) -> None:
    places: dict[str, list[str]] = {}
    for place, text in written():
        normal = " ".join(heldout.words(unicodedata.normalize("NFKC", text)))
        places.setdefault(normal, []).append(place)
    assert not {text: found for text, found in places.items() if len(found) > 1}


def test_no_text_is_taught_to_the_shipped_adapters_or_calibrates_them(heldout: ModuleType) -> None:
    def normal(text: str) -> str:
        return " ".join(heldout.words(unicodedata.normalize("NFKC", text)))

    known = {normal(row["text"]) for file in ("calibration", "dev", "ood") for row in rows(file)}
    for manifest in manifests(ROOT / "adapters").values():
        known |= {normal(text) for text in (*manifest.routing.examples, *manifest.routing.negative_examples)}
    assert not [(place, text) for place, text in written() if normal(text) in known]


def test_no_text_repeats_a_row_of_the_held_out_test(heldout: ModuleType) -> None:
    known = heldout.HeldOut.read()
    assert not [text for _, text in written() if known.repeated(text) >= heldout.REPEATED]


def test_hard_requests_have_their_kinds_in_both_halves(shipped: set[str]) -> None:
    found = rows("hard")
    assert all(row.keys() == {"text", "adapter", "kind", "half"} and row["text"].strip() for row in found)
    assert Counter(row["kind"] for row in found) == KINDS
    assert {row["adapter"] for row in found} == shipped | {""}
    assert Counter((row["kind"], row["half"]) for row in found) == {
        (kind, half): count // 2 for kind, count in KINDS.items() for half in ("build", "unseen")
    }


def test_requests_in_other_languages_are_alike_in_number(shipped: set[str]) -> None:
    found = rows("foreign")
    deployments = {"shipped": shipped - {""}}
    for name in ("company", "hospital"):
        deployments[name] = set(manifests(ROUTING / name / "adapters"))
    expected = Counter(
        (name, adapter, language)
        for name, adapters in deployments.items()
        for adapter in adapters
        for language in LANGUAGES
    )
    expected.update({("", "", language): 20 for language in LANGUAGES})
    assert Counter((row["deployment"], row["adapter"], row["language"]) for row in found) == expected
    assert all(row.keys() == {"text", "adapter", "deployment", "language", "half"} for row in found)


def test_an_instruction_in_the_middle_is_in_a_long_text() -> None:
    texts = [row["text"] for row in rows("hard") if row["kind"] == "middle-instruction"]
    assert min(map(len, texts)) >= LONG


def test_chats_have_an_expected_adapter_for_each_user_turn(shipped: set[str]) -> None:
    found = rows("chats")
    for row in found:
        assert row.keys() == {"messages", "expected", "kind", "half"}
        roles = [message["role"] for message in row["messages"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == (["user", "assistant"] * len(turns))[: len(turns)]
        assert turns[-1] == "user"
        assert 2 <= len(row["expected"]) == len(user_turns(row)) <= 4
        assert set(row["expected"]) <= shipped | {""}
        assert (len(set(row["expected"])) > 1) == (row["kind"] == "topic-change")
        assert all(message["content"].strip() for message in row["messages"])
    assert Counter(row["kind"] for row in found) == CHATS
    assert Counter((row["kind"], row["half"]) for row in found) == {
        (kind, half): count // 2 for kind, count in CHATS.items() for half in ("build", "unseen")
    }


def test_a_system_prompt_comes_before_one_user_text(shipped: set[str]) -> None:
    found = rows("system_prompts")
    for row in found:
        assert row.keys() == {"messages", "adapter", "half"}
        assert [message["role"] for message in row["messages"]] == ["system", "user"]
        assert all(message["content"].strip() for message in row["messages"])
    assert {row["adapter"] for row in found} == shipped | {""}
    assert Counter(row["half"] for row in found) == {"build": 15, "unseen": 15}


LEARNING = ROUTING / "learning"


def learning_rows() -> list[tuple[str, dict[str, Any]]]:
    """Rows that the encoder is trained on, with the deployment."""
    lines = [
        (path.stem, line)
        for path in sorted(LEARNING.glob("*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    return [(deployment, json.loads(line)) for deployment, line in lines]


def test_a_deployment_that_is_learned_from_has_eight_adapters_with_examples_and_requests() -> None:
    parts = Counter((deployment, row["part"]) for deployment, row in learning_rows())
    adapters = Counter(
        (deployment, row["adapter"], row["part"])
        for deployment, row in learning_rows()
        if row["part"] != "none"
    )
    for deployment in {deployment for deployment, _ in parts}:
        assert parts[deployment, "adapter"] == 8
        assert parts[deployment, "none"] >= 45
    for (_, _, part), count in adapters.items():
        assert count >= {"adapter": 1, "example": 8, "request": 20}[part]


def test_no_text_that_is_learned_from_is_asked(heldout: ModuleType) -> None:
    """Not even six words in a row of it; that holds for the held-out test as well."""

    def runs(text: str) -> set[str]:
        words = heldout.words(unicodedata.normalize("NFKC", text))
        return {" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1)} or {" ".join(words)}

    asked = set().union(*(runs(text) for _, text in written()))
    known = heldout.HeldOut.read()
    for deployment, row in learning_rows():
        if text := row.get("text"):
            assert not runs(text) & asked, (deployment, text)
            assert known.repeated(text) < heldout.REPEATED, (deployment, text)
