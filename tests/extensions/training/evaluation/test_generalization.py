"""What an adapter does to other tasks, to general text, and to rows that it has not seen."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from router.errors import ConfigError
from router.extensions.training.base import load_base
from router.extensions.training.data import AnswerModel, Rendering, collate, load_splits
from router.extensions.training.evaluation.generalization import (
    GENERAL,
    measure_generalization,
    measure_overfitting,
    overfitting_gap,
    paragraphs,
    regressions,
    whole_text,
)
from router.extensions.training.evaluation.report import overfitting_verdict
from router.extensions.training.evaluation.subject import (
    ComparedArm,
    EvaluationSubject,
    load_subject,
    read_manifest,
)
from router.extensions.training.recipe import Recipe, load_recipe
from router.types import PromptTemplate

SHIPPED = Path(__file__).parents[4] / "recipes" / GENERAL
TEXTS = ("the rain in spain", "a thing of colour", "nothing much")


@pytest.fixture(scope="module")
def subject(trained: Path) -> EvaluationSubject:
    folder, recipe = trained / "adapters" / "colours", load_recipe(trained / "recipes" / "colours.toml")
    return load_subject(folder, read_manifest(folder), load_base(recipe.base.model, "cpu"))


@pytest.fixture
def own(trained: Path) -> Recipe:
    return load_recipe(trained / "recipes" / "colours.toml")


@pytest.fixture
def recipes(trained: Path, tmp_path: Path) -> Path:
    """The adapter's own recipe, a variant of it, another task twice, and general text."""
    source = trained / "recipes"
    text = (source / "colours.toml").read_text()
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.jsonl").symlink_to(source / f"{split}.jsonl")
        rows = [{"prompt": f"{split} {place}?", "response": "x" * (place + 1)} for place in range(6)]
        (tmp_path / f"other.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "colours.toml").write_text(text)
    (tmp_path / "variant.toml").write_text(text.replace('"colours"', '"variant"'))
    other = text.replace('"colours"', '"letters"').replace('.jsonl"', '.jsonl"').replace('= "t', '= "other.t')
    other = other.replace('= "valid', '= "other.valid')
    (tmp_path / "letters.toml").write_text(other)
    (tmp_path / "letters-second.toml").write_text(other)
    (tmp_path / "data").mkdir()
    write_general(tmp_path, [{"text": text} for text in TEXTS])
    return tmp_path


def write_general(recipes: Path, rows: list[Any]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (recipes / GENERAL).write_bytes(gzip.compress(lines.encode()))


def test_sets_are_the_other_tasks_and_general_text(
    subject: EvaluationSubject, own: Recipe, recipes: Path
) -> None:
    section = measure_generalization(subject, own, recipes, rows=4)
    assert [(found["what"], found["rows"]) for found in section["sets"]] == [
        ("letters test rows", 4),
        ("general text", 3),
    ]
    for found in section["sets"]:
        gap = found["difference"]
        assert gap["value"] == pytest.approx(found["adapter"] - found["base"], abs=2e-4)
        assert gap["low"] <= gap["value"] <= gap["high"]
    assert section == measure_generalization(subject, own, recipes, rows=4)


def test_losses_are_those_of_a_plain_forward_pass(
    subject: EvaluationSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.extensions.training.evaluation.subject.LOSS_BATCH", 2)
    rendering = Rendering.of(subject.base.tokenizer, PromptTemplate())
    examples = [whole_text(rendering, text) for text in TEXTS]
    for arm in (ComparedArm.BASE, ComparedArm.ADAPTER):
        losses = subject.losses(arm, examples)
        with subject.judged_as(arm), torch.no_grad():
            for row, example in enumerate(examples):
                tokens = torch.tensor([example.prompt + example.answer])
                scores = torch.log_softmax(subject.model(input_ids=tokens).logits.float(), -1)[0, :-1]
                nats = -scores.gather(1, tokens[0, 1:, None]).sum().item()
                assert losses.nats[row] == pytest.approx(nats, rel=0.02)
                assert losses.tokens[row] == len(example.answer) == len(TEXTS[row].encode()) - 1


def test_the_adapters_own_template_plays_no_part(
    subject: EvaluationSubject, own: Recipe, recipes: Path
) -> None:
    seen: list[str] = []
    encode = Rendering.example

    def spy(self: Rendering, *given: Any) -> Any:
        made = encode(self, *given)
        seen.append(self.tokenizer.decode(made.prompt))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rendering, "example", spy)
        measure_generalization(subject, own, recipes)
    assert len(seen) == 6
    assert not any("Name the colour." in text for text in seen)


def test_general_text_is_an_answer_to_an_activated_lora(
    trained: Path, own: Recipe, recipes: Path, tmp_path: Path
) -> None:
    """It acts on answers alone, and would refuse the bare text."""
    folder, base = tmp_path / "late", load_base(own.base.model, "cpu")
    shutil.copytree(trained / "adapters" / "colours", folder)
    calls = Rendering.of(base.tokenizer, PromptTemplate()).encoder.encode_template_text(
        "<|im_start|>assistant\n"
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"alora_invocation_tokens": calls}))
    late = load_subject(folder, read_manifest(folder), base)
    section = measure_generalization(late, own, recipes, rows=2)
    late.close()
    sets = {found["what"]: found for found in section["sets"]}
    assert list(sets) == ["letters test rows", "general text"]
    assert sets["general text"]["rows"] == len(TEXTS)
    assert sets["general text"]["adapter"] != sets["general text"]["base"]
    assert [found["what"] for found in regressions(section)] == ["loss on general text"]


