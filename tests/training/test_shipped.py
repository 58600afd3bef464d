"""The adapters that ship are what their recipes and report cards say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from router.evaluation.markdown import report_page
from router.evaluation.subject import load_subject, read_manifest
from router.registry.format.artifact import validate_folder
from router.registry.format.probes import parse_probes
from router.training.base import load_base
from router.training.data import Row, read_rows
from router.training.export import manifest_text
from router.training.probes import LEAD, greedy_tokens, least_lead
from router.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted(recipe.stem for recipe in (ROOT / "recipes").glob("*.toml"))
FOLDERS = [ROOT / "adapters" / name for name in RECIPES]

pytestmark = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def test_folder_is_accepted_and_small(folder: Path) -> None:
    report = validate_folder(folder, None)
    assert report.ok, report.findings
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000


def test_manifest_is_the_recipes(folder: Path) -> None:
    base = read_manifest(folder).base
    recipe = load_recipe(ROOT / "recipes" / f"{folder.name}.toml")
    assert (folder / "adapter.toml").read_text() == manifest_text(recipe, base.model, base.digest)


def test_trained_with_the_recipes_settings(folder: Path) -> None:
    facts = json.loads((folder / "train_log.jsonl").read_text().splitlines()[0])
    recipe = load_recipe(ROOT / "recipes" / f"{folder.name}.toml")
    settings = {name: getattr(recipe, name).model_dump(mode="json") for name in ("lora", "train")}
    assert facts["settings"] == settings
    assert facts["base_digest"] == read_manifest(folder).base.digest


def test_report_is_of_these_weights_and_this_data(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    weights = (folder / "adapter_model.safetensors").read_bytes()
    assert report["adapter"]["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    data = ROOT / "recipes" / "data" / report["data"]["file"]
    assert report["data"]["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert report_page(report) == (folder / "REPORT.md").read_text()


def test_gain_over_base_with_examples_excludes_zero(folder: Path) -> None:
    gains = json.loads((folder / "report.json").read_text())["gains"]
    assert all(gain["score"]["low"] > 0 for gain in gains.values())
    assert all(gain["format_blind"]["low"] > 0 for gain in gains.values())


def test_probes_are_not_of_the_test_split(folder: Path) -> None:
    probes, findings = parse_probes((folder / "probes.jsonl").read_bytes())
    assert findings == ()
    assert len(probes) >= 3
    test = {row.prompt for row in read_rows(ROOT / "recipes" / "data" / f"{folder.name}.test.jsonl.gz")}
    assert not test & {probe.prompt for probe in probes}


@pytest.mark.slow
def test_probes_are_what_plain_peft_answers(folder: Path) -> None:
    probes, _ = parse_probes((folder / "probes.jsonl").read_bytes())
    recipe = load_recipe(ROOT / "recipes" / f"{folder.name}.toml")
    subject = load_subject(folder, read_manifest(folder), load_base(recipe.base.model, "cpu"))
    prompts = [subject.rendering.example(Row(probe.prompt, "-", "")).prompt for probe in probes]
    answers = greedy_tokens(subject.model, prompts, subject.rendering.ends, 32)
    assert all(
        probe.passes(subject.rendering.text(answer)) for probe, answer in zip(probes, answers, strict=True)
    )
    # Half: on another machine's arithmetic a lead may come out a little smaller than where it was chosen.
    assert all(least_lead(subject.model, subject.rendering, probe) >= LEAD / 2 for probe in probes)
