"""Learning curves on a tiny base: measured once, resumed, refused when they are about something else."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from router.errors import AdapterRejected, ConfigError
from router.extensions.training.base import load_base
from router.extensions.training.data import read_rows
from router.extensions.training.evaluation import learning_curve as module
from router.extensions.training.evaluation.learning_curve import (
    FILE,
    data_need,
    learning_curve,
    read_curve,
    scaled,
)
from router.extensions.training.evaluation.report import data_need_lines, draw_data_need
from router.extensions.training.evaluation.subject import (
    Answerer,
    EngineAnswer,
    EvaluationSubject,
    load_subject,
    read_manifest,
)
from router.extensions.training.recipe import Recipe, load_recipe
from router.extensions.training.trainer import Trainer
from router.registry.format.artifact import FolderRules, validate_folder
from router.types import Usage

pytestmark = pytest.mark.slow

FULL = {"value": 1.0, "low": 0.9, "high": 1.0}


class Place:
    """A copy of a trained adapter with its recipe, and what the command said."""

    def __init__(self, trained: Path, folder: Path) -> None:
        self.adapter = Path(
            shutil.copytree(trained / "adapters" / "colours", folder / "adapters" / "colours")
        )
        self.recipe_file, self.work = trained / "recipes" / "colours.toml", folder / "work"
        self.said: list[str] = []

    def measured(self, *fractions: float) -> dict[str, Any]:
        written = learning_curve(
            self.recipe_file,
            fractions,
            output=self.adapter,
            work=self.work,
            device="cpu",
            say=self.said.append,
        )
        assert written == self.adapter / FILE
        curve: dict[str, Any] = json.loads(written.read_text())
        return curve

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.recipe_file)

    @property
    def subject(self) -> EvaluationSubject:
        return load_subject(
            self.adapter, read_manifest(self.adapter), load_base(self.recipe.base.model, "cpu")
        )


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Place:
    return Place(trained, tmp_path)


@pytest.fixture(scope="module")
def done(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A curve of two points."""
    made = Place(trained, tmp_path_factory.mktemp("curve"))
    made.measured(0.5, 0.25)
    return made


def test_points_are_of_parts_of_the_training_rows(done: Place) -> None:
    curve = json.loads((done.adapter / FILE).read_text())
    assert [(point["fraction"], point["rows"]) for point in curve["points"]] == [(0.25, 6), (0.5, 12)]
    assert curve["data"]["rows"] == 24
    assert curve["base"]["digest"] == read_manifest(done.adapter).base.digest
    assert curve["command"].startswith("lora-router adapters learning-curve recipes/colours.toml")
    assert str(done.work.parent) not in json.dumps(curve)
    for point in curve["points"]:
        assert point["asked"] == 9
        assert 0 <= point["score"]["low"] <= point["score"]["value"] <= point["score"]["high"] <= 1
    assert validate_folder(done.adapter, FolderRules(None)).ok


def test_score_is_the_metric_of_the_greedy_answers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(read_rows(place.recipe.data.test))

    rendering = place.subject.rendering

    def right_for_four(
        self: Answerer, prompts: list[Any], title: str, texts: list[str]
    ) -> list[EngineAnswer]:
        assert prompts == [rendering.example(row).prompt for row in rows]
        assert texts == [row.prompt for row in rows]
        assert self.params.max_tokens == place.recipe.generation.max_tokens
        [folder] = place.work.glob("colours/learning-curve/0.5-*/colours")
        assert self.engine.load(folder) == self.adapter
        return [EngineAnswer(row.response if at < 4 else "", Usage()) for at, row in enumerate(rows)]

    monkeypatch.setattr(Answerer, "answers", right_for_four)
    [point] = place.measured(0.5)["points"]
    assert point["score"]["value"] == pytest.approx(4 / 9, abs=1e-4)
    assert point["score"]["low"] < 4 / 9 < point["score"]["high"]
    assert "exact match 0.444 on 9 test rows" in place.said[-1]


def test_what_is_done_is_not_done_again(done: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (done.adapter / FILE).read_bytes()
    monkeypatch.setattr(module, "run", lambda *_: pytest.fail("trained again"))
    done.said.clear()
    done.measured(0.25, 0.5)
    assert (done.adapter / FILE).read_bytes() == before
    assert all("kept from before" in line for line in done.said)


def test_interrupted_training_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, steps = Trainer._step, []

    def stepping(self: Trainer, now: int) -> Any:
        steps.append(now)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, now)

    monkeypatch.setattr(Trainer, "_step", stepping)
    with pytest.raises(KeyboardInterrupt):
        place.measured(0.25)
    assert "go on with: lora-router adapters learning-curve" in " ".join(capsys.readouterr().err.split())
    assert not (place.adapter / FILE).exists()
    place.measured(0.25)
    assert steps == list(range(1, len(steps) + 1))