def test_worse_needs_the_margin_and_an_interval_above_zero(
    subject: EvaluationSubject, own: Recipe, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.extensions.training.evaluation.generalization.MARGIN", -100)
    section = measure_generalization(subject, own, recipes)
    values = {found["what"]: found for found in section["sets"]}
    for found in values.values():
        assert found["worse"] == (found["difference"]["low"] > 0)
    assert any(found["worse"] for found in values.values())  # a toy adapter says colours to everything
    monkeypatch.setattr("router.extensions.training.evaluation.generalization.MARGIN", 100)
    kind = measure_generalization(subject, own, recipes)
    assert not any(found["worse"] for found in kind["sets"])
    listed = regressions(section)
    assert [item["what"] for item in listed] == ["loss on general text"]
    assert set(listed[0]) == {"what", "value", "low", "high", "margin", "worse"}


def test_nothing_to_compare_with_is_said(subject: EvaluationSubject, own: Recipe, tmp_path: Path) -> None:
    section = measure_generalization(subject, own, tmp_path)
    assert section["sets"] == []
    assert regressions(section) == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "fine"}, {"body": "x"}], "general.jsonl.gz:2 has no text"),
        ([], "holds no paragraph"),
        ([{"text": "x"}], "too short"),
    ],
)
def test_bad_general_text_is_refused(
    subject: EvaluationSubject, own: Recipe, recipes: Path, rows: list[Any], said: str
) -> None:
    write_general(recipes, rows)
    with pytest.raises(ConfigError, match=said):
        measure_generalization(subject, own, recipes)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "general.jsonl.gz"
    file.write_bytes(b"not gzip")
    with pytest.raises(ConfigError, match="cannot be read"):
        paragraphs(file)
    file.write_bytes(gzip.compress(b"{"))
    with pytest.raises(ConfigError, match=r"general\.jsonl\.gz:1 is not JSON"):
        paragraphs(file)


def test_shipped_paragraphs_are_short_distinct_and_say_their_source() -> None:
    texts = paragraphs(SHIPPED)
    assert len(texts) == len(set(texts)) == 60
    assert all(40 <= len(text.split()) <= 90 for text in texts)
    rows = [json.loads(line) for line in gzip.decompress(SHIPPED.read_bytes()).decode().splitlines()]
    assert {row["source"].split(",")[0] for row in rows} == {
        "written for this project",
        "Python 3.11 documentation",
    }
    assert "## general" in SHIPPED.with_name("NOTICE").read_text()


def splits(train: float, test: float, half: float) -> dict[str, dict[str, float]]:
    return {
        name: {"loss": loss, "low": loss - half, "high": loss + half, "exact": 0.5, "rows": 100}
        for name, loss in (("train", train), ("valid", test), ("test", test))
    }


def test_gap_joins_both_intervals() -> None:
    found = overfitting_gap(splits(1.0, 1.5, 0.3))
    assert found["value"] == pytest.approx(0.5)
    assert found["high"] - found["value"] == pytest.approx(0.3 * 2**0.5, abs=1e-4)
    assert found["value"] - found["low"] == pytest.approx(0.3 * 2**0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("train", "test", "half", "said"),
    [
        (
            0.05,
            0.09,
            0.01,
            "It overfits: the loss on test rows is above that on training rows by +0.040 nats",
        ),
        (0.05, 0.09, 0.05, "No overfitting that so few rows can show"),
        (1.6, 1.2, 0.1, "It does not overfit: test rows are easier"),
    ],
)
def test_the_sentence_follows_the_interval(train: float, test: float, half: float, said: str) -> None:
    assert overfitting_verdict(splits(train, test, half)).startswith(said)


def test_measured_splits_agree_with_the_pooled_loss(trained: Path) -> None:
    recipe = load_recipe(trained / "recipes" / "colours.toml")
    folder, rows = trained / "adapters" / "colours", load_splits(recipe.data)
    subject = load_subject(folder, read_manifest(folder), load_base(recipe.base.model, "cpu"))
    found = measure_overfitting(subject, rows, 9)
    assert [(name, split["rows"]) for name, split in found.items()] == [
        ("train", 9),
        ("valid", 9),
        ("test", 9),
    ]
    model = AnswerModel(subject.model)
    nats, tokens, right = model.judge(collate(subject.rendering.examples(rows.test)))
    model.close()
    assert found["test"]["loss"] == pytest.approx(float(nats.sum() / tokens.sum()), rel=1e-3)
    assert found["test"]["exact"] == pytest.approx(float(right.float().mean()), abs=1e-4)
    assert all(split["low"] <= split["loss"] <= split["high"] for split in found.values())
