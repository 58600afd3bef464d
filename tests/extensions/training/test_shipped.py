"""The adapters that ship are what their recipes and report cards say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from router.extensions.training.base import LoadedBase, load_base
from router.extensions.training.data import TrainingRow, collate, read_rows
from router.extensions.training.evaluation.report import report_page
from router.extensions.training.evaluation.subject import (
    ComparedArm,
    EvaluationSubject,
    load_subject,
    read_manifest,
)
from router.extensions.training.export import manifest_text
from router.extensions.training.probes import LEAD
from router.extensions.training.recipe import load_recipe
from router.registry.format.artifact import FolderRules, validate_folder
from router.registry.format.manifest import Match, parse_probes

ROOT = Path(__file__).parents[3]
RECIPES = sorted(recipe.stem for recipe in (ROOT / "recipes").glob("*.toml"))
FOLDERS = [ROOT / "adapters" / name for name in RECIPES]
PROVEN = ("legal", "legal-activated")  # one of each kind; a server proves every one when it loads it

each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@each
@pytest.mark.slow
def test_folder_is_accepted_and_small(folder: Path) -> None:
    report = validate_folder(folder, FolderRules(None))
    assert report.ok, report.findings
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000


@each
def test_manifest_is_the_recipes(folder: Path) -> None:
    manifest = read_manifest(folder)
    recipe = load_recipe(ROOT / "recipes" / f"{folder.name}.toml")
    text = manifest_text(recipe, manifest.base.model, manifest.base.digest, manifest.labels.temperature)
    assert (folder / "adapter.toml").read_text() == text


@each
def test_trained_with_the_recipes_settings(folder: Path) -> None:
    facts = json.loads((folder / "train_log.jsonl").read_text().splitlines()[0])
    recipe = load_recipe(ROOT / "recipes" / f"{folder.name}.toml")
    settings = {name: getattr(recipe, name).model_dump(mode="json") for name in ("lora", "train")}
    assert facts["settings"] == settings
    assert facts["base_digest"] == read_manifest(folder).base.digest


@each
def test_report_is_of_these_weights_and_this_data(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    weights = (folder / "adapter_model.safetensors").read_bytes()
    assert report["adapter"]["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    data = ROOT / "recipes" / "data" / report["data"]["file"]
    assert report["data"]["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert report_page(report) == (folder / "REPORT.md").read_text()


@each
def test_gain_over_base_with_examples_excludes_zero(folder: Path) -> None:
    gains = json.loads((folder / "report.json").read_text())["gains"]
    assert all(gain["score"]["low"] > 0 for gain in gains.values())
    assert all(gain["format_blind"]["low"] > 0 for gain in gains.values())


@each
def test_probes_are_not_of_the_test_split(folder: Path) -> None:
    probes, findings = parse_probes((folder / "probes.jsonl").read_bytes())
    assert findings == ()
    assert len(probes) >= 3
    recipe = load_recipe(ROOT / "recipes" / f"{folder.name}.toml")
    test = {row.prompt for row in read_rows(recipe.data.test)}
    assert not test & {probe.prompt for probe in probes}


@pytest.fixture(scope="module")
def base() -> Callable[[str], LoadedBase]:
    """A base by its name, loaded once; adapters are taken off it again."""
    return cache(lambda name: load_base(name, "cpu"))


@pytest.fixture
def subject(folder: Path, base: Callable[[str], LoadedBase]) -> Iterator[EvaluationSubject]:
    """The adapter on its base, in plain PEFT."""
    recipe = load_recipe(ROOT / "recipes" / f"{folder.name}.toml")
    made = load_subject(folder, read_manifest(folder), base(recipe.base.model))
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(folder, id=folder.name, marks=[] if folder.name in PROVEN else pytest.mark.long)
        for folder in FOLDERS
    ],
)
def test_probes_are_what_plain_peft_would_answer(folder: Path, subject: EvaluationSubject) -> None:
    """One pass over all: each token of each answer, its end included, is the likeliest, and by far."""
    probes, _ = parse_probes((folder / "probes.jsonl").read_bytes())
    assert {probe.match for probe in probes} == {Match.EXACT}
    examples = [subject.rendering.example(TrainingRow(probe.prompt, probe.expect, "")) for probe in probes]
    with subject.judged_as(ComparedArm.ADAPTER) as model, torch.no_grad():
        logits, wanted = model.logits(collate(examples))
    first, second = logits.softmax(-1).topk(2)[0].unbind(-1)
    assert torch.equal(logits.argmax(-1), wanted)
    # Half: on another machine's arithmetic a lead may come out a little smaller than where it was chosen.
    assert float((first - second).min()) >= LEAD / 2