def test_steps_shrink_with_the_data_down_to_a_floor(place: Place) -> None:
    plan = place.recipe.train.model_copy(update={"steps": 320, "eval_every": 40})
    recipe = place.recipe.model_copy(update={"train": plan})
    for fraction, steps, every in ((0.3, 96, 12), (0.1, 60, 8)):
        part = scaled(recipe, fraction)
        assert (part.data.fraction, part.train.steps, part.train.eval_every) == (fraction, steps, every)
        assert part.train.model_copy(update={"steps": 320, "eval_every": 40}) == plan
        assert part.lora == recipe.lora
    short = recipe.model_copy(update={"train": plan.model_copy(update={"steps": 20})})
    assert scaled(short, 0.1).train.steps == 20


def test_report_section_ends_with_the_whole_adapter(done: Place, tmp_path: Path) -> None:
    section = data_need(done.subject, done.recipe, FULL, 9)
    assert [(point["fraction"], point["rows"]) for point in section["points"]] == [
        (0.25, 6),
        (0.5, 12),
        (1.0, 24),
    ]
    assert section["points"][-1]["score"] == FULL
    page = "\n".join(data_need_lines(section))
    assert "| 100% | 24 | 12 | 9 | 1.000 [0.900, 1.000] |" in page
    assert "exact match" in page
    draw_data_need(section, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_curve_the_command_is_named(place: Place) -> None:
    section = data_need(place.subject, place.recipe, FULL, 9)
    assert section == {"missing": "lora-router adapters learning-curve RECIPE"}
    assert section["missing"] in data_need_lines(section)[0]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("base", "digest"), "0" * 64, "on another base"),
        (("data", "train"), "0" * 64, r"on other data \(train differs\)"),
        (("settings", "train", "learning_rate"), 1, r"other settings \(train.learning_rate\)"),
        (("schema",), 99, "another version"),
        (("points",), [], "holds no point"),
        (("base",), None, "is not what adapters learning-curve writes"),
    ],
)
def test_a_curve_of_something_else_is_refused(
    done: Place, place: Place, path: tuple[str, ...], value: Any, said: str
) -> None:
    curve = json.loads((done.adapter / FILE).read_text())
    table = curve
    for name in path[:-1]:
        table = table[name]
    table[path[-1]] = value
    (place.adapter / FILE).write_text(json.dumps(curve))
    with pytest.raises(ConfigError, match=said):
        read_curve(place.subject, place.recipe)


def test_a_file_that_is_not_json_is_refused(place: Place) -> None:
    (place.adapter / FILE).write_text("{")
    with pytest.raises(ConfigError, match="measure it again"):
        read_curve(place.subject, place.recipe)


def test_a_setting_that_is_new_since_is_no_difference(done: Place, place: Place) -> None:
    curve = json.loads((done.adapter / FILE).read_text())
    del curve["settings"]["train"]["clip"]
    (place.adapter / FILE).write_text(json.dumps(curve))
    assert read_curve(place.subject, place.recipe) == curve


@pytest.mark.parametrize("fractions", [(), (0.0,), (1.0,), (0.1, 2.0), (float("nan"),)])
def test_fractions_outside_are_refused(place: Place, fractions: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"above 0 and below 1"):
        place.measured(*fractions)


def test_it_needs_the_whole_adapter_first(place: Place) -> None:
    shutil.rmtree(place.adapter)
    with pytest.raises(ConfigError, match="train the whole adapter first"):
        place.measured(0.5)


def test_an_adapter_of_another_base_or_name_is_refused(place: Place) -> None:
    manifest = place.adapter / "adapter.toml"
    text, digest = manifest.read_text(), read_manifest(place.adapter).base.digest
    for old, new, error, said in (
        (digest, "0" * 64, AdapterRejected, "whose digest differs"),
        (f'digest = "{digest}"\n', "", ConfigError, "does not say the digest"),
        ('name = "colours"', 'name = "sounds"', ConfigError, "holds sounds"),
    ):
        manifest.write_text(text.replace(old, new))
        with pytest.raises(error, match=said):
            place.measured(0.5)
