"""A whole evaluation on a tiny base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from router.errors import AdapterRejected, ConfigError
from router.evaluation import evaluate
from router.evaluation.arms import Arm, ask, worked_examples
from router.evaluation.forced import forced, likeliest
from router.evaluation.run import draw
from router.evaluation.subject import load_subject, read_manifest
from router.training.answers import AnswerModel
from router.training.base import load_base
from router.training.data import load_splits
from router.training.recipe import load_recipe


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "adapters" / "colours", tmp_path / "colours"))


def judged(folder: Path, trained: Path, rows: int | None = None) -> dict[str, Any]:
    said: list[str] = []
    [report] = evaluate([folder], recipes=trained / "recipes", rows=rows, device="cpu", say=said.append)
    assert len(said) == 3
    return report


def test_report_card(folder: Path, trained: Path) -> None:
    report = judged(folder, trained)
    assert json.loads((folder / "report.json").read_text()) == report
    assert list(report["arms"]) == ["base", "base_with_examples", "adapter"]
    assert report["data"]["asked"] == report["data"]["rows"] == 9
    arms = report["arms"]
    assert arms["adapter"]["loss_per_gold_token"] < arms["base"]["loss_per_gold_token"]
    assert arms["base_with_examples"]["prompt_tokens"] > 3 * arms["base"]["prompt_tokens"]
    gain = report["gains"]["adapter - base"]["score"]
    assert gain["value"] == pytest.approx(arms["adapter"]["score"]["value"] - arms["base"]["score"]["value"])
    assert report["references"] == {"always the commonest label": pytest.approx(1 / 3, abs=1e-3)}
    assert set(report["splits"]) == {"train", "valid", "test"}


def test_page_shows_every_number(folder: Path, trained: Path) -> None:
    report = judged(folder, trained, rows=5)
    page = (folder / "REPORT.md").read_text()
    assert "5 of 9 rows" in page
    assert f"lora-router adapters evaluate {folder.parent.name}/colours --rows 5" in page
    for arm in report["arms"].values():
        for number in (arm["score"]["value"], arm["likeliest_label"]["high"]):
            assert f"{number:.3f}" in page
        assert str(arm["loss_per_gold_token"]) in page
    assert report["samples"][0]["prompt"] in page


def test_adapter_of_another_base_is_refused(folder: Path, trained: Path) -> None:
    manifest = folder / "adapter.toml"
    digest = read_manifest(folder).base.digest
    manifest.write_text(manifest.read_text().replace(digest, "0" * 64))
    with pytest.raises(AdapterRejected, match="whose digest differs"):
        judged(folder, trained)


def test_folder_without_adapter_or_recipe(folder: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no adapter"):
        evaluate([tmp_path], recipes=trained / "recipes")
    with pytest.raises(ConfigError, match=r"colours\.toml is not there"):
        evaluate([folder], recipes=tmp_path)
    (folder / "adapter.toml").write_text("[adaptor]")
    with pytest.raises(AdapterRejected, match="adaptor"):
        evaluate([folder], recipes=trained / "recipes")


def test_arms_differ_only_in_what_is_shown(folder: Path, trained: Path) -> None:
    recipe = load_recipe(trained / "recipes" / "colours.toml")
    splits = load_splits(recipe.data)
    subject = load_subject(folder, read_manifest(folder), load_base(recipe.base.model, "cpu"))
    shots = worked_examples(splits.train, 3)
    assert [row.response for row in shots] == ["red", "blue", "green"]
    base, few, adapter = (ask(arm, splits.test, subject.rendering, shots) for arm in Arm)
    assert base.examples == adapter.examples
    text = subject.rendering.tokenizer.decode(few.examples[0].prompt)
    assert text.count("<|im_start|>user") == 4
    assert text.count("Name the colour.") == 1
    answers = AnswerModel(subject.model)
    with subject.answering_as(Arm.BASE):
        plain = forced(answers, base.examples)
    assert plain.loss > forced(answers, adapter.examples).loss


def test_likeliest_is_the_one_with_the_least_loss(trained: Path) -> None:
    model = AnswerModel(load_base(str(trained / "base"), "cpu").model)
    answers = [(5, 6), (7,), (8, 9, 10)]
    chosen = likeliest(model, (3, 4), answers)
    with torch.no_grad():
        logits = model.model
    model.close()
    losses = []
    for answer in answers:
        tokens = torch.tensor([(3, 4, *answer)])
        scores = torch.log_softmax(logits(input_ids=tokens).logits.float(), -1)[0, 1:-1]
        losses.append(-scores.gather(1, torch.tensor(answer)[:, None]).mean().item())
    assert chosen == losses.index(min(losses))


def test_draw_is_fixed_and_without_repetition() -> None:
    rows: Any = list(range(50))
    assert draw(rows, None) == rows
    assert draw(rows, 10) == draw(rows, 10)
    assert len(set(draw(rows, 10))) == 10
